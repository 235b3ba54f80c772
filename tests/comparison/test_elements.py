"""Element by element: every number against torch's, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_tensors import FLOATS, MemoryTensor, tensors

from converter.comparison import elements
from converter.comparison.elements import Numbers, blocks, measure


def by_torch(a: torch.Tensor, b: torch.Tensor) -> Numbers:
    """The same, by the definition: over what is finite on both sides."""
    x, y = a.double().flatten(), b.double().flatten()
    good = x.isfinite() & y.isfinite()
    apart = (x - y)[good]
    if a.dtype == b.dtype:
        kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        differing = a.flatten().view(kind) != b.flatten().view(kind)
    else:
        same = (x == y) & (x.signbit() == y.signbit()) | (x.isnan() & y.isnan())
        differing = ~same
    return Numbers(
        a.numel(),
        int(differing.sum()),
        float(apart.norm()),
        float(x[good].norm()),
        float(y[good].norm()),
        float(apart.abs().max()) if len(apart) else 0.0,
        int((~x.isfinite()).sum()),
        int((~y.isfinite()).sum()),
    )


def agree(made: Numbers, right: Numbers) -> None:
    for name in ("elements", "differing", "max_abs", "nonfinite_a", "nonfinite_b"):
        assert getattr(made, name) == getattr(right, name), name
    for name in ("difference", "norm_a", "norm_b"):
        assert getattr(made, name) == pytest.approx(getattr(right, name), rel=1e-12, abs=0), name


@settings(max_examples=300)
@given(data=st.data(), chunks=st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_any_two_tensors(data: st.DataObject, chunks: tuple[int, int]) -> None:
    a = data.draw(tensors(finite=False))
    b = data.draw(tensors(finite=False, size=len(a)) | st.just(a) | st.sampled_from(FLOATS).map(a.to))
    agree(measure(MemoryTensor(a, chunks[0]), MemoryTensor(b, chunks[1])), by_torch(a, b))


@settings(max_examples=100)
@given(data=st.data())
def test_it_is_the_same_from_either_side(data: st.DataObject) -> None:
    a = data.draw(tensors(finite=False))
    b = data.draw(tensors(finite=False, size=len(a)))
    one, other = measure(MemoryTensor(a), MemoryTensor(b)), measure(MemoryTensor(b), MemoryTensor(a))
    assert (one.differing, one.max_abs, one.relative_l2) == (other.differing, other.max_abs, other.relative_l2)
    assert (one.norm_a, one.nonfinite_a) == (other.norm_b, other.nonfinite_b)


@pytest.mark.parametrize("dtypes", [(a, b) for a in FLOATS for b in FLOATS], ids=str)
def test_more_than_one_block(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    count = 2 * elements.BLOCK + 7
    random = torch.Generator().manual_seed(0)
    a = torch.randn(count, generator=random).to(dtypes[0])
    b = (a.double() + 1e-2 * torch.randn(count, generator=random)).to(dtypes[1])
    steps: list[int] = []
    made = measure(MemoryTensor(a), MemoryTensor(b, 999), steps.append)
    agree(made, by_torch(a, b))
    assert sum(steps) == a.nbytes + b.nbytes
    assert len(steps) == 3
    assert 1e-3 < made.relative_l2 < 1e-1


@pytest.mark.parametrize("place", [0, elements.BLOCK - 1, elements.BLOCK, -1])
def test_one_bit_in_a_long_tensor(place: int) -> None:
    a = torch.ones(elements.BLOCK + 3, dtype=torch.float32)
    b = a.clone()
    b.view(torch.int32)[place] ^= 1
    made = measure(MemoryTensor(a), MemoryTensor(b))
    assert (made.differing, made.max_abs) == (1, float(abs(b[place] - 1)))
    assert made.relative_l2 == pytest.approx(2**-23 / math.sqrt(len(a)), rel=1e-6)


def test_zeros_of_either_sign_are_not_the_same_bytes() -> None:
    zeros = torch.zeros(5)
    made = measure(MemoryTensor(zeros), MemoryTensor(-zeros))
    assert (made.differing, made.relative_l2, made.max_abs) == (5, 0.0, 0.0)
    made = measure(MemoryTensor(zeros), MemoryTensor(-zeros.half()))
    assert made.differing == 5


@pytest.mark.parametrize("scale", [1e-200, 1e-310, 1e200, 1e308])
def test_squares_beyond_the_range_of_float64(scale: float) -> None:
    a, b = torch.tensor([1.0, 0.5, 0.25]).double(), torch.tensor([1.0, 0.5, 0.5]).double()
    made = measure(MemoryTensor(a * scale), MemoryTensor(b * scale))
    assert made.relative_l2 == pytest.approx(0.25 / math.sqrt(1.5), rel=1e-6)
    assert made.nonfinite_a == made.nonfinite_b == 0


def test_a_difference_beyond_the_range_of_float64_is_no_number() -> None:
    a = torch.tensor([1.7e308], dtype=torch.float64)
    made = measure(MemoryTensor(a), MemoryTensor(-a))
    assert made.max_abs == made.difference == made.relative_l2 == math.inf
    assert made.nonfinite_a == made.nonfinite_b == 0
    a = torch.full((4,), 1.7e308, dtype=torch.float64)  # so is its norm, and no distance is small beside it
    assert measure(MemoryTensor(a), MemoryTensor(a * 0.9)).relative_l2 == math.inf


def test_what_holds_no_floats_is_compared_too() -> None:
    for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool):
        a = torch.tensor([0, 1, 1, 0]).to(dtype)
        made = measure(MemoryTensor(a), MemoryTensor(a.roll(1)))
        assert (made.differing, made.max_abs) == (2, 1.0)
        assert measure(MemoryTensor(a), MemoryTensor(a)).differing == 0
        assert measure(MemoryTensor(a), MemoryTensor(a.float())).differing == 0


def test_nothing_to_compare() -> None:
    made = measure(MemoryTensor(torch.empty(0)), MemoryTensor(torch.empty(0)))
    assert made == Numbers(0)
    assert made.relative_l2 == 0.0


def test_every_chunk_is_taken_so_that_checksums_are_verified() -> None:
    class Checked(MemoryTensor):
        def chunks(self) -> Any:
            yield from super().chunks()
            raise ValueError("the checksum is wrong")

    good, bad = MemoryTensor(torch.ones(10)), Checked(torch.ones(10))
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="checksum"):
            measure(*pair)


def test_memory_is_that_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """No array is ever larger than a block, however large the tensors are."""
    largest = 0

    def watching(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(data: Any, *more: Any) -> Any:
            nonlocal largest
            made = real(data, *more)
            largest = max(largest, made.size)
            return made

        return call

    monkeypatch.setattr(np, "frombuffer", watching(np.frombuffer))
    a = torch.randn(5 * elements.BLOCK)
    measure(MemoryTensor(a), MemoryTensor(a + 1))
    assert largest == elements.BLOCK
    for one, other in blocks(MemoryTensor(a), MemoryTensor(a.half())):
        assert len(one) <= 4 * elements.BLOCK
        assert len(other) == len(one) // 2
