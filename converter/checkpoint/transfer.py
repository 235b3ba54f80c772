"""Moving tensors: every storage is read once, front to back, and its bytes go to wherever they are wanted.

One pass does everything that needs the bytes: the CRC of the storage, the SHA-256 of what is written, the search
for NaN and infinity. Two threads take storages in turn (hashing and I/O release the interpreter's lock), so memory is two
buffers, plus one tensor where a view has to be laid out anew.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .dtypes import DType
from .tensor import CHUNK, LazyTensor, Storage

WORKERS = 2
# The exponent bits: all ones in NaN and infinity.
_EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0000000000000}

Progress = Callable[[int], None]


@dataclass
class Output:
    """A run of bytes of a file being written; bytes arrive in order. Knows its digest and its non-finite elements."""

    key: str
    dtype: DType
    nbytes: int
    fd: int
    start: int
    nonfinite: int = 0
    _written: int = 0
    _hash: Any = field(default_factory=hashlib.sha256, repr=False)

    def write(self, view: memoryview) -> None:
        self._hash.update(view)
        self.nonfinite += count_nonfinite(view, self.dtype)
        write_at(self.fd, view, self.start + self._written)
        self._written += len(view)

    @property
    def sha256(self) -> str:
        assert self._written == self.nbytes, f"{self.key}: {self._written} of {self.nbytes} bytes written"
        return str(self._hash.hexdigest())


class Delivery:
    """One source tensor and the outputs that its row-major bytes fill, one after the other."""

    def __init__(self, tensor: LazyTensor, outputs: list[Output]) -> None:
        assert sum(output.nbytes for output in outputs) == tensor.nbytes, tensor.key
        self.tensor, self.outputs = tensor, outputs
        self._start, self._stop = tensor.span
        self._next = 0
        # Parts have digests of their own; what they were one tensor of needs another.
        self._hash = hashlib.sha256() if len(outputs) > 1 else None
        # A view that is not one run of bytes is collected and laid out anew.
        self._collected = None if tensor.contiguous else bytearray(self._stop - self._start)

    def feed(self, offset: int, part: memoryview) -> None:
        """Bytes of the storage from `offset`; those that are not of this tensor are ignored."""
        low, high = max(self._start, offset), min(self._stop, offset + len(part))
        if low >= high:
            return
        wanted = part[low - offset : high - offset]
        if self._collected is None:
            self._distribute(wanted)
        else:
            self._collected[low - self._start : high - self._start] = wanted

    def finish(self) -> None:
        if self._collected is not None:
            data, self._collected = self.tensor.lay_out(self._collected), None
            self._distribute(memoryview(data))

    @property
    def sha256(self) -> str:
        """Of the tensor's elements in row-major order."""
        return str(self._hash.hexdigest()) if self._hash else self.outputs[0].sha256

    def _distribute(self, view: memoryview) -> None:
        if self._hash:
            self._hash.update(view)
        while len(view):
            output = self.outputs[self._next]
            room = output.nbytes - output._written
            if room:
                output.write(view[:room])
                view = view[room:]
            else:
                self._next += 1


def count_nonfinite(view: memoryview, dtype: DType) -> int:
    """How many elements are NaN or infinite."""
    mask = _EXPONENT.get(dtype.code)
    if mask is None:
        return 0
    import numpy as np

    bits = np.frombuffer(view, f"<u{dtype.itemsize}")
    return int(np.count_nonzero((bits & bits.dtype.type(mask)) == mask))


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """All of `data` at `offset`."""
    view = memoryview(data)
    while len(view):
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def in_threads(jobs: Iterable[Any], work: Callable[[Any, threading.Event], None]) -> None:
    """Run `work(job, stop)` for every job on the workers. The first failure, or an interrupt, stops all before it is raised."""
    stop, pending = threading.Event(), iter(list(jobs))
    lock = threading.Lock()

    def worker() -> None:
        try:
            while not stop.is_set():
                with lock:
                    job = next(pending, None)
                if job is None:
                    return
                work(job, stop)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(worker) for _ in range(WORKERS)]
        try:
            for future in futures:
                future.result()
        finally:
            stop.set()


def transfer(deliveries: Iterable[Delivery], progress: Progress = lambda count: None) -> None:
    """Carry out all deliveries. `progress` is told of every run of bytes that was read.

    Raises: `InputError` where a storage cannot be read whole or its CRC is wrong; `OSError` where writing fails.
    """
    by_storage: dict[int, tuple[Storage, list[Delivery]]] = {}
    for delivery in deliveries:
        storage = delivery.tensor.storage
        by_storage.setdefault(id(storage), (storage, []))[1].append(delivery)
    buffers = threading.local()

    def carry(job: tuple[Storage, list[Delivery]], stop: threading.Event) -> None:
        storage, wanting = job
        if not hasattr(buffers, "buffer"):
            buffers.buffer = bytearray(CHUNK)
        for offset, part in storage.chunks(buffers.buffer):
            if stop.is_set():
                return
            for delivery in wanting:
                delivery.feed(offset, part)
            progress(len(part))
        for delivery in wanting:
            delivery.finish()

    # In the order of the file, so that a disk reads forward.
    in_threads(sorted(by_storage.values(), key=lambda job: (job[0].file.path, job[0].start)), carry)


def verify(tensors: dict[str, LazyTensor], digests: dict[str, str], progress: Progress = lambda count: None) -> list[str]:
    """Re-read tensors; the keys whose bytes do not have the given SHA-256."""
    wrong: list[str] = []

    def check(tensor: LazyTensor, stop: threading.Event) -> None:
        digest = hashlib.sha256()
        for _, part in tensor.chunks():
            if stop.is_set():
                return
            digest.update(part)
            progress(len(part))
        if digest.hexdigest() != digests[tensor.key]:
            wrong.append(tensor.key)

    in_threads(sorted(tensors.values(), key=lambda tensor: tensor.storage.start), check)
    return sorted(wrong)
