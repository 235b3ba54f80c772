"""Bytes to numbers and back: widening is exact, rounding is torch's (to nearest, ties to even)."""

from __future__ import annotations

import threading
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
    """The numbers, exactly but for integers beyond 2^53; of a NaN of either kind a quiet one, and no warning."""
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

    What is returned may lie in memory of this thread that the next cast uses again, or be `data`: fresh memory costs
    more than rounding.

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
    return int(np.count_nonzero((bits & bits.dtype.type(mask)) == mask)) if _largest(bits) >= mask else 0


def trailing_zeros(view: bytes | memoryview, dtype: DType) -> int:
    """How many elements at the end are zero, of either sign: mostly none, which the last few show.

    >>> from converter.checkpoint.dtypes import F16
    >>> trailing_zeros(bytes.fromhex("003c 0000 0080"), F16)  # 1, 0 and -0
    2
    """
    import numpy as np

    bits = np.frombuffer(view, f"<u{dtype.itemsize}")
    magnitude = bits.dtype.type((1 << 8 * dtype.itemsize - dtype.floating) - 1)
    for last in (bits[-16:], bits):
        if len(nonzero := np.flatnonzero(last & magnitude)):
            return int(len(last) - 1 - nonzero[-1])
    return len(bits)


def _largest(bits: Any) -> int:
    """The largest magnitude of floats, as its bits: nothing to count in most arrays, and this needs no memory."""
    # As signed numbers, the positive ones are the largest, and as unsigned ones the negative.
    return int(max(bits.view(f"<i{bits.itemsize}").max(), bits.max().item() - (1 << 8 * bits.itemsize - 1)))


_MOST = 1 << 19  # elements that are rounded at once: the room for it is kept


_SCRATCH = threading.local()  # memory of one thread for the steps of a rounding


def _scratch(count: int) -> Any:
    """Three rows of so many words."""
    import numpy as np

    rows = getattr(_SCRATCH, "rows", None)
    if rows is None or rows.shape[1] < count:
        rows = _SCRATCH.rows = np.empty((3, count), "<u4")
    return rows[:, :count]


def _rounded(values: Any, dtype: DType) -> Any:
    """A float array in `dtype` (of two bytes: its bits), flat; valid until the next call in this thread."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):  # invalid: what a signalling NaN becomes is still a NaN
        if dtype.itemsize != 2:
            return np.ascontiguousarray(values, dtype.name).reshape(-1)
        flat = np.ascontiguousarray(values).reshape(-1)
        if 0 < len(flat) <= _MOST:
            return _halved(flat, dtype)
        halves = np.empty(len(flat), "<u2")
        for start in range(0, len(flat), _MOST):
            halves[start : start + _MOST] = _halved(flat[start : start + _MOST], dtype)
    return halves


def _halved(values: Any, dtype: DType) -> Any:
    """At least one and at most `_MOST` floats in a dtype of two bytes, as its bits, in this thread's scratch memory."""
    # From float64 torch goes by way of float32, and so rounds twice.
    wide = values.astype("<f4", copy=False)
    bits = wide.view("<u4")
    largest, infinity = _largest(bits), 0x7F800000
    halves = _bfloat16(bits) if dtype.code == "BF16" else _float16(wide, bits, largest)
    if largest > infinity:  # the sums may have carried a NaN out of them
        nan = (bits & 0x7FFFFFFF) > infinity
        quiet = (dtype.exponent & -dtype.exponent) >> 1  # the place below the exponent
        halves[nan] = (bits[nan] >> 16) & 0x8000 | dtype.exponent | quiet
    return halves


# Both without an operation on every other half word, and without a minimum or maximum with one number: NumPy takes four
# times as long for these as for others.


def _bfloat16(bits: Any) -> Any:
    """The upper halves, after adding half of their last place, less one where that place is even."""
    import numpy as np

    sum_, halves, _ = _scratch(len(bits))
    np.right_shift(bits, 16, out=sum_)
    np.bitwise_and(sum_, 1, out=sum_)
    np.add(sum_, 0x7FFF, out=sum_)
    np.add(sum_, bits, out=sum_)
    np.right_shift(sum_, 16, out=sum_)
    return _lower(sum_, halves)


def _float16(wide: Any, bits: Any, largest: int) -> Any:
    """Adding 2^(e + 13) to |x| of exponent e lets the processor round it to 2^(e - 10), which is the last place of a
    float16 of that exponent (below its normal range e stays -14), and leaves as many of these as there are, 1024 to
    2048 or less, at the low end of the sum. The exponent goes on top: a carry leads to the next one, or to infinity."""
    import numpy as np

    size, power, sum_ = _scratch(len(bits))
    np.abs(wide, out=size.view("<f4"))
    if largest > 143 << 23:  # 2^16, which is infinite already
        np.minimum(size, 143 << 23, out=size)
    np.bitwise_and(size, 0x7F800000, out=power)
    np.clip(power, 113 << 23, 143 << 23, out=power)  # -14, to which float32 adds 127
    # 2^(e + 13), and 2 << 10 last places: so much is lacking to the exponent of float16 when it is cut out of this.
    np.add(power, (13 << 23) + (2 << 10), out=power)
    np.add(size.view("<f4"), power.view("<f4"), out=sum_.view("<f4"))
    halves = _lower(sum_, size)
    np.right_shift(power, 13, out=power)
    np.add(halves, _lower(power, sum_), out=halves)
    np.right_shift(bits, 16, out=power)
    sign = _lower(power, sum_)
    np.bitwise_and(sign, 0x8000, out=sign)
    np.bitwise_or(halves, sign, out=halves)
    return halves


def _lower(words: Any, room: Any) -> Any:
    """The lower halves of words, in room for as many words."""
    import numpy as np

    halves = room.view("<u2")[: len(words)]
    np.copyto(halves, words, casting="unsafe")
    return halves
