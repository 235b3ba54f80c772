"""Recomputed buffers: compared with what a file holds, bit for bit, and given as tensors to be written.

A family gives a buffer as an array, of NumPy or torch and of any rank, or, where that would be too large to hold, as a
table: an object with a `shape`, `axis()`, and `rows(start, stop, axis)`, which gives so many rows of its last axis as
floats (`families.sincos.SinCosTable`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from ..checkpoint import DType, LazyTensor
from ..checkpoint.cast import float64, round_to
from ..checkpoint.digest import Digest
from ..checkpoint.dtypes import BY_NAME, F32
from ..checkpoint.tensor import CHUNK, Storage, row_major
from ..errors import UsageError, printable
from ..mapping.rows import Computed

if TYPE_CHECKING:
    from ..families.base import Family, Findings
    from ..mapping.rows import Row


Pieces = Callable[[], Iterator[bytes | memoryview]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`equal`: bit for bit, after rounding to the stored dtype; `difference`: the largest, infinity where the shapes
    differ or an element is not finite; `digest` of the stored elements."""

    equal: bool
    difference: float
    digest: str


@dataclass(frozen=True, slots=True)
class ArrayTable:
    """An array as a table: its rows are those of the last axis."""

    array: Any  # NumPy floats
    dtype: DType

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def axis(self) -> Any:
        """The array in rows."""
        return self.array.reshape(-1, self.shape[-1] if self.shape else 1)

    def rows(self, start: int, stop: int, axis: Any) -> Any:
        return axis[start:stop]


def table_of(family: Family, row: Row, findings: Findings) -> Any:
    """The table of a `Computed` row.

    Raises: `UsageError` where the family's function gives neither a table nor an array of floats.
    """
    import numpy as np

    assert isinstance(row.value, Computed)
    with family.own_code(f"the row {row.source!r}"):
        given = row.value.function(findings)
    if hasattr(given, "rows"):
        return given
    kind = getattr(given, "dtype", "")
    kind = str(getattr(kind, "name", kind)).rpartition(".")[2]
    if kind not in ("float64", "float32", "float16", "bfloat16"):
        what = printable(f"an array of {kind}" if kind else f"a {type(given).__name__}")
        raise UsageError(
            f"the row {row.source!r} of the family {printable(family.name)} computes {what}: "
            "give a NumPy or torch array of floats, or a table"
        )
    array = given.detach().cpu() if hasattr(given, "detach") else given
    array = array.float() if kind == "bfloat16" else array  # which NumPy lacks
    array = np.asarray(array)
    return ArrayTable(array.astype(array.dtype.newbyteorder("="), copy=False), BY_NAME[kind])


def recomputed(
    family: Family, row: Row, tensor: LazyTensor, findings: Findings, seen: Findings | None = None
) -> tuple[Comparison, bool, str]:
    """Compare a stored buffer with what the target computes in its place.

    Args:
        seen: the findings that may excuse a difference, where they are others.

    Returns: (the comparison; whether the model is the same without the stored buffer; how the stored one
        differs, in words). Raises: `UsageError` if a flag must say.
    """
    table = table_of(family, row, findings)
    compared = compare(tensor, table)
    if compared.equal:
        return compared, True, ""
    if isinstance(table, ArrayTable) and table.shape != tuple(tensor.shape):
        words = f"has shape {list(tensor.shape)}, and the row {row.source!r} of the family {family.name} computes"
        return compared, False, f"{words} {list(table.shape)}"
    return compared, *family.buffer_mismatch(seen or findings, compared.difference)


def compare(tensor: LazyTensor, table: Any) -> Comparison:
    """Compare a stored buffer with a computed table, a run of rows at a time; its CRC is verified on the way."""
    import numpy as np

    digest, difference, equal = Digest(), 0.0, tuple(tensor.shape) == table.shape
    if not equal:
        difference = float("inf")
    axis = table.axis() if equal else None
    width = (table.shape[-1] if table.shape else 1) * tensor.dtype.itemsize
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
    return Comparison(equal, difference, digest.text)


class ComputedStorage(Storage):
    """Bytes that are made when they are asked for, as if they lay in a file.

    Args:
        pieces: gives them from the first to the last, anew each time, in pieces of whole elements.
    """

    def __init__(self, name: str, size: int, pieces: Pieces) -> None:
        self.name, self.size, self.crc, self._pieces = name, size, None, pieces

    @property
    def place(self) -> tuple[str, int]:
        return "", 0

    def copy_to(self, offset: int, count: int, fd: int, position: int) -> bool:
        return False

    def chunks(
        self, buffer: bytearray | memoryview | None = None, span: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, memoryview]]:
        """(offset, bytes) of everything, whatever the span: the consumer picks its part."""
        offset = 0
        for piece in self._pieces():
            yield offset, memoryview(piece)
            offset += len(piece)

    def reads_only(self, span: tuple[int, int]) -> bool:
        return False


def computed_on_demand(key: str, dtype: DType, shape: tuple[int, ...], pieces: Pieces) -> LazyTensor:
    """A tensor to be written though no file holds it: `pieces` give its elements in row-major order, little-endian."""
    storage = ComputedStorage(key, prod(shape) * dtype.itemsize, pieces)
    return LazyTensor(key, dtype, shape, storage, strides=row_major(shape))


def joined(tensors: list[LazyTensor]) -> LazyTensor:
    """Tensors put together on axis 0, unread."""
    first = tensors[0]
    shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
    return computed_on_demand(
        first.key, first.dtype, shape, lambda: (piece for each in tensors for _, piece in each.chunks())
    )


def computed(key: str, table: Any, dtype: DType | None = None) -> LazyTensor:
    """A buffer that is computed a run of rows at a time, never all in memory.

    Args:
        table: as for `compare`.
        dtype: what its values are rounded to; default: the array's own, of any other table float32.
    """
    to: Any = dtype or getattr(table, "dtype", F32)
    *outer, channels = table.shape or (1,)

    def rows() -> Iterator[bytes]:
        axis, count = table.axis(), prod(outer)
        step = max(CHUNK // (max(channels, 1) * to.itemsize), 1)
        for row in range(0, count, step):
            yield round_to(table.rows(row, min(row + step, count), axis), to)

    return computed_on_demand(key, to, table.shape, rows)
