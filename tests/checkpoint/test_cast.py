"""Rounding is torch's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from converter.checkpoint.cast import cast, count_nonfinite, round_to, widen
from converter.checkpoint.dtypes import BF16, BY_CODE, F16, F32, F64, DType


def by_torch(values: np.ndarray, dtype: DType) -> bytes:
    made = torch.from_numpy(values.copy()).to(getattr(torch, dtype.name)).reshape(-1)
    return made.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
@example([65504.0, 65519.996, 65520.0, -65520.0, 1e30])  # where float16 ends
@example([2.0**-14, 2.0**-24, 2.0**-25, 1.5 * 2.0**-25, 2.0**-149, -0.0])  # below its normal range
@example([3.3895313892515355e38, 3.3961775292304957e38, float("inf"), float("-inf")])  # where bfloat16 ends
@settings(max_examples=300, deadline=None)
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


# ---------------------------------------------------------------- from one dtype to another

FLOATS = (F16, BF16, F32, F64)
TARGETS = (F16, BF16, F32)
PAIRS = [(source, target) for source in FLOATS for target in TARGETS]


def cast_by_torch(raw: bytes, source: DType, target: DType) -> tuple[torch.Tensor, torch.Tensor]:
    """(the elements, and what torch makes of them)."""
    values = torch.frombuffer(bytearray(raw), dtype=getattr(torch, source.name))
    return values, values.to(getattr(torch, target.name))


def check(raw: bytes, source: DType, target: DType) -> None:
    """Bit for bit where it is a number; a NaN for a NaN of that sign; and what became infinite is counted."""
    made, overflowed = cast(memoryview(raw), source, target)
    values, expected = cast_by_torch(raw, source, target)
    found = torch.frombuffer(bytearray(made), dtype=expected.dtype)
    number = ~torch.isnan(values)
    bits = {2: torch.int16, 4: torch.int32}[target.itemsize]
    assert torch.equal(found.view(bits)[number], expected.view(bits)[number])
    assert torch.isnan(found[~number]).all()
    assert torch.equal(torch.signbit(found), torch.signbit(values))
    assert overflowed == int((torch.isfinite(values) & torch.isinf(expected)).sum())


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda dtype: dtype.code)
def test_every_bit_pattern_of_a_half(source: DType, target: DType) -> None:
    """Of the two of 16 bits all; of the wider ones all that a half widens to, and the neighbours of each."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    if source.itemsize == 2:
        check(patterns.tobytes(), source, target)
        return
    for half in (torch.float16, torch.bfloat16):
        exact = torch.from_numpy(patterns.copy()).view(half).to(getattr(torch, source.name)).numpy()
        bits = exact.view(f"<u{source.itemsize}")
        for near in (-1, 0, 1):
            check((bits + bits.dtype.type(near % (1 << 8 * source.itemsize))).tobytes(), source, target)


@pytest.mark.parametrize(("source", "target"), [pair for pair in PAIRS if pair[0].itemsize > 2],
                         ids=lambda dtype: dtype.code)  # fmt: skip
def test_every_tie_between_two_halves(source: DType, target: DType) -> None:
    """Half-way between every two neighbours, subnormals too, and the numbers right beside."""
    for half in (torch.float16, torch.bfloat16):
        positive = torch.arange((1 << 15) - 1, dtype=torch.int16).view(half).double()
        positive = positive[torch.isfinite(positive)]
        ties = (positive[1:] + positive[:-1]) / 2
        # The last tie is that between the largest number and what would follow it, where infinity begins.
        ties = torch.cat([ties, positive[-1:] + (positive[-1:] - positive[-2:-1]) / 2])
        values = torch.cat([ties, -ties]).to(getattr(torch, source.name)).numpy()
        for towards in (values, np.zeros_like(values), np.copysign(np.inf, values)):
            check(np.nextafter(values, towards).tobytes(), source, target)


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda dtype: dtype.code)
@given(st.binary(min_size=8, max_size=400))
@settings(max_examples=150, deadline=None)
def test_any_bits(source: DType, target: DType, raw: bytes) -> None:
    check(raw[: len(raw) // 8 * 8], source, target)


@given(st.lists(st.floats(-1e39, 1e39), min_size=1, max_size=50))
@example([1.0 + 2.0**-11 + 2.0**-40, 1.0 + 2.0**-8 + 2.0**-30])  # rounds twice, by way of float32, as torch does
@example([65519.99999999, 65520.0, 3.4028235677973366e38, 3.4028235677973362e38, 3.3961775292304957e38])
@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_doubles_of_ordinary_size(target: DType, values: list[float]) -> None:
    check(np.array(values, "<f8").tobytes(), F64, target)


NANS = {"F16": (0x7C01, 0xFC01, 0x7E00, 0x7FFF), "BF16": (0x7F81, 0xFF81, 0x7FC0, 0xFFFF),
        "F32": (0x7F800001, 0xFF800001, 0x7F80FFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000),
        "F64": (0x7FF0000000000001, 0xFFF0000000000001, 0x7FF000001FFFFFFF, 0xFFFFFFFFFFFFFFFF)}  # fmt: skip


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda dtype: dtype.code)
def test_nan_stays_nan_whatever_its_payload(source: DType, target: DType) -> None:
    """Also one whose only bits are those that rounding cuts off, and those that it would carry out of the NaNs."""
    raw = np.array(NANS[source.code], f"<u{source.itemsize}").tobytes()
    check(raw, source, target)
    made, overflowed = cast(raw, source, target)
    assert (count_nonfinite(made, target), overflowed) == (len(NANS[source.code]), 0)


def test_overflow_counts_finite_elements_only() -> None:
    values = np.array([1.0, 65520.0, -70000.0, np.inf, -np.inf, np.nan, 65519.0], "<f4").tobytes()
    assert cast(values, F32, F16)[1] == 2
    assert cast(values, F32, BF16)[1] == 0
    assert cast(np.array([1e39, -1e300, 3e38, np.inf], "<f8").tobytes(), F64, F32)[1] == 2
    assert cast(np.array([1e39, 3.4e38, 1.0, np.nan], "<f8").tobytes(), F64, BF16)[1] == 2
    assert cast(b"", F32, F16) == (b"", 0)


def test_what_is_given_is_not_changed() -> None:
    raw = bytearray(np.array([1.1, np.nan, 1e9], "<f4").tobytes())
    before = bytes(raw)
    for target in TARGETS:
        cast(memoryview(raw), F32, target)
        assert raw == before
