"""Memory that is lent over and over, and weights read into it: the same numbers as if each had its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint.dtypes import BY_CODE
from converter.nets import Memory, Weights

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Lazy:
    """A tensor that is read when it is asked for, as those of a checkpoint are; it counts how often."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor, self.reads, self.into = tensor, 0, 0
        self.shape = tuple(tensor.shape)
        self.dtype = BY_CODE[DTYPES[str(tensor.dtype).removeprefix("torch.")]]

    def torch(self, out: torch.Tensor | None = None) -> torch.Tensor:
        self.reads += 1
        if out is None:
            return self._tensor.clone()
        self.into += 1
        assert out.dtype == self._tensor.dtype
        assert tuple(out.shape) == self.shape
        return out.copy_(self._tensor)


def state(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"a.w": (5, 3), "a.b": (5,), "a.none": (0, 4), "a.one": (), "b.w": (7, 2, 2), "ab.w": (2,)}
    return {key: torch.randn(shape, generator=draw).to(dtype) for key, shape in shapes.items()}


def lazy(held: dict[str, torch.Tensor]) -> dict[str, Lazy]:
    return {key: Lazy(tensor) for key, tensor in held.items()}


# Memory.


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.lists(st.integers(0, 5), max_size=3),
                st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8]),
            ),
            max_size=6,
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 200),
)
def test_what_is_lent_does_not_overlap(asked: list[list[tuple[list[int], torch.dtype]]], staging: int) -> None:
    memory = Memory()
    for room in asked:
        *tensors, staged = memory.scratch([(torch.Size(shape), dtype) for shape, dtype in room], staging)
        assert [(list(t.shape), t.dtype) for t in tensors] == [(shape, dtype) for shape, dtype in room]
        assert (len(staged), staged.dtype) == (staging, torch.uint8)
        for tensor in tensors:
            assert tensor.is_contiguous()
            assert tensor.data_ptr() % tensor.element_size() == 0
        for number, tensor in enumerate([*tensors, staged]):
            tensor.fill_(number)
        for number, tensor in enumerate([*tensors, staged]):
            assert bool((tensor == number).all())


def test_memory_is_the_same_until_more_is_asked_for() -> None:
    memory, size = Memory(), torch.Size([100])
    first, _ = memory.scratch([(size, torch.float32)], 0)
    again, _ = memory.scratch([(size, torch.float32)], 0)
    assert first.data_ptr() == again.data_ptr()
    less, _ = memory.scratch([(torch.Size([3]), torch.float64)], 0)
    assert less.data_ptr() == first.data_ptr()
    assert len(memory.buffer) == 448  # in steps of 64 bytes
    more, _ = memory.scratch([(torch.Size([1000]), torch.float32)], 64)
    assert len(memory.buffer) == 4032 + 64
    assert more.numel() == 1000


# Weights.


@pytest.mark.parametrize("kind", [lazy, dict])
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rounded", [None, torch.float16, torch.bfloat16])
def test_what_is_lent_is_what_is_read(
    kind: Any, stored: torch.dtype, dtype: torch.dtype, rounded: torch.dtype | None
) -> None:
    held = state(stored)
    weights = Weights(kind(held), dtype, rounded=rounded)
    for prefix in ("a.", "b.", "a"):
        lent, own = weights.scratch(prefix), weights.under(prefix)
        assert list(lent) == list(own)
        for name, tensor in own.items():
            right = held[prefix + name]
            right = (right if rounded is None else right.to(rounded)).to(dtype)
            for made in (tensor, lent[name]):
                assert made.dtype == dtype
                assert made.shape == right.shape
                assert torch.equal(made, right)


def test_a_prefix_is_all_of_it() -> None:
    weights = Weights(state(), torch.float32)
    assert set(weights.scratch("a.")) == {"w", "b", "none", "one"}
    assert set(weights.scratch("a")) == {".w", ".b", ".none", ".one", "b.w"}
    assert weights.scratch("nothing.") == {}


def test_lending_leaves_the_state_alone() -> None:
    held = state()
    copy = {key: tensor.clone() for key, tensor in held.items()}
    for tensor in Weights(held, torch.float32).scratch("a.").values():
        tensor.zero_()
    assert all(torch.equal(held[key], copy[key]) for key in copy)


def test_valid_until_the_next() -> None:
    """The same memory for the next block: that is the point of it."""
    weights = Weights(lazy(state()), torch.float32)
    first = weights.scratch("a.")
    kept = first["w"].clone()
    second = weights.scratch("b.")
    assert first["w"].data_ptr() == second["w"].data_ptr()
    assert not torch.equal(first["w"].flatten(), kept.flatten())
    assert torch.equal(weights.scratch("a.")["w"], kept)


def test_two_state_dicts_in_one_memory() -> None:
    memory = Memory()
    one, other = (Weights(lazy(state(seed=seed)), torch.float32, memory=memory) for seed in (1, 2))
    for _ in range(3):
        assert torch.equal(one.scratch("a.")["w"], state(seed=1)["a.w"])
        assert torch.equal(other.scratch("a.")["w"], state(seed=2)["a.w"])
    assert one.memory is other.memory is memory
    assert Weights({}, torch.float32).memory is not memory


