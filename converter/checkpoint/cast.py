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
        if dtype.itemsize == 2 and values.dtype == np.float64:
            values = values.astype(np.float32)  # torch goes by way of float32, and so rounds twice
        if dtype.code != "BF16":
            return bytes(values.astype(dtype.name, copy=False).tobytes())
        wide = np.ascontiguousarray(values, "<f4").reshape(-1)
    bits = wide.view("<u4")
    # The upper halves, after adding half of their last place, less one where that place is even.
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    made = rounded.view("<u2")[1::2].copy()
    if (nan := np.isnan(wide)).any():
        made[nan] = (bits[nan] >> 16).astype("<u2") | 0x0040  # the sum may have carried it out of the NaNs
    return bytes(made.tobytes())


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
