"""Rounding is torch's, bit for bit."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from makers import raw_bytes

from converter.checkpoint.cast import cast, round_to, trailing_zeros, widen
from converter.checkpoint.dtypes import BF16, BY_CODE, BY_NAME, F16, F32, F64, DType


def by_torch(values: np.ndarray, dtype: DType) -> bytes:
    made = torch.from_numpy(values.copy()).to(getattr(torch, dtype.name)).reshape(-1)
    return made.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
@example([65504.0, 65519.996, 65520.0, -65520.0, 1e30])  # where float16 ends
@example([2.0**-14, 2.0**-24, 2.0**-25, 1.5 * 2.0**-25, 2.0**-149, -0.0])  # below its normal range
@example([3.3895313892515355e38, 3.3961775292304957e38, float("inf"), float("-inf")])  # where bfloat16 ends
@settings(max_examples=300)
def test_any_value(dtype: DType, values: list[float]) -> None:
    made = np.array(values, np.float32)
    assert round_to(made, dtype) == by_torch(made, dtype)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_every_bit_pattern_of_the_upper_half_with_the_lower_at_its_edges(dtype: DType) -> None:
    """All signs, exponents and kept places; ties, their neighbours, and the float16 ties inside the kept half."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0x0000, 0x0001, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper | np.uint32(lower)).view(np.float32)
        values = values[~np.isnan(values)]
        assert round_to(values, dtype) == by_torch(values, dtype)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_widening_is_exact_for_every_bit_pattern(dtype: DType) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = widen(memoryview(bits.tobytes()), dtype)
    by_torch = torch.from_numpy(bits.copy()).view(getattr(torch, dtype.name)).float().numpy()
    assert np.array_equal(wide.astype(np.float32), by_torch, equal_nan=True)
    # What every bit pattern is known by: NaN and infinity have all ones in the exponent, and nothing else has.
    assert np.array_equal(np.isfinite(wide), (bits & dtype.exponent) != dtype.exponent)
    finite = wide[np.isfinite(wide)].astype(np.float32)
    assert round_to(finite, dtype) == bits[np.isfinite(wide)].tobytes()


@pytest.mark.parametrize("dtype", BY_CODE.values(), ids=str)
def test_what_a_dtype_says_of_itself(dtype: DType) -> None:
    theirs = getattr(torch, dtype.name)
    assert (dtype.floating, dtype.itemsize) == (theirs.is_floating_point, theirs.itemsize)
    assert bool(dtype.exponent) == bool(dtype.rounding) == dtype.floating
    if dtype.floating:
        infinity = torch.tensor(float("inf"), dtype=theirs).reshape(1).view(torch.uint8).numpy().tobytes()
        assert int.from_bytes(infinity, "little") == dtype.exponent
        computed = min(torch.finfo(theirs).eps, 2.0)  # the last place of 1; of a value below 1 it is half of that
        computed = max(computed, torch.finfo(torch.float32).eps)
        assert computed / 4 < dtype.rounding < 2 * computed


def test_shape_and_order_do_not_matter() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T / 7
    for dtype in (F16, BF16, F32, F64):
        assert round_to(values, dtype) == round_to(np.ascontiguousarray(values).reshape(-1), dtype)


HALVES = np.arange(1 << 16, dtype=np.uint16)
# All 65,536 upper halves of a float32, with the lower halves at which rounding turns: ties, and just beside them.
LOWER = (0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x7FFF, 0x8000, 0x8001, 0xFFFF)


def _source(name: str) -> torch.Tensor:
    if name in ("float16", "bfloat16"):
        return torch.from_numpy(HALVES.view(np.int16).copy()).view(getattr(torch, name))
    wide = np.concatenate([(HALVES.astype(np.uint32) << 16) | low for low in LOWER]).view(np.float32)
    if name == "float32":
        return torch.from_numpy(wide.copy())
    with np.errstate(invalid="ignore"):
        double = wide.astype(np.float64)
    # Beside every float32, what a rounding by way of float32 takes for it.
    return torch.from_numpy(np.concatenate([double, np.nextafter(double, np.inf), double * (1 + 2**-30)]))


@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("source", ["float64", "float32", "float16", "bfloat16"])
def test_every_cast_is_torchs(source: str, target: str) -> None:
    values = _source(source)
    wanted = values.to(getattr(torch, target))
    data = values.view(torch.uint8).numpy().tobytes()
    made, overflowed = cast(data, BY_NAME[source], BY_NAME[target])
    mine = torch.frombuffer(bytearray(made), dtype=wanted.dtype)
    nan = torch.isnan(values)
    assert torch.equal(torch.isnan(mine), nan)
    bits = {2: torch.int16, 4: torch.int32}[wanted.element_size()]
    assert torch.equal(mine[~nan].view(bits), wanted[~nan].view(bits))
    assert torch.equal(torch.signbit(mine[nan]), torch.signbit(values[nan]))
    assert overflowed == int((torch.isinf(wanted) & ~torch.isinf(values)).sum())


@pytest.mark.parametrize("target", [F16, BF16, F32], ids=str)
@pytest.mark.parametrize("source", [F16, BF16, F32, F64], ids=str)
def test_nothing_becomes_nothing(source: DType, target: DType) -> None:
    made, overflowed = cast(b"", source, target)
    assert (bytes(made), overflowed) == (b"", 0)


@pytest.mark.parametrize("source", [F16, BF16, F32, F64], ids=str)
@pytest.mark.parametrize("target", [F16, BF16], ids=str)
def test_more_than_is_rounded_at_once(source: DType, target: DType) -> None:
    """Piece by piece, the same; and what memory is kept does not grow with the tensor."""
    values = torch.linspace(-70000, 70000, 2_000_000, dtype=torch.float64).to(getattr(torch, source.name))
    data = values.view(torch.uint8).numpy().tobytes()
    tracemalloc.start()
    try:
        rounded, overflowed = cast(data, source, target)
        kept = tracemalloc.get_traced_memory()[0] - len(rounded)
    finally:
        tracemalloc.stop()
    wanted = values.to(getattr(torch, target.name))
    assert bytes(rounded) == wanted.view(torch.uint8).numpy().tobytes()
    assert overflowed == int((torch.isinf(wanted) & ~torch.isinf(values)).sum())
    assert kept < 7_000_000  # of 24 for as many words as the tensor has


def test_every_thread_has_a_result_of_its_own() -> None:
    values = [np.full(1 << 16, i, np.float32) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda value: bytes(cast(value.tobytes(), F32, F16)[0]), values))
    assert made == [value.astype(np.float16).tobytes() for value in values]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1000])
@pytest.mark.parametrize("zeros", [0, 1, 15, 16, 17, 1000])
def test_zeros_at_the_end_are_counted_whatever_their_sign(dtype: str, count: int, zeros: int) -> None:
    tail = torch.zeros(zeros) * torch.tensor([1.0, -1.0]).repeat(500)[:zeros]
    head = torch.full((count,), 2.0**-14)
    data = raw_bytes(torch.cat([torch.zeros(3), head, tail]).to(getattr(torch, dtype)))
    assert trailing_zeros(data, BY_NAME[dtype]) == (zeros if count else zeros + 3)
    assert trailing_zeros(data, BY_NAME[dtype], before=7) == (zeros if count else zeros + 10)
    assert trailing_zeros(b"", BY_NAME[dtype], before=7) == 7