def test_memories_are_apart_where_nobody_shares() -> None:
    one, other = (Weights(lazy(state(seed=seed)), torch.float32) for seed in (1, 2))
    held = one.scratch("a.")["w"]
    other.scratch("a.")
    assert torch.equal(held, state(seed=1)["a.w"])


def test_each_tensor_is_read_once_and_in_its_place() -> None:
    held = lazy(state())
    Weights(held, torch.float32).scratch("a.")
    for key, tensor in held.items():
        assert tensor.reads == tensor.into == (1 if key.startswith("a.") else 0), key


def test_a_slow_reader_does_not_get_what_another_tensor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of another dtype pass through one staging area, one after the other."""
    held = lazy(state(torch.float16))
    lent = Weights(held, torch.float64).scratch("a.")
    for name, tensor in lent.items():
        assert torch.equal(tensor, state(torch.float16)[f"a.{name}"].double())


def test_a_lazy_tensor_that_hands_out_its_own() -> None:
    """One that ignores where it was to be read into is copied all the same."""

    class Own(Lazy):
        def torch(self, out: torch.Tensor | None = None) -> torch.Tensor:
            return self._tensor

    held = state()
    weights = Weights({key: Own(tensor) for key, tensor in held.items()}, torch.float32)
    assert torch.equal(weights.scratch("a.")["w"], held["a.w"])
    assert weights.scratch("a.")["w"].data_ptr() != held["a.w"].data_ptr()


def test_a_mapping() -> None:
    held = state()
    weights = Weights(held, torch.float64)
    assert list(weights) == list(held)
    assert len(weights) == len(held)
    assert "a.w" in weights
    with pytest.raises(KeyError):
        weights["nothing"]
    assert torch.equal(weights["a.w"], held["a.w"].double())
    assert torch.equal(Weights(held, torch.float32, rounded=torch.bfloat16)["a.w"], held["a.w"].bfloat16().float())


class Mixed(Weights):
    """Weights of which some stay in float32."""

    def dtype_of(self, key: str) -> torch.dtype:
        return torch.float32 if key == "a.b" else self.dtype


@pytest.mark.parametrize("kind", [lazy, dict])
def test_some_in_another_dtype(kind: Any) -> None:
    held = state(torch.bfloat16)
    weights = Mixed(kind(held), torch.float16)
    lent, own = weights.scratch("a."), weights.under("a.")
    for name in ("w", "b"):
        dtype = torch.float32 if name == "b" else torch.float16
        for tensor in (lent[name], own[name], weights[f"a.{name}"]):
            assert tensor.dtype == dtype
            assert torch.equal(tensor, held[f"a.{name}"].to(dtype))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 64 + 64), (torch.float64, 128 + 64 + 4 * 15)])
def test_only_what_is_converted_takes_a_detour(dtype: torch.dtype, size: int) -> None:
    held = {"w": torch.ones(5, 3), "b": torch.ones(5)}
    weights = Weights(lazy(held), dtype)
    weights.scratch("")
    assert len(weights.memory.buffer) == size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_was_proven_equal_is_read_once_while_it_lies_there(dtype: torch.dtype) -> None:
    whole = lazy({"a.qkv": torch.randn(6, 3), "a.w": torch.randn(2, 2), "b.w": torch.randn(3)})
    qkv, w = (whole[key]._tensor for key in ("a.qkv", "a.w"))
    parts = lazy({"a.q": qkv[:4].clone(), "a.v": qkv[4:].clone(), "a.w": w.clone()})
    starts = {"a.q": ("a.qkv", 0), "a.v": ("a.qkv", 12), "a.w": ("a.w", 0)}
    same = {parts[key]: (whole[origin], start) for key, (origin, start) in starts.items()}
    memory = Memory()
    one, other = Weights(whole, dtype, memory=memory), Weights(parts, dtype, memory=memory, same=same)

    def right(state: dict[str, Any] = parts) -> bool:
        lent = Weights(state, dtype, memory=memory, same=same).scratch("a.")
        return all(torch.equal(lent[key[2:]], held._tensor.to(dtype)) for key, held in state.items())

    def reads() -> list[int]:
        return [held.reads for held in parts.values()]

    one.scratch("a.")
    assert right()
    assert reads() == [0, 0, 0]
    assert right({"a.q": parts["a.v"], "a.v": parts["a.q"], "a.w": parts["a.w"]})  # swapped, and still what they are
    assert reads() == [0, 0, 0]
    Weights(whole, torch.bfloat16, memory=memory).scratch("a.")  # there, in another dtype
    assert right()
    one.scratch("a.")
    one.scratch("b.")  # gone
    assert right()
    assert reads() == [2, 2, 2]
    one.scratch("a.")
    spoilt = parts | {"a.q": Lazy(parts["a.q"]._tensor + 1)}  # a fault: nobody proved that equal to anything
    assert right(spoilt)
    assert reads() == [2, 3, 3]
    assert other.scratch("c.") == {}
