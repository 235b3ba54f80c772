"""Buffers that are recomputed: does that give what a file holds, bit for bit? And as tensors to be written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from ..checkpoint import DType, LazyTensor
from ..checkpoint.cast import float64, round_to
from ..checkpoint.tensor import CHUNK, Storage, row_major


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
                float64(part, tensor.dtype),
                values.reshape(-1)[skip // item : skip // item + len(part) // item],
            )
            with np.errstate(invalid="ignore"):
                apart = np.abs(stored - computed)
            difference = max(difference, float(apart.max()) if np.isfinite(apart).all() else float("inf"))
    return Comparison(equal, difference, digest.hexdigest())


class MadeStorage(Storage):
    """Bytes that are made when they are asked for, as if they lay in a file.

    Args:
        pieces: gives them from the first to the last, anew each time, in pieces of whole elements.
    """

    def __init__(self, name: str, size: int, pieces: Callable[[], Iterator[bytes]]) -> None:
        self.name, self.size, self._pieces = name, size, pieces

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
        """(offset, bytes) of everything, whatever the span: a consumer takes what is of it."""
        offset = 0
        for piece in self._pieces():
            yield offset, memoryview(piece)
            offset += len(piece)

    def read_into(self, into: memoryview, start: int) -> bool:
        return False  # nothing is at hand: it comes by `chunks`


def made(key: str, dtype: DType, shape: tuple[int, ...], pieces: Callable[[], Iterator[bytes]]) -> LazyTensor:
    """A tensor to be written though no file holds it: `pieces` give its elements in row-major order, little-endian."""
    return LazyTensor(key, dtype, shape, MadeStorage(key, prod(shape) * dtype.itemsize, pieces), row_major(shape))


def computed(key: str, table: Any, dtype: DType) -> LazyTensor:
    """A buffer that is computed a run of rows at a time, never all in memory.

    Args:
        table: as for `compare`.
        dtype: what its float32 values are rounded to.
    """

    def rows() -> Iterator[bytes]:
        axis, (_, count, channels) = table.axis(), table.shape
        step = max(CHUNK // (channels * dtype.itemsize), 1)
        for row in range(0, count, step):
            yield round_to(table.rows(row, min(row + step, count), axis), dtype)

    return made(key, dtype, table.shape, rows)
