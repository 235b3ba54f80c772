"""Where each tensor of a new file will lie, whatever its format: decided before a byte of a tensor is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from ..dtypes import DType


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor to be written: its key, dtype and shape."""

    key: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileLayout:
    """A file before its data.

    `frame(crcs)` gives all of it that is no tensor, as (offset, bytes): the same offsets and lengths whatever the
    CRC-32 of the tensors' bytes (by key; what is not known yet counts as 0); `size` is that of the whole file.
    """

    entries: tuple[TensorEntry, ...]
    size: int
    frame: Callable[[Mapping[str, int]], list[tuple[int, bytes]]]


LayOut = Callable[[Iterable[TensorEntry]], FileLayout]
