"""Reading tensors to compare them: memory that is kept for the next one, and the equality of their bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..checkpoint.cast import round_to, widen
from ..checkpoint.dtypes import DType
from ..checkpoint.tensor import CHUNK

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class ReadBuffers(threading.local):
    """Memory of one thread to read tensors into, kept for the next: fresh memory costs more.

    `pair`: two buffers, to read two tensors a piece at a time.
    """

    def __init__(self) -> None:
        self.pair = bytearray(CHUNK), bytearray(CHUNK)
        self._whole = np.empty(0, np.uint8)

    def read(self, tensor: Any) -> Bytes:
        """The bytes of a tensor; the next call overwrites them."""
        if not hasattr(tensor, "read_into"):
            return np.frombuffer(tensor.read(), np.uint8)
        if len(self._whole) < tensor.nbytes:
            self._whole = np.empty(tensor.nbytes, np.uint8)
        data = self._whole[: tensor.nbytes]
        target: Any = data
        tensor.read_into(memoryview(target))
        return data


def equal(one: Bytes, other: Bytes) -> bool:
    """Equality of bytes, eight at a time where they are aligned for it."""
    if len(one) != len(other):
        return False
    kind = np.uint64 if len(one) % 8 == 0 and one.ctypes.data % 8 == other.ctypes.data % 8 == 0 else np.uint8
    return bool((one.view(kind) == other.view(kind)).all())


def equal_in_pieces(one: Iterator[Bytes], other: Iterator[Bytes]) -> bool:
    """Whether two runs of bytes are the same, a piece of each at a time: both are still in the processor's cache. Where
    they are, each was read to its end, and so its checksum was verified."""
    left, right = next(one, None), next(other, None)
    while left is not None and right is not None:
        count = min(len(left), len(right))
        if not equal(left[:count], right[:count]):
            return False
        left, right = left[count:], right[count:]
        left = left if len(left) else next(one, None)
        right = right if len(right) else next(other, None)
    return left is right is None


def pieces(tensors: Iterable[Any], buffer: bytearray) -> Iterator[Bytes]:
    """The bytes of tensors, one after the other; a piece is valid until the next."""
    for tensor in tensors:
        for _, piece in tensor.chunks(buffer) if hasattr(tensor, "chunks") else [(0, tensor.read())]:
            if len(piece):
                yield np.frombuffer(piece, np.uint8)


def as_dtype(data: Bytes | bytes, source: DType, target: DType) -> Bytes:
    """The bytes that elements of one dtype become in another, as torch rounds; in the same, the bytes themselves."""
    return np.frombuffer(data if source == target else round_to(widen(bytes(data), source), target), np.uint8)
