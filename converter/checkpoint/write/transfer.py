"""Moving tensors, and proving that they arrived.

A storage that is one tensor is copied, and nobody looks at its bytes on the way; any other is read front to back,
once, and its bytes go to wherever they are wanted. What was written is then read back, once, which proves both ends:
the CRC-32 of what lies in the new file has to be the one that the archive gives for the source. Digests and the search
for NaN, infinity and zeros happen in that same pass. One thread writes, since two on one file only wait for each other,
a second proves what is there already, and in the end both do: hashing and I/O release the interpreter's lock. Memory is
three buffers, plus one tensor where a view has to be laid out anew.

The same passes tell whether a file holds already what would be written: then nothing is, and the digest takes the place
of the CRC-32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from zlib_ng.zlib_ng import crc32, crc32_combine

from ...errors import ConverterError, InputError, printable
from ...system import write_at
from ..cast import cast, count_nonfinite, trailing_zeros
from ..digest import Digest
from ..tensor import CHUNK, LazyTensor

Progress = Callable[[int], None]
POLL = 0.2  # seconds until an interrupt is noticed


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
    digest: str = ""
    crc: int = 0
    nonfinite: int = 0
    zeros: list[int] = field(default_factory=list)
    wanted: Digest = field(default_factory=Digest)  # of what would be written without an `fd`

    @property
    def start(self) -> int:
        """Offset in the file."""
        return self.tensor.storage.start + self.tensor.span[0]


class TensorCopy:
    """One source tensor and the outputs that its row-major bytes fill, one after the other.

    Where the outputs are of another dtype, its elements are rounded to that on the way, and `overflowed` counts those
    that became infinite. `crc` is that of the bytes to be written, and known once they are on their way: what has to
    be read back. It is None only where they were copied out of a file without checksums.

    Args:
        digest: what a record states of the tensor's bytes: what was copied and has it needs no other proof, and `read`
            is then what they have. All is hashed as it is.
    """

    def __init__(self, tensor: LazyTensor, outputs: list[Output], digest: str = "") -> None:
        self.dtype = outputs[0].tensor.dtype
        self.size = tensor.numel * self.dtype.itemsize
        assert sum(output.tensor.nbytes for output in outputs) == self.size, tensor.key
        self.tensor, self.outputs, self.digest, self.overflowed = tensor, outputs, digest, 0
        self.crc: int | None = 0
        # What is written whole and as it is, is hashed when it is read back.
        self._read = Digest(digest) if digest and (self.dtype != tensor.dtype or len(outputs) > 1) else None
        self._start, self._stop = tensor.span
        self._done = 0

    @property
    def read(self) -> str:
        """The digest of what the source holds, once all is proven; '' where no record states one."""
        return self._read.text if self._read else self.outputs[0].digest if self.digest else ""

    def copied(self) -> bool:
        """Copy the bytes, which nobody looks at; False where the storage is not exactly this tensor, or nothing would
        prove that they are right."""
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
        """Bytes of the storage from `offset`; those that are not of this tensor, which is contiguous, are ignored."""
        if wanted := part[max(0, self._start - offset) : max(0, self._stop - offset)]:
            self._emit(wanted)

    def finish(self) -> None:
        """Once its storage was read: what is no run of bytes is read by itself and laid out anew, in memory."""
        if not self.tensor.contiguous:
            data = memoryview(bytearray(self.tensor.nbytes))
            self.tensor.read_into(data)
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
        digests = {output.tensor.key: Digest(self.digest) for output in self.outputs}
        for output in sorted(self.outputs, key=lambda output: output.start):
            file, digest, dtype = output.tensor.storage.file, digests[output.tensor.key], output.tensor.dtype
            size, there = output.tensor.nbytes // output.parts, Digest()
            for end in (size * (part + 1) for part in range(output.parts)):
                zeros = 0
                for offset in range(end - size, end, len(buffer)):
                    if stop.is_set():
                        return
                    part = memoryview(buffer)[: min(len(buffer), end - offset)]
                    try:
                        file.read_into(part, output.start + offset, output.tensor.key)
                    except InputError as error:
                        if output.fd is None:  # what cannot be read is not what would be written
                            raise DifferentError from error
                        raise
                    output.crc = crc32(part, output.crc)
                    digest.update(part)
                    if output.fd is None:
                        there.update(part)
                    output.nonfinite += count_nonfinite(part, dtype)
                    zeros = trailing_zeros(part, dtype, zeros)
                    progress(len(part))
                output.zeros.append(zeros)
            if output.fd is None and there.text != output.wanted.text:
                raise DifferentError
        crc = 0
        for output in self.outputs:
            output.digest = digests[output.tensor.key].text
            crc = crc32_combine(crc, output.crc, output.tensor.nbytes)
        if self.crc is None and [output.digest for output in self.outputs] != [self.digest]:
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


class _Buffer(threading.local):
    """Memory of one thread, to read into."""

    def __init__(self) -> None:
        self.data = bytearray(CHUNK)


def transfer(
    copies: Iterable[TensorCopy],
    progress: Progress = lambda count: None,
    written: Callable[[], None] = lambda: None,
) -> None:
    """Carry out all copies and prove them. The first failure, or an interrupt, stops all before it is raised.

    `progress` is told of every run of bytes that was proven; `written` is called once, when all are written and many
    are still to be proven: the moment to put the disk to work.

    Raises: `InputError` where a storage cannot be read whole or its CRC is wrong; `ConverterError` where reading back
    gives something else than was written; `OSError` where writing fails; `DifferentError` where an output that is only
    compared holds something else.
    """
    by_storage: dict[int, list[TensorCopy]] = {}
    for copy in copies:
        by_storage.setdefault(id(copy.tensor.storage), []).append(copy)
    # In the order of the file, so that a disk reads forward.
    jobs = sorted(by_storage.values(), key=lambda wanting: wanting[0].tensor.storage.place)
    # Rounding is work for both threads, and only copying is not: two writers on one file wait for each other. A view
    # that is laid out anew takes memory for a whole tensor, of which there is to be one at a time.
    everything = [copy for wanting in jobs for copy in wanting]
    # What is only compared is not written either.
    shared = any(copy.dtype != copy.tensor.dtype or copy.outputs[0].fd is None for copy in everything)
    shares = [[job] for job in jobs] if shared and all(copy.tensor.contiguous for copy in everything) else [jobs]
    buffer, stop, proofs = _Buffer(), threading.Event(), list[Future[None]]()

    def guarded(work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except BaseException:
            stop.set()
            raise

    def write(*share: list[TensorCopy]) -> None:
        for wanting in share:
            if stop.is_set():
                return
            if not (len(wanting) == 1 and wanting[0].copied()):
                _read_and_write(wanting, buffer.data, stop)
            proofs.extend(pool.submit(guarded, prove, copy) for copy in wanting)

    def prove(copy: TensorCopy) -> None:
        copy.prove(buffer.data, stop, progress)

    with ThreadPoolExecutor(2) as pool:
        try:
            _finish([pool.submit(guarded, write, *share) for share in shares])
            if not stop.is_set():
                written()
            _finish(proofs)
        finally:
            stop.set()


def _finish(futures: list[Future[None]]) -> None:
    """Wait for all; the first failure is raised. On Windows, Ctrl-C would wait too, for as long as one wait takes."""
    for future in futures:
        while not future.done():
            wait([future], POLL)
        future.result()


def _read_and_write(wanting: list[TensorCopy], buffer: bytearray, stop: threading.Event) -> None:
    """One pass over a storage for all tensors in it; views to be laid out anew are read after it, one at a time."""
    contiguous = [copy for copy in wanting if copy.tensor.contiguous]
    for offset, part in wanting[0].tensor.storage.chunks(buffer) if contiguous else ():
        if stop.is_set():
            return
        for copy in contiguous:
            copy.feed(offset, part)
    for copy in wanting:
        if stop.is_set():
            return
        copy.finish()
