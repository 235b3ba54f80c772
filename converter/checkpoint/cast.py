"""Bytes to numbers and back: widening is exact, rounding is torch's (to nearest, ties to even)."""

from __future__ import annotations

from typing import Any

from .dtypes import DType


def widen(data: bytes | memoryview, dtype: DType) -> Any:
    """Little-endian elements as a flat NumPy array; bfloat16, which NumPy lacks, becomes float32 exactly.

    >>> from converter.checkpoint.dtypes import BF16
    >>> widen(bytes.fromhex("803f"), BF16).item()
    1.0
    """
    import numpy as np

    if dtype.code == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, dtype.name)


def float64(data: bytes | memoryview, dtype: DType) -> Any:
    """The numbers, exact but for integers beyond 2^53; a NaN of either kind becomes quiet, without a warning."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        return widen(data, dtype).astype(np.float64)


def round_to(values: Any, dtype: DType) -> bytes:
    """The little-endian bytes of a float array in `dtype`, as torch's `.to(dtype)` gives them.

    What is beyond the range of the dtype becomes infinity, and NaN stays a NaN of its sign.

    >>> import numpy as np
    >>> from converter.checkpoint.dtypes import BF16
    >>> round_to(np.array([1.0], np.float32), BF16).hex()
    '803f'
    """
    return bytes(_rounded(values, dtype).tobytes())


def cast(data: bytes | memoryview, source: DType, target: DType) -> tuple[memoryview, int]:
    """(the elements in another dtype, how many finite ones became infinite).

    >>> from converter.checkpoint.dtypes import F16, F32
    >>> cast(b"\\0\\0\\x80\\x3f\\0\\0\\x80\\x7e", F32, F16)[1]  # 1.0 and 2**126
    1
    """
    rounded: memoryview = _rounded(widen(data, source), target).view("u1").data
    infinite = count_nonfinite(rounded, target)
    return rounded, infinite - count_nonfinite(data, source) if infinite else 0


def count_nonfinite(view: bytes | memoryview, dtype: DType) -> int:
    """How many elements are NaN or infinite."""
    mask = dtype.exponent
    if not mask or not len(view):
        return 0
    import numpy as np

    bits = np.frombuffer(view, f"<u{dtype.itemsize}")
    if int(np.bitwise_or.reduce(bits)) & mask != mask:  # most are below 2, and none has the exponent's first bit then
        return 0
    return int(np.count_nonzero((bits & bits.dtype.type(mask)) == mask)) if _largest(bits) >= mask else 0


def trailing_zeros(view: bytes | memoryview, dtype: DType, before: int = 0) -> int:
    """How many elements at the end are zero, of either sign: mostly none, which the last few show.

    Args:
        before: how many are zero right before the first, which count where all of these are.

    >>> from converter.checkpoint.dtypes import F16
    >>> trailing_zeros(bytes.fromhex("003c 0000 0080"), F16)  # 1, 0 and -0
    2
    >>> trailing_zeros(bytes.fromhex("0000"), F16, before=2)
    3
    """
    import numpy as np

    bits = np.frombuffer(view, f"<u{dtype.itemsize}")
    magnitude = bits.dtype.type((1 << 8 * dtype.itemsize - dtype.floating) - 1)
    for last in (bits[-16:], bits):
        if len(nonzero := np.flatnonzero(last & magnitude)):
            return int(len(last) - 1 - nonzero[-1])
    return before + len(bits)


def _largest(bits: Any) -> int:
    """The largest magnitude of floats, as its bits: nothing to count in most arrays, and this needs no memory."""
    # As signed numbers, the positive ones are the largest, and as unsigned ones the negative.
    return int(max(bits.view(f"<i{bits.itemsize}").max(), bits.max().item() - (1 << 8 * bits.itemsize - 1)))


_AT_ONCE = 1 << 17  # elements that are rounded at once: what is computed on the way stays in the processor's cache


def _rounded(values: Any, dtype: DType) -> Any:
    """A float array in `dtype` (of two bytes: its bits), flat."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):  # invalid: what a signalling NaN becomes is still a NaN
        flat = np.ascontiguousarray(values, dtype.name if dtype.itemsize != 2 else None).reshape(-1)
        if dtype.itemsize != 2:
            return flat
        halves = np.empty(len(flat), "<u2")
        for start in range(0, len(flat), _AT_ONCE):
            halves[start : start + _AT_ONCE] = _halved(flat[start : start + _AT_ONCE], dtype)
    return halves


def _halved(values: Any, dtype: DType) -> Any:
    """At least one float in a dtype of two bytes, as the low halves of words."""
    # From float64 torch goes by way of float32, and so rounds twice.
    wide = values.astype("<f4", copy=False)
    bits = wide.view("<u4")
    largest, infinity = _largest(bits), 0x7F800000
    # In place, here and below: memory costs more than the sums.
    halves = bits >> 16
    if dtype.code == "BF16":  # the upper halves, after adding half of their last place, less one where that is even
        halves &= 1
        halves += 0x7FFF
        halves += bits
        halves >>= 16
    else:
        halves &= 0x8000
        halves += _float16(wide, largest)
    if largest > infinity:  # the sums may have carried a NaN out of them
        nan = (bits & 0x7FFFFFFF) > infinity
        quiet = (dtype.exponent & -dtype.exponent) >> 1  # the place below the exponent
        halves[nan] = (bits[nan] >> 16) & 0x8000 | dtype.exponent | quiet
    return halves


def _float16(wide: Any, largest: int) -> Any:
    """The magnitudes. Adding 2^(e + 13) to |x| of exponent e lets the processor round it to 2^(e - 10), which is the
    last place of a float16 of that exponent (below its normal range e stays -14), and leaves as many of these as there
    are, 1024 to 2048 or less, at the low end of the sum. The exponent goes on top: a carry leads to the next one, or
    to infinity. (NumPy's own cast takes four times as long, and far more where results are below that range.)"""
    import numpy as np

    size = np.abs(wide)
    sum_ = size.view("<u4")
    if largest > 143 << 23:  # 2^16, which is infinite already
        np.minimum(sum_, 143 << 23, out=sum_)
    power = sum_ & 0x7F800000
    np.clip(power, 113 << 23, 143 << 23, out=power)  # -14, to which float32 adds 127
    # 2^(e + 13), plus the 2 << 10 last places that the float16 exponent lacks when it is cut out of this.
    power += (13 << 23) + (2 << 10)
    size += power.view("<f4")
    power >>= 13
    power += sum_
    return power
