"""Buffers that are recomputed: does that give what a file holds, bit for bit? And as tensors to be written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from .checkpoint import DType, LazyTensor
from .checkpoint.cast import round_to, widen
from .checkpoint.tensor import CHUNK, Storage, row_major


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


class ComputedStorage(Storage):
    """The bytes of a computed table, as if they lay in a file: made a run of rows at a time, never all in memory."""

    def __init__(self, name: str, table: Any, dtype: DType) -> None:
        self.name, self.size = name, prod(table.shape) * dtype.itemsize
        self._table, self._dtype = table, dtype

    @property
    def place(self) -> tuple[str, int]:
        return "", 0

    @property
    def crc(self) -> int | None:
        return None

    def copy_to(self, offset: int, count: int, fd: int, position: int) -> bool:
        return False

    def chunks(
        self, buffer: bytearray | None = None, span: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, memoryview]]:
        """(offset, bytes) of all rows, whatever the span: a consumer takes what is of it."""
        axis, (_, count, channels) = self._table.axis(), self._table.shape
        width = channels * self._dtype.itemsize
        step = max(CHUNK // width, 1)
        for row in range(0, count, step):
            rows = self._table.rows(row, min(row + step, count), axis)
            yield row * width, memoryview(round_to(rows, self._dtype))

    def read_into(self, into: memoryview, start: int) -> bool:
        return False  # nothing is at hand: it comes by `chunks`


def computed(key: str, table: Any, dtype: DType) -> LazyTensor:
    """A buffer to be written though no file holds it.

    Args:
        table: as for `compare`.
        dtype: what its float32 values are rounded to.
    """
    return LazyTensor(key, dtype, table.shape, ComputedStorage(key, table, dtype), row_major(table.shape))
