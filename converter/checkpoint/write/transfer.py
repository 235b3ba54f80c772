"""Moving tensors, and proving that they arrived.

The system copies a storage that is one tensor (`copy_file_range`: no byte of it comes through this process); any
other is read front to back, once, and its bytes go to wherever they are wanted. What was written is then read back,
once, which proves both ends: the CRC-32 of what lies in the new file has to be the one that the archive gives for the
source. SHA-256 and the search for NaN, infinity and zeros happen in that same pass. One thread writes, since two on one
file only wait for each other, a second proves what is there already, and in the end both do: hashing and I/O release
the interpreter's lock. Memory is two buffers, plus one tensor where a view has to be laid out anew.

The same passes tell whether a file holds already what would be written: then nothing is, and SHA-256 takes the place of
the CRC-32.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

from zlib_ng.zlib_ng import crc32, crc32_combine

from ...errors import ConverterError, printable
from ..cast import cast, count_nonfinite, trailing_zeros
from ..tensor import CHUNK, LazyTensor, Storage

Progress = Callable[[int], None]


class DifferentError(Exception):
    """A file does not hold what would be written."""


@dataclass
class Output:
    """A tensor, or rows of one, of a file being written: where it lies as a reader of that file sees it, and what was
    read back. `nonfinite` counts elements; `zeros`, of each of `parts` equal runs of rows (such as q, k and v), how
    many at its end are zero. Without an `fd` it is compared with what is there."""

    tensor: LazyTensor
    fd: int | None
    parts: int = 1
    sha256: str = ""
    crc: int = 0
    nonfinite: int = 0
    zeros: list[int] = field(default_factory=list)
    wanted: Any = field(default_factory=hashlib.sha256)  # of what would be written without an `fd`

    @property
    def start(self) -> int:
        """Offset in the file."""
        return self.tensor.storage.start + self.tensor.span[0]


class TensorCopy:
    """One source tensor and the outputs that its row-major bytes fill, one after the other.

    Where the outputs are of another dtype, its elements are rounded to that on the way, and `overflowed` counts those
    that became infinite. `crc` is that of the bytes to be written, and known once they are on their way: what has to
    be read back. Only where the system copied them out of a file that has no checksums it is None.

    Args:
        digest: the SHA-256 that a record states of the tensor's bytes: what was copied and has it needs no other proof,
            and `read` is then what they have.
    """

    def __init__(self, tensor: LazyTensor, outputs: list[Output], digest: str = "") -> None:
        self.dtype = outputs[0].tensor.dtype
        self.size = tensor.numel * self.dtype.itemsize
        assert sum(output.tensor.nbytes for output in outputs) == self.size, tensor.key
        self.tensor, self.outputs, self.digest, self.overflowed = tensor, outputs, digest, 0
        self.crc: int | None = 0
        # What is written whole and as it is, is hashed when it is read back.
        self._read = hashlib.sha256() if digest and (self.dtype != tensor.dtype or len(outputs) > 1) else None
        self._start, self._stop = tensor.span
        self._done = 0
        # A view that is not one run of bytes is collected, once its bytes arrive, and laid out anew.
        self._collected = bytearray()

    @property
    def read(self) -> str:
        """SHA-256 of what the source holds, once all is proven; '' where no record states one."""
        return self._read.hexdigest() if self._read else self.outputs[0].sha256 if self.digest else ""

    def copied(self) -> bool:
        """Let the system copy the bytes; False where it cannot, or where the storage is not exactly this tensor."""
        tensor, storage = self.tensor, self.tensor.storage
        whole = tensor.contiguous and tensor.nbytes == storage.size
        if not whole or self._read or self.dtype != tensor.dtype or (storage.crc is None and not self.digest):
            return False
        done = 0
        for output in self.outputs:
            if output.fd is None or not storage.copy_to(done, output.tensor.nbytes, output.fd, output.start):
                return False
            done += output.tensor.nbytes
        self.crc = storage.crc
        return True

    def feed(self, offset: int, part: memoryview) -> None:
        """Bytes of the storage from `offset`; those that are not of this tensor are ignored."""
        wanted = part[max(0, self._start - offset) : max(0, self._stop - offset)]
        if not wanted:
            return
        if self.tensor.contiguous:
            self._emit(wanted)
        else:
            self._collected = self._collected or bytearray(self._stop - self._start)
            first = max(0, offset - self._start)
            self._collected[first : first + len(wanted)] = wanted

    def finish(self) -> None:
        if self._collected:
            data, self._collected = memoryview(self.tensor.lay_out(self._collected)), bytearray()
            for start in range(0, len(data), CHUNK):
                self._emit(data[start : start + CHUNK])
        assert self._done == self.size, f"{self.tensor.key}: {self._done} of {self.size} bytes"

    def _emit(self, view: memoryview) -> None:
        """The next elements of the tensor, rounded where that is wanted, to the outputs that they belong to."""
        if self._read:
            self._read.update(view)
        if self.dtype != self.tensor.dtype:
            view, overflowed = cast(view, self.tensor.dtype, self.dtype)
            self.overflowed += overflowed
        self.crc = crc32(view, self.crc or 0)
        start = 0
        for output in self.outputs:
            low, high = max(start, self._done), min(start + output.tensor.nbytes, self._done + len(view))
            if low < high and output.fd is None:
                output.wanted.update(view[low - self._done : high - self._done])
            elif low < high and output.fd is not None:
                write_at(output.fd, view[low - self._done : high - self._done], output.start + low - start)
            start += output.tensor.nbytes
        self._done += len(view)

    def prove(self, buffer: bytearray, stop: threading.Event, progress: Progress) -> None:
        """Read back what was written: its CRC has to be that of the source, or of what was made of it."""
        # Rows that changed places lie in another order there: the digest of a tensor is of its bytes as they lie.
        digests = {output.tensor.key: hashlib.sha256() for output in self.outputs}
        for output in sorted(self.outputs, key=lambda output: output.start):
            file, digest, dtype = output.tensor.storage.file, digests[output.tensor.key], output.tensor.dtype
            size, there = output.tensor.nbytes // output.parts, hashlib.sha256()
            for end in (size * (part + 1) for part in range(output.parts)):
                zeros = 0
                for offset in range(end - size, end, len(buffer)):
                    if stop.is_set():
                        return
                    part = memoryview(buffer)[: min(len(buffer), end - offset)]
                    file.read_into(part, output.start + offset, output.tensor.key)
                    output.crc = crc32(part, output.crc)
                    digest.update(part)
                    if output.fd is None:
                        there.update(part)
                    output.nonfinite += count_nonfinite(part, dtype)
                    last = trailing_zeros(part, dtype)
                    zeros = last + (zeros if last * dtype.itemsize == len(part) else 0)
                    progress(len(part))
                output.zeros.append(zeros)
            if output.fd is None and there.digest() != output.wanted.digest():
                raise DifferentError
        crc = 0
        for output in self.outputs:
            output.sha256 = digests[output.tensor.key].hexdigest()
            crc = crc32_combine(crc, output.crc, output.tensor.nbytes)
        if self.crc is None and [output.sha256 for output in self.outputs] != [self.digest]:
            self.crc = 0
            for _, part in self.tensor.chunks():  # it has changed since it was recorded, which is no fault
                self.crc = crc32(part, self.crc)
        if self.crc not in (crc, None):
            for _ in self.tensor.storage.chunks(buffer):
                pass  # raises where it is the source that is damaged
            where = self.outputs[0].tensor.storage.file.path
            raise ConverterError(
                f"{printable(where)}: {printable(self.outputs[0].tensor.key)}: what was read back is not what was "
                "written (a faulty disk, or another program?)"
            )


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
    copies: Iterable[TensorCopy],
    progress: Progress = lambda count: None,
    written: Callable[[], None] = lambda: None,
) -> None:
    """Carry out all copies and prove them.

    `progress` is told of every run of bytes that was proven; `written` is called once, when all are written and many
    are still to be proven: the moment to put the disk to work.

    Raises: `InputError` where a storage cannot be read whole or its CRC is wrong; `ConverterError` where reading back
    gives something else than was written; `OSError` where writing fails; `DifferentError` where an output that is only
    compared holds something else.
    """
    by_storage: dict[int, tuple[Storage, list[TensorCopy]]] = {}
    for copy in copies:
        storage = copy.tensor.storage
        by_storage.setdefault(id(storage), (storage, []))[1].append(copy)
    # In the order of the file, so that a disk reads forward.
    jobs = sorted(by_storage.values(), key=lambda job: job[0].place)
    # Rounding is work for both threads, and only copying is not: two writers on one file wait for each other. A view
    # that is laid out anew takes memory for a whole tensor, of which there is to be one at a time.
    casts = any(d.dtype != d.tensor.dtype or d.outputs[0].fd is None for _, wanting in jobs for d in wanting)
    writers = 2 if casts and all(d.tensor.contiguous for _, wanting in jobs for d in wanting) else 1
    writing, turn = writers, threading.Lock()
    waiting: SimpleQueue[tuple[Storage, list[TensorCopy]] | None] = SimpleQueue()
    ready: SimpleQueue[TensorCopy | None] = SimpleQueue()  # None, in both: there will be no more
    for job in (*jobs, *[None] * writers):
        waiting.put(job)

    def write(buffer: bytearray, stop: threading.Event) -> None:
        nonlocal writing
        try:
            while (job := waiting.get()) and not stop.is_set():
                storage, wanting = job
                if not (len(wanting) == 1 and wanting[0].copied()):
                    _read_and_write(storage, wanting, buffer, stop)
                for copy in wanting:
                    ready.put(copy)
        except BaseException:
            stop.set()
            raise
        finally:
            with turn:
                writing -= 1
                last = not writing
            if last:
                try:
                    if not stop.is_set():
                        written()
                finally:
                    ready.put(None)
                    ready.put(None)

    def work(writes: bool, stop: threading.Event) -> None:
        buffer = bytearray(CHUNK)
        if writes:
            write(buffer, stop)
        while (copy := ready.get()) and not stop.is_set():
            copy.prove(buffer, stop, progress)

    in_threads(partial(work, True), partial(work, writers == 2))


def _read_and_write(storage: Storage, wanting: list[TensorCopy], buffer: bytearray, stop: threading.Event) -> None:
    """One pass over a storage for all tensors in it; of views to be laid out anew, only one at a time is in memory."""
    anew = [copy for copy in wanting if not copy.tensor.contiguous]
    first = [copy for copy in wanting if copy.tensor.contiguous] + anew[:1]
    for group, span in [(first, None), *(([copy], copy.tensor.span) for copy in anew[1:])]:
        for offset, part in storage.chunks(buffer, span):
            if stop.is_set():
                return
            for copy in group:
                copy.feed(offset, part)
        for copy in group:
            copy.finish()
