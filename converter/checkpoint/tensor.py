"""Lazy tensors: what a checkpoint says of its tensors, as extents of bytes that are read when asked for."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import nan, prod
from typing import Any

from zlib_ng.zlib_ng import crc32

from ..errors import ConverterError
from .cast import widen
from .dtypes import DType
from .file import InputFile

CHUNK = 1 << 20


class Storage:
    """A run of bytes in a file: a member of a torch archive (as a rule with its CRC), or a tensor of a safetensors.

    Args:
        start: the offset in the file, or what finds it when it is first needed.
        crc: the CRC-32 that the file states; None where it carries no checksums.
    """

    def __init__(
        self, file: InputFile, name: str, size: int, *, start: int | Callable[[], int] = 0, crc: int | None = None
    ) -> None:
        self.file, self.name, self.size = file, name, size
        self._start, self.crc = start, crc
        self._proven = crc is None  # there is nothing to prove it by

    @cached_property
    def start(self) -> int:
        """Offset in the file; for a member of an archive, only once its headers are known to agree."""
        return self._start() if callable(self._start) else self._start

    def locate(self) -> None:
        """Find it now, and whether its headers agree."""
        _ = self.start

    @property
    def place(self) -> tuple[str, int]:
        """The order to read storages in, so that a disk reads forward."""
        return self.file.path, self.start

    def copy_to(self, offset: int, count: int, fd: int, position: int) -> bool:
        """Copy `count` bytes from `offset` to `position` of another file; False where they lie in none."""
        self.file.copy_to(self.start + offset, count, fd, position, what=self.name)
        return True

    def reads_only(self, span: tuple[int, int]) -> bool:
        """Whether `chunks` of this span, which may read more to verify the CRC-32, are just its bytes."""
        return self._proven or span == (0, self.size)

    def chunks(
        self, buffer: bytearray | memoryview | None = None, span: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, memoryview]]:
        """(offset, bytes) in order, each byte read once; a pass over the whole verifies the CRC-32, if any, at its end.

        Once that is verified, only the bytes of `span` are read where it is given: many small views of one storage
        take time for what they show, not for the storage over and over.
        In a buffer that takes all of them, each has its own place; else they share it, and each is valid until the next
        is taken. A consumer that stops early has no proof of what it read.
        """
        start, stop = span if span and self._proven else (0, self.size)
        view = memoryview(buffer if buffer is not None else bytearray(min(CHUNK, stop - start)))
        whole, step = len(view) >= stop - start, min(CHUNK, len(view)) or 1
        crc, verify = 0, self.crc is not None and (start, stop) == (0, self.size)
        for offset in range(start, stop, step):
            at = offset - start if whole else 0
            part = view[at : at + min(step, stop - offset)]
            self.file.read_into(part, self.start + offset, self.name)
            if verify:
                crc = crc32(part, crc)
            yield offset, part
        if verify and crc != self.crc:
            raise self.file.error(self.name, "CRC-32 mismatch: the file is damaged")
        self._proven |= verify


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor of a checkpoint: dtype, shape and where its bytes lie. Strides and offset count elements.

    `read()` gives its elements in row-major order as bytes, `numpy()` and `torch()` as arrays;
    the first that reads of a storage reads it whole and verifies its CRC, where it has one. A slice of axis 0 is
    another lazy tensor.
    """

    key: str
    dtype: DType
    shape: tuple[int, ...]
    storage: Storage = field(repr=False)
    strides: tuple[int, ...] = field(repr=False)
    offset: int = field(repr=False, default=0)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Row-major without gaps, so that the tensor is one run of bytes."""
        return self.numel == 0 or all(
            size == 1 or stride == expected
            for size, stride, expected in zip(self.shape, self.strides, row_major(self.shape), strict=True)
        )

    @property
    def span(self) -> tuple[int, int]:
        """The bytes of the storage from the first element to the last: (start, stop)."""
        start = self.offset * self.dtype.itemsize
        if self.numel == 0:
            return start, start
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return start, (last + 1) * self.dtype.itemsize

    def __getitem__(self, rows: slice) -> LazyTensor:
        """A run of rows along axis 0, unread: `tensor[2:5]`."""
        if not isinstance(rows, slice) or not self.shape:
            raise TypeError(f"{self.key} {list(self.shape)}: a lazy tensor takes a slice of its axis 0; see numpy()")
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError("a lazy tensor is sliced in steps of 1")
        size = max(0, stop - start)
        # An empty run stays where it is, so that it never points past the storage.
        offset = self.offset + start * self.strides[0] * (size > 0)
        return replace(self, shape=(size, *self.shape[1:]), offset=offset)

    def peek(self, *positions: int) -> tuple[float, ...]:
        """Single elements by their row-major position, read in place without the CRC's proof.

        NaN for a position outside the tensor, and in a tensor that holds no floats.
        """
        return tuple(map(self._element, positions))

    def _element(self, position: int) -> float:
        if not self.dtype.floating or not 0 <= position < self.numel:
            return nan
        place = self.offset
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            position, along = divmod(position, size)
            place += along * stride
        storage, item = self.storage, self.dtype.itemsize
        data = storage.file.read(storage.start + place * item, item, self.key)
        (value,) = struct.unpack(self.dtype.form, data.rjust(struct.calcsize(self.dtype.form), b"\0"))
        return float(value)

    def chunks(self, buffer: bytearray | None = None) -> Iterator[tuple[int, memoryview]]:
        """(offset in the tensor, bytes) of a contiguous tensor, in order; any other comes whole.

        Args:
            buffer: to read into, for who reads many tensors; each view is valid until the next is taken.
        """
        if self.contiguous:
            yield from self._span_chunks(buffer)
        else:
            data = memoryview(bytearray(self.nbytes))
            self.read_into(data)
            yield 0, data

    def _span_chunks(self, buffer: bytearray | memoryview | None = None) -> Iterator[tuple[int, memoryview]]:
        start, stop = self.span
        for offset, part in self.storage.chunks(buffer, (start, stop)):
            if wanted := part[max(0, start - offset) : max(0, stop - offset)]:
                yield max(0, offset - start), wanted

    def read(self) -> bytes:
        """All elements in row-major order, little-endian."""
        data = bytearray(self.nbytes)
        self.read_into(memoryview(data))
        return bytes(data)

    def read_into(self, into: memoryview) -> None:
        """All elements in row-major order, into `nbytes` bytes that are there already."""
        start, stop = self.span
        data = into if self.contiguous else memoryview(bytearray(stop - start))
        in_place = self.storage.reads_only((start, stop))
        for offset, part in self._span_chunks(data if in_place else None) if self.numel else ():
            if not in_place:
                data[offset : offset + len(part)] = part
        if not self.contiguous:
            import numpy as np

            item = self.dtype.itemsize
            flat, laid_out = np.frombuffer(data, f"<u{item}"), np.frombuffer(into, f"<u{item}")
            strides = [stride * item for stride in self.strides]
            view = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
            laid_out.reshape(self.shape)[...] = view

    def numpy(self) -> Any:
        """The tensor as a NumPy array (bfloat16, which NumPy lacks, is widened to float32 exactly)."""
        return widen(self.read(), self.dtype).reshape(self.shape)

    def torch(self, out: Any = None) -> Any:
        """The tensor as a torch tensor of its own dtype, in `out` (contiguous, of that shape) where that is given."""
        import torch

        tensor = torch.empty(self.shape, dtype=getattr(torch, self.dtype.name)) if out is None else out
        array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        self.read_into(memoryview(array))
        return tensor


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor, in elements: (2, 3, 4) gives (12, 4, 1). An axis of 0 counts as 1, as in
    torch."""
    return tuple(prod(size or 1 for size in shape[axis + 1 :]) for axis in range(len(shape)))


