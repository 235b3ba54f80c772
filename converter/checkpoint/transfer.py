"""Moving tensors: every storage is read once, front to back, and its bytes go to wherever they are wanted.

One pass does everything that needs the bytes: the CRC of the storage, the SHA-256 and CRC of what is written, the
search for NaN and infinity. Two threads take storages in turn (hashing and I/O release the interpreter's lock), so
memory is two buffers, plus one tensor where a view has to be laid out anew. What was written is read back and its
CRC compared: against a faulty disk or program that is proof enough, at a third of the cost of a second SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
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
    """A run of bytes of a file being written; bytes arrive in order. Knows its digests and its non-finite elements."""

    key: str
    dtype: DType
    nbytes: int
    fd: int
    start: int
    nonfinite: int = 0
    crc: int = 0
    _written: int = 0
    _hash: Any = field(default_factory=hashlib.sha256, repr=False)

    def write(self, view: memoryview, *, with_crc: bool = True) -> None:
        self._hash.update(view)
        if with_crc:
            self.crc = zlib.crc32(view, self.crc)
        self.nonfinite += count_nonfinite(view, self.dtype)
        write_at(self.fd, view, self.start + self._written)
        self._written += len(view)

    def start_flushing(self) -> None:
        """Let the disk begin now: this advice makes Linux write dirty pages out, so that fsync finds little to do."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, self.start, self.nbytes, os.POSIX_FADV_DONTNEED)

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
        # Where the output is the whole storage, the storage's own CRC is verified and need not be computed twice.
        self._whole = (
            len(outputs) == 1
            and tensor.contiguous
            and tensor.nbytes == tensor.storage.size
            and tensor.storage.crc is not None
        )
        # A view that is not one run of bytes is collected, once its bytes arrive, and laid out anew.
        self._collected = bytearray()

    def feed(self, offset: int, part: memoryview) -> None:
        """Bytes of the storage from `offset`; those that are not of this tensor are ignored."""
        low, high = max(self._start, offset), min(self._stop, offset + len(part))
        if low >= high:
            return
        wanted = part[low - offset : high - offset]
        if self.tensor.contiguous:
            self._distribute(wanted)
        else:
            self._collected = self._collected or bytearray(self._stop - self._start)
            self._collected[low - self._start : high - self._start] = wanted

    def finish(self) -> None:
        if self._collected:
            data, self._collected = self.tensor.lay_out(self._collected), bytearray()
            self._distribute(memoryview(data))
        if self._whole:
            self.outputs[0].crc = self.tensor.storage.crc or 0
        for output in self.outputs:
            output.start_flushing()

    def _distribute(self, view: memoryview) -> None:
        while len(view):
            output = self.outputs[self._next]
            room = output.nbytes - output._written
            if room:
                output.write(view[:room], with_crc=not self._whole)
                view = view[room:]
            else:
                self._next += 1


def count_nonfinite(view: memoryview, dtype: DType) -> int:
    """How many elements are NaN or infinite."""
    mask = _EXPONENT.get(dtype.code)
    if mask is None:
        return 0
    import numpy as np

    # Where NumPy has the type, its test for all of them is twice as fast as counting.
    if dtype.itemsize >= 4 and np.isfinite(np.frombuffer(view, dtype.name)).all():
        return 0
    bits = np.frombuffer(view, f"<u{dtype.itemsize}")
    return int(np.count_nonzero((bits & bits.dtype.type(mask)) == mask))


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """All of `data` at `offset`."""
    view = memoryview(data)
    while len(view):
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def in_threads(jobs: Iterable[Any], work: Callable[[Any, threading.Event], None]) -> None:
    """Run `work(job, stop)` for every job on the workers. A failure or an interrupt stops all, then is raised."""
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
        # One pass for all, but for views to be laid out anew: only one of them is in memory at a time.
        anew = [delivery for delivery in wanting if not delivery.tensor.contiguous]
        first = [delivery for delivery in wanting if delivery.tensor.contiguous] + anew[:1]
        for group, span in [(first, None), *(([delivery], delivery.tensor.span) for delivery in anew[1:])]:
            for offset, part in storage.chunks(buffers.buffer, span):
                if stop.is_set():
                    return
                for delivery in group:
                    delivery.feed(offset, part)
                progress(len(part))
            for delivery in group:
                delivery.finish()

    # In the order of the file, so that a disk reads forward.
    in_threads(sorted(by_storage.values(), key=lambda job: (job[0].file.path, job[0].start)), carry)


def verify(tensors: dict[str, LazyTensor], crcs: dict[str, int], progress: Progress = lambda count: None) -> list[str]:
    """Read tensors back; the keys whose bytes do not have the given CRC-32."""
    wrong: list[str] = []

    def check(tensor: LazyTensor, stop: threading.Event) -> None:
        crc = 0
        for _, part in tensor.chunks():
            if stop.is_set():
                return
            crc = zlib.crc32(part, crc)
            progress(len(part))
        if crc != crcs[tensor.key]:
            wrong.append(tensor.key)

    in_threads(sorted(tensors.values(), key=lambda tensor: tensor.storage.start), check)
    return sorted(wrong)
