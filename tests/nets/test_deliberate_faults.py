"""A state dict with a fault in it: everything else is passed on unread."""

from __future__ import annotations

import pytest
import torch
from memory_tensors import MemoryTensor

from converter.nets.faults import Fault, scaled, with_fault


def state() -> dict[str, MemoryTensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: MemoryTensor(torch.randn(4, 4, generator=draw)) for name in "abc"}


def test_a_swap_is_its_own_repair() -> None:
    whole = state()
    swap = Fault("swap", frozenset(), {"a": ("b", None), "b": ("a", None)})
    once = with_fault(whole, swap)
    assert once["a"] is whole["b"]
    assert once["b"] is whole["a"]
    assert once["c"] is whole["c"]
    twice = with_fault(once, swap)
    assert all(twice[key] is whole[key] for key in whole)


def test_what_is_dropped_is_not_there() -> None:
    spoilt = with_fault(state(), Fault("lost", frozenset(), drop=frozenset({"b"})))
    assert list(spoilt) == ["a", "c"]
    assert len(spoilt) == 2
    assert "b" not in spoilt
    with pytest.raises(KeyError):
        spoilt["b"]


def test_nothing_is_read_before_it_is_asked_for() -> None:
    class Unread:
        dtype, shape = None, (2,)

        def torch(self) -> torch.Tensor:
            raise AssertionError

    spoilt = with_fault({"a": Unread(), "b": Unread()}, Fault("x", frozenset(), {"a": ("a", scaled)}))
    assert spoilt["a"].shape == (2,)
    with pytest.raises(AssertionError):
        spoilt["a"].torch()