def checked(tensor: LazyTensor) -> LazyTensor:
    """The same tensor, once its view is known to lie inside its storage and to expand nothing."""

    def fail(rule: str) -> ConverterError:
        return tensor.storage.file.error(tensor.key, rule)

    if len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > 8:
        raise fail(f"{len(tensor.shape)} sizes and {len(tensor.strides)} strides")
    numbers = (*tensor.shape, *tensor.strides, tensor.offset)
    # The sizes other than 0 too must make a sound product: NumPy and torch compute it even for an empty tensor.
    if min(numbers) < 0 or max(numbers) >= 1 << 48 or prod(size or 1 for size in tensor.shape) >= 1 << 48:
        raise fail("a size, stride or offset that is negative or too large")
    axes = list(zip(tensor.shape, tensor.strides, strict=True))
    if tensor.numel and any(stride == 0 and size > 1 for size, stride in axes):
        raise fail("a stride of 0 repeats elements (an expanded view): re-save it with .contiguous()")
    if tensor.numel and tensor.span[1] > tensor.storage.size:
        raise fail(f"its view ends at byte {tensor.span[1]} of a storage of {tensor.storage.size} bytes")
    if not tensor.contiguous:
        reach = 1
        for stride, size in sorted((stride, size) for size, stride in axes if size > 1):
            if stride < reach:
                raise fail("its view overlaps itself: re-save it with .contiguous()")
            reach = stride * (size - 1) + reach
        if tensor.span[1] - tensor.span[0] > max(4 * tensor.nbytes, 64 << 20):
            raise fail("a sparse view of a much larger storage: re-save it with .clone()")
    return tensor
