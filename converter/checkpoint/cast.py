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


def round_to(values: Any, dtype: DType) -> bytes:
    """The little-endian bytes of a float array in `dtype`, as torch's `.to(dtype)` gives them.

    What is beyond the range of the dtype becomes infinity, and NaN stays a NaN of its sign.

    >>> import numpy as np
    >>> from converter.checkpoint.dtypes import BF16
    >>> round_to(np.array([1.0], np.float32), BF16).hex()
    '803f'
    """
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):  # invalid: what a signalling NaN becomes is still a NaN
        if dtype.itemsize > 2:
            return bytes(values.astype(dtype.name, copy=False).tobytes())
        # torch goes by way of float32, and so rounds float64 twice.
        wide = np.ascontiguousarray(values, "<f4").reshape(-1)
    return bytes((_float16(wide) if dtype.code == "F16" else _bfloat16(wide)).tobytes())


# Both work on the bits of a float32: whole arrays of integers are several times faster than a conversion of elements.


def _bfloat16(values: Any) -> Any:
    """The upper halves, after adding half of their last place, less one where that place is even."""
    import numpy as np

    bits = values.view("<u4")
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    made = rounded.view("<u2")[1::2].copy()
    if (nan := np.isnan(values)).any():
        made[nan] = (bits[nan] >> 16).astype("<u2") | 0x0040  # the sum may have carried it out of the NaNs
    return made


def _float16(values: Any) -> Any:
    """The same with 13 bits less and another bias of the exponent, and what has no such exponent by itself."""
    import numpy as np

    bits = values.view("<u4")
    size = bits & 0x7FFFFFFF
    made = ((size >> 13) & 1) + size
    made += np.uint32((0xFFF - (112 << 23)) & 0xFFFFFFFF)  # half a place, and 127 - 15 less in the exponent
    made >>= 13
    if (small := size < 0x38800000).any():  # below 2**-14: added to 0.5, the last place is the one of a subnormal
        made[small] = (np.abs(values[small]) + np.float32(0.5)).view("<u4") - np.uint32(0x3F000000)
    if (large := size >= 0x477FF000).any():  # from 65520 on infinity, and NaN
        made[large] = np.where(size[large] > 0x7F800000, 0x7E00, 0x7C00)
    return (made | ((bits >> 16) & 0x8000)).astype("<u2")


def count_nonfinite(view: bytes | memoryview, dtype: DType) -> int:
    """How many elements are NaN or infinite."""
    mask = dtype.exponent
    if not mask:
        return 0
    import numpy as np

    # Where NumPy has the type, its test for all of them is twice as fast as counting.
    if dtype.itemsize >= 4 and np.isfinite(np.frombuffer(view, dtype.name)).all():
        return 0
    bits = np.frombuffer(view, f"<u{dtype.itemsize}")
    return int(np.count_nonzero((bits & bits.dtype.type(mask)) == mask))


def cast(data: bytes | memoryview, source: DType, target: DType) -> tuple[bytes, int]:
    """(the elements in another dtype, how many finite ones became infinite).

    >>> from converter.checkpoint.dtypes import F16, F32
    >>> cast(b"\\0\\0\\x80\\x3f\\0\\0\\x80\\x7e", F32, F16)[1]  # 1.0 and 2**126
    1
    """
    made = round_to(widen(data, source), target)
    infinite = count_nonfinite(made, target)
    return made, infinite - count_nonfinite(data, source) if infinite else 0
