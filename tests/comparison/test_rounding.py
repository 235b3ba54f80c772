"""One tensor is the other rounded exactly where torch's `.to` makes it so."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from memory_tensors import DTYPES, FLOATS, MemoryTensor, tensors

from converter.comparison import elements
from converter.comparison.elements import Rounding, roundings

TARGETS = (torch.float32, torch.float16, torch.bfloat16)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def way(side: str, to: torch.dtype) -> Rounding:
    return Rounding(side, DTYPES[name(to)])


def weights(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return (torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.05).to(dtype)


@pytest.mark.parametrize("to", TARGETS, ids=name)
@pytest.mark.parametrize("source", FLOATS[:2], ids=name)
def test_rounded_in_one_step(source: torch.dtype, to: torch.dtype) -> None:
    if source == to:
        return
    a = weights(1000, source)
    a[0] = 1 + 2**-11 + 2**-40  # float64 to float16 by way of float32, as torch rounds, is another number than at once
    b = a.to(to)
    assert way("B", to) in roundings(MemoryTensor(a), MemoryTensor(b))
    assert way("A", to) in roundings(MemoryTensor(b), MemoryTensor(a))
    last = torch.tensor([1]).to(torch.int16 if to != torch.float32 else torch.int32)
    b.view(last.dtype)[-1] ^= 1  # one last bit of one element
    assert roundings(MemoryTensor(a), MemoryTensor(b)) == ()


@pytest.mark.parametrize("to", TARGETS[1:], ids=name)
@pytest.mark.parametrize("stored", FLOATS[:2], ids=name)
def test_rounded_and_stored_in_more_bits_than_that(stored: torch.dtype, to: torch.dtype) -> None:
    """What a half-precision model is after it was loaded into a float32 one and saved."""
    a = weights(1000)
    assert roundings(MemoryTensor(a), MemoryTensor(a.to(to).to(stored))) == (way("B", to),)
    assert roundings(MemoryTensor(a.to(to).to(stored)), MemoryTensor(a)) == (way("A", to),)


def test_from_one_half_precision_to_the_other() -> None:
    a = weights(1000).half()
    assert roundings(MemoryTensor(a), MemoryTensor(a.bfloat16())) == (way("B", torch.bfloat16),)
    b = weights(1000).bfloat16() * 1e-4  # where float16 has fewer bits
    assert roundings(MemoryTensor(b), MemoryTensor(b.half())) == (way("B", torch.float16),)


def test_two_roundings_of_a_third_are_none_of_each_other() -> None:
    a = weights(1000)
    assert roundings(MemoryTensor(a.half()), MemoryTensor(a.bfloat16())) == ()


@settings(max_examples=300)
@given(data=st.data(), to=st.sampled_from(TARGETS))
def test_whatever_torch_makes_of_it(data: st.DataObject, to: torch.dtype) -> None:
    a = data.draw(tensors())
    assume(a.dtype != to and to.itemsize <= a.element_size())
    b = a.to(to)
    assert way("B", to) in roundings(MemoryTensor(a), MemoryTensor(b))
    assert way("A", to) in roundings(MemoryTensor(b), MemoryTensor(a))


@settings(max_examples=300)
@given(data=st.data())
def test_it_is_only_said_where_torch_makes_it_so(data: st.DataObject) -> None:
    a = data.draw(tensors())
    b = data.draw(tensors(size=len(a)) | st.sampled_from(FLOATS).map(lambda to: a.bfloat16().to(to)))
    for found in roundings(MemoryTensor(a), MemoryTensor(b)):
        source, made = (a, b) if found.side == "B" else (b, a)
        assert torch.equal(source.to(getattr(torch, found.to.name)).to(made.dtype), made)
    swapped = {(found.side, found.to) for found in roundings(MemoryTensor(b), MemoryTensor(a))}
    turned = {("B" if found.side == "A" else "A", found.to) for found in roundings(MemoryTensor(a), MemoryTensor(b))}
    assert swapped == turned


def test_a_small_tensor_may_have_several_the_mildest_first() -> None:
    a, b = torch.tensor([1.0001]), torch.tensor([1.0])
    assert roundings(MemoryTensor(a), MemoryTensor(b)) == (way("B", torch.float16), way("B", torch.bfloat16))


def test_beyond_the_range_is_infinity_as_in_torch() -> None:
    a = torch.tensor([1e30, -1e30, 1.001])  # the last, so that bfloat16 would not do
    assert roundings(MemoryTensor(a), MemoryTensor(a.half())) == (way("B", torch.float16),)
    assert roundings(MemoryTensor(a), MemoryTensor(a.half().float())) == (way("B", torch.float16),)
    assert roundings(MemoryTensor(a), MemoryTensor(torch.tensor([65504.0, -65504.0, 1.001]).half())) == ()


@pytest.mark.parametrize("to", TARGETS[1:], ids=name)
def test_nan_is_the_rounding_of_nan_and_of_nothing_else(to: torch.dtype) -> None:
    a = torch.cat([weights(100), torch.tensor([float("nan")])])
    payload = a.clone()
    payload.view(torch.int32)[-1] |= 0x3FFFFF
    for each in (a, payload):
        assert roundings(MemoryTensor(each), MemoryTensor(a.to(to))) == (way("B", to),)
    b = a.to(to)
    b[-1] = 0.0
    assert roundings(MemoryTensor(a), MemoryTensor(b)) == ()
    b = a.to(to)
    b[0] = float("nan")
    assert roundings(MemoryTensor(a), MemoryTensor(b)) == ()


def test_the_last_block_decides_as_well() -> None:
    a = weights(elements.BLOCK + 5)
    b = a.half()
    assert roundings(MemoryTensor(a), MemoryTensor(b)) == (way("B", torch.float16),)
    b[-1] += 1
    assert roundings(MemoryTensor(a), MemoryTensor(b)) == ()


def test_integers_are_roundings_of_nothing() -> None:
    assert roundings(MemoryTensor(torch.tensor([1.5])), MemoryTensor(torch.tensor([1]))) == ()


def test_in_words() -> None:
    assert str(way("B", torch.float16)) == "B is A rounded to float16"
    assert str(way("A", torch.bfloat16)) == "A is B rounded to bfloat16"
