"""Does recomputing a buffer give what the file holds, bit for bit?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from .checkpoint import LazyTensor
from .checkpoint.cast import round_to, widen


@dataclass(frozen=True, slots=True)
class Comparison:
    """`equal`: bit for bit, after rounding to the stored dtype; `difference`: the largest, infinity where the shapes
    differ or an element is not finite; `sha256` of the stored elements."""

    equal: bool
    difference: float
    sha256: str


def compare(tensor: LazyTensor, table: Any) -> Comparison:
    """Compare a stored buffer with a computed table, a run of rows at a time; its CRC is verified on the way.

    `table` has a `shape` (1, tokens, channels), `axis()`, and `rows(start, stop, axis)` giving float32.
    """
    import numpy as np

    digest, difference, equal = hashlib.sha256(), 0.0, tensor.shape == table.shape
    if not equal:
        difference = float("inf")
    axis = table.axis() if equal else None
    width = table.shape[-1] * tensor.dtype.itemsize
    for offset, part in tensor.chunks():
        digest.update(part)
        if axis is None:
            continue
        first, last = offset // width, -(-(offset + len(part)) // width)
        values = table.rows(first, last, axis)
        skip = offset - first * width
        wanted = round_to(values, tensor.dtype)[skip : skip + len(part)]
        if wanted != bytes(part):  # a memoryview would be compared element by element
            equal = False
            item = tensor.dtype.itemsize
            stored, computed = (
                widen(part, tensor.dtype),
                values.reshape(-1)[skip // item : skip // item + len(part) // item],
            )
            with np.errstate(invalid="ignore"):
                apart = np.abs(stored.astype(np.float64) - computed)
            difference = max(difference, float(apart.max()) if np.isfinite(apart).all() else float("inf"))
    return Comparison(equal, difference, digest.hexdigest())
