"""What a deliberate fault does to a tensor: what its name says, in every precision, and to a copy; and to a state dict:
everything else is passed on unread."""

from __future__ import annotations

import pytest
import torch
from memory_tensors import MemoryTensor

from converter.nets import faults as damage
from converter.nets.faults import Fault, scaled, with_fault

TENSOR = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))


def test_changes_leave_the_tensor_alone() -> None:
    before = TENSOR.clone()
    for change in (damage.scaled, damage.halved, damage.zeroed, damage.last_bit, damage.not_a_number, damage.drifted):
        change(TENSOR)
        assert torch.equal(TENSOR, before), change
    damage.exchanged(3, 0, 2)(TENSOR)
    assert torch.equal(TENSOR, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_last_bit(dtype: torch.dtype) -> None:
    whole = TENSOR.to(dtype)
    spoilt = damage.last_bit(whole)
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    apart = whole.flatten().view(size) ^ spoilt.flatten().view(size)
    assert apart[0] == 1
    assert not apart[1:].any()
    assert damage.last_bit(torch.zeros(3, dtype=dtype))[0] != 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_to_half_keeps_the_dtype(dtype: torch.dtype) -> None:
    spoilt = damage.halved(TENSOR.to(dtype))
    assert spoilt.dtype == dtype
    assert not torch.equal(spoilt, TENSOR.to(dtype))
    assert float((spoilt - TENSOR).abs().max()) < 0.3


def test_other_changes() -> None:
    assert torch.equal(damage.scaled(TENSOR), TENSOR * 1.01)
    assert not damage.zeroed(TENSOR).any()
    assert damage.not_a_number(TENSOR).isnan().sum() == 1
    assert torch.equal(damage.transposed(TENSOR), TENSOR.T)
    drift = (damage.drifted(TENSOR) - TENSOR).norm() / TENSOR.norm()
    assert 5e-4 < float(drift) < 2e-3
    rows = damage.exchanged(3, 0, 2)(TENSOR)
    assert torch.equal(rows, TENSOR[[4, 5, 2, 3, 0, 1]])
    assert torch.equal(damage.exchanged(3, 2, 0)(rows), TENSOR)


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
