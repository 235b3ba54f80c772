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
    """The little-endian bytes of a float32 array in `dtype`.

    >>> import numpy as np
    >>> from converter.checkpoint.dtypes import BF16
    >>> round_to(np.array([1.0], np.float32), BF16).hex()
    '803f'
    """
    import numpy as np

    if dtype.code == "BF16":
        bits = np.ascontiguousarray(values, "<f4").view("<u4")
        # Half of the last kept place, less one where that place is even. Only finite values come here.
        return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())
    with np.errstate(over="ignore"):  # beyond the range of float16 is infinity, as in torch
        return bytes(values.astype(dtype.name, copy=False).tobytes())
