"""Moving tensors, and proving that they arrived.

The system copies a storage that is one tensor (`copy_file_range`: no byte of it comes through this process); any
other is read front to back, once, and its bytes go to wherever they are wanted. What was written is then read back,
once, which proves both ends: the CRC-32 of what lies in the new file has to be the one that the archive gives for the
source. SHA-256 and the search for NaN and infinity happen in that same pass. One thread writes, since two on one file
only wait for each other, a second proves what is there already, and in the end both do: hashing and I/O release the
interpreter's lock. Memory is two buffers, plus one tensor where a view has to be laid out anew.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

from ..errors import ConverterError, printable
from .dtypes import DType
from .tensor import CHUNK, LazyTensor, Storage

Progress = Callable[[int], None]


@dataclass
class Output:
    """A tensor of a file being written: where it lies as a reader of that file sees it, and what was found there."""

    tensor: LazyTensor
    fd: int
    sha256: str = ""
    nonfinite: int = 0


class Delivery:
    """One source tensor and the outputs that its row-major bytes fill, one after the other.

    `crc` is that of these bytes, and known once they are on their way: what has to be read back.
    """

    def __init__(self, tensor: LazyTensor, outputs: list[Output]) -> None:
        assert sum(output.tensor.nbytes for output in outputs) == tensor.nbytes, tensor.key
        self.tensor, self.outputs, self.crc = tensor, outputs, 0
        self._start, self._stop = tensor.span
        self._done = 0
        # A view that is not one run of bytes is collected, once its bytes arrive, and laid out anew.
        self._collected = bytearray()

    def copied(self) -> bool:
        """Let the system copy the bytes; False where it cannot, or where the storage is not exactly this tensor."""
        tensor, storage = self.tensor, self.tensor.storage
        if storage.crc is None or not tensor.contiguous or tensor.nbytes != storage.size:
            return False
        done = 0
        for output in self.outputs:
            if not storage.copy_to(done, output.tensor.nbytes, output.fd, output.tensor.storage.start):
                return False
            done += output.tensor.nbytes
        self.crc = storage.crc
        return True

    def feed(self, offset: int, part: memoryview) -> None:
        """Bytes of the storage from `offset`; those that are not of this tensor are ignored."""
        low, high = max(self._start, offset), min(self._stop, offset + len(part))
        if low >= high:
            return
        wanted = part[low - offset : high - offset]
        if self.tensor.contiguous:
            self._write(wanted)
        else:
            self._collected = self._collected or bytearray(self._stop - self._start)
            self._collected[low - self._start : high - self._start] = wanted

    def finish(self) -> None:
        if self._collected:
            data, self._collected = self.tensor.lay_out(self._collected), bytearray()
            self._write(memoryview(data))
        assert self._done == self.tensor.nbytes, f"{self.tensor.key}: {self._done} of {self.tensor.nbytes} bytes"

    def _write(self, view: memoryview) -> None:
        """The next bytes of the tensor, to the outputs that they belong to."""
        self.crc = zlib.crc32(view, self.crc)
        start = 0
        for output in self.outputs:
            low, high = max(start, self._done), min(start + output.tensor.nbytes, self._done + len(view))
            if low < high:
                part = view[low - self._done : high - self._done]
                write_at(output.fd, part, output.tensor.storage.start + low - start)
            start += output.tensor.nbytes
        self._done += len(view)

    def prove(self, buffer: bytearray, stop: threading.Event, progress: Progress) -> None:
        """Read back what was written: its CRC has to be that of the source."""
        crc = 0
        for output in self.outputs:
            digest = hashlib.sha256()
            for _, part in output.tensor.storage.chunks(buffer):
                if stop.is_set():
                    return
                crc = zlib.crc32(part, crc)
                digest.update(part)
                output.nonfinite += count_nonfinite(part, output.tensor.dtype)
                progress(len(part))
            output.sha256 = digest.hexdigest()
        if crc != self.crc:
            for _ in self.tensor.storage.chunks(buffer):
                pass  # raises where it is the source that is damaged
            where = self.outputs[0].tensor.storage.file.path
            raise ConverterError(
                f"{printable(where)}: {printable(self.outputs[0].tensor.key)}: what was read back is not what was "
                "written (a faulty disk, or another program?)"
            )


def count_nonfinite(view: memoryview, dtype: DType) -> int:
    """How many elements are NaN or infinite."""
    mask = dtype.exponent
    if not mask:
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


def in_threads(*works: Callable[[threading.Event], None]) -> None:
    """Run each `work(stop)` in a thread. The first failure, or an interrupt, stops all before it is raised."""
    stop = threading.Event()

    def guarded(work: Callable[[threading.Event], None]) -> None:
        try:
            work(stop)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(len(works)) as pool:
        try:
            for future in [pool.submit(guarded, work) for work in works]:
                future.result()
        finally:
            stop.set()


def transfer(
    deliveries: Iterable[Delivery],
    progress: Progress = lambda count: None,
    written: Callable[[], None] = lambda: None,
) -> None:
    """Carry out all deliveries and prove them.

    `progress` is told of every run of bytes that was proven; `written` is called once, when all are written and many
    are still to be proven: the moment to put the disk to work.

    Raises: `InputError` where a storage cannot be read whole or its CRC is wrong; `ConverterError` where reading back
    gives something else than was written; `OSError` where writing fails.
    """
    by_storage: dict[int, tuple[Storage, list[Delivery]]] = {}
    for delivery in deliveries:
        storage = delivery.tensor.storage
        by_storage.setdefault(id(storage), (storage, []))[1].append(delivery)
    # In the order of the file, so that a disk reads forward.
    jobs = sorted(by_storage.values(), key=lambda job: (job[0].file.path, job[0].start))
    ready: SimpleQueue[Delivery | None] = SimpleQueue()  # None: there will be no more

    def write(stop: threading.Event) -> None:
        buffer = bytearray(CHUNK)
        try:
            for storage, wanting in jobs:
                if stop.is_set():
                    return
                if not (len(wanting) == 1 and wanting[0].copied()):
                    _read_and_write(storage, wanting, buffer, stop)
                for delivery in wanting:
                    ready.put(delivery)
            written()
        finally:
            ready.put(None)
            ready.put(None)

    def prove(stop: threading.Event) -> None:
        buffer = bytearray(CHUNK)
        while (delivery := ready.get()) and not stop.is_set():
            delivery.prove(buffer, stop, progress)

    def write_then_prove(stop: threading.Event) -> None:
        write(stop)
        prove(stop)

    in_threads(write_then_prove, prove)


def _read_and_write(storage: Storage, wanting: list[Delivery], buffer: bytearray, stop: threading.Event) -> None:
    """One pass over a storage for all tensors in it; of views to be laid out anew, only one at a time is in memory."""
    anew = [delivery for delivery in wanting if not delivery.tensor.contiguous]
    first = [delivery for delivery in wanting if delivery.tensor.contiguous] + anew[:1]
    for group, span in [(first, None), *(([delivery], delivery.tensor.span) for delivery in anew[1:])]:
        for offset, part in storage.chunks(buffer, span):
            if stop.is_set():
                return
            for delivery in group:
                delivery.feed(offset, part)
        for delivery in group:
            delivery.finish()
