"""Writing files from lazy tensors: headers first, then every tensor copied, cast and verified."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from zlib_ng.zlib_ng import crc32_combine

from ..checkpoint import Checkpoint, DType, LazyTensor, open_checkpoint
from ..checkpoint.write.layout import FileLayout, TensorEntry
from ..checkpoint.write.publish import Publication, write_error
from ..checkpoint.write.transfer import Output, Progress, TensorCopy, transfer
from ..errors import ConverterError, InputError, printable, shortened
from ..mapping import fold
from ..system import begin_flush, flush, reserve, write_at

INTERVAL = 0.2  # seconds until the disk is given what was written in the meantime


@dataclass(frozen=True)
class TensorWrite:
    """Source tensors and the keys that they are written under, in `dtype`.

    `runs`: for each source, where its equal groups of rows go, in order: (which key, which of the groups of rows in
    it). Default: one tensor under several keys is split among them, several under one are concatenated. A tensor
    that is written several times is as many parts: it is read once all the same.
    `fused`: how many tensors of another layout are one in this, such as q, k and v, and are looked at one by one.
    """

    sources: tuple[LazyTensor, ...]
    keys: tuple[str, ...]
    dtype: DType
    fused: int = 1
    runs: tuple[tuple[tuple[int, int], ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.runs:
            joined, shared_out = range(len(self.sources)), range(len(self.keys))
            runs = [((0, i),) for i in joined] if len(joined) > 1 else [tuple((i, 0) for i in shared_out)]
            object.__setattr__(self, "runs", tuple(runs))

    @cached_property
    def rows(self) -> dict[tuple[int, int], slice]:
        """(key, group) -> the rows of the key that it is."""
        counts = {
            place: source.shape[0] // len(runs) if source.shape else 1
            for source, runs in zip(self.sources, self.runs, strict=True)
            for place in runs
        }
        slices, ends = {}, Counter[int]()
        for key, group in sorted(counts):
            start = ends[key]
            ends[key] += counts[key, group]
            slices[key, group] = slice(start, ends[key])
        return slices

    @cached_property
    def entries(self) -> list[TensorEntry]:
        first, ends = self.sources[0].shape, {key: rows.stop for (key, _), rows in self.rows.items()}
        return [
            TensorEntry(key, self.dtype, (ends[number], *first[1:]) if first else first)
            for number, key in enumerate(self.keys)
        ]

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)

    def outputs(self, written: Mapping[str, Any]) -> list[list[Any]]:
        """For each source, what its rows fill, in order: whole tensors of those `written`, or groups of their rows.
        They are of any kind that slices."""
        outputs = []
        for runs in self.runs:
            wholes = [written[self.keys[key]] for key, _ in runs]
            outputs.append(
                [whole[self.rows[place]] if whole.shape else whole for whole, place in zip(wholes, runs, strict=True)]
            )
        return outputs

    def tensor_copies(self, wholes: Mapping[str, Output], digests: Mapping[str, str]) -> list[TensorCopy]:
        """What moves where; `wholes` are the tensors to be written, by key, and `digests` what a record states of the
        sources, by theirs."""
        outputs = self.outputs({key: wholes[key].tensor for key in self.keys})
        return [
            TensorCopy(
                source,
                [Output(tensor, wholes[tensor.key].fd, self.fused) for tensor in filled],
                digests.get(source.key, ""),
            )
            for source, filled in zip(self.sources, outputs, strict=True)
        ]


@dataclass(frozen=True)
class TensorFile:
    """A file to be written: its name in the folder, and where every tensor lies in it; `part`: what the keys of the
    model begin with and those in the file do not."""

    name: str
    layout: FileLayout
    part: str = ""

    def tensors(self, opened: Checkpoint) -> list[LazyTensor]:
        """Those in the file, by their keys in the model."""
        return [replace(tensor, key=self.part + tensor.key) for tensor in opened.values()]


@dataclass
class Written:
    """What was written: per file its size and the digest of its header; per source key the digest of each run of
    bytes, under the key that it went to, how many elements are not finite, and how many a cast made infinite.

    `read`: per source key whose digest was stated, that of what was read; `zeros`: per source key, of each of
    its parts how many elements at the end are zero."""

    files: dict[str, dict[str, int | str]] = field(default_factory=dict)
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    nonfinite: dict[str, int] = field(default_factory=dict)
    overflowed: dict[str, int] = field(default_factory=dict)
    read: dict[str, str] = field(default_factory=dict)
    zeros: dict[str, list[int]] = field(default_factory=dict)

    def count(self, key: str, zeros: list[int], nonfinite: int, overflowed: int) -> None:
        """What was counted of one source in what was written of it."""
        self.zeros[key] = zeros
        if overflowed:
            self.overflowed[key] = overflowed
        if nonfinite > overflowed:
            self.nonfinite[key] = nonfinite - overflowed


def write_files(
    out: Publication,
    files: Sequence[TensorFile],
    parts: Sequence[TensorWrite],
    *,
    step: Progress,
    digests: Mapping[str, str],
) -> Written:
    """Write the files into the publication; every tensor is read back and verified.

    Args:
        digests: key of a source -> what a record states of its bytes, where there is one.

    Raises: `InputError` where the source is damaged, `ConverterError` where what is read back is not what was written.
    """
    with ExitStack() as stack:
        fds: list[int] = []
        wholes: dict[str, Output] = {}
        for file in files:
            fds.append(fd := out.create(file.name))
            stack.callback(os.close, fd)
            reserve(fd, file.layout.size)
            frame = file.layout.frame({})
            for offset, data in frame:
                write_at(fd, data, offset)
            opened = stack.enter_context(_reopened(out.path / file.name, file.layout, frame))
            wholes |= {tensor.key: Output(tensor, fd) for tensor in file.tensors(opened)}
        tensor_copies = [copy for part in parts for copy in part.tensor_copies(wholes, digests)]
        crcs: dict[str, int] = {}
        sizes: dict[str, dict[str, int | str]] = {}
        with _flushing(fds, out.target) as begin:
            transfer(tensor_copies, step, begin)
            outputs = (output for copy in tensor_copies for output in copy.outputs)
            for output in sorted(outputs, key=lambda output: output.start):  # of several, from its first row on
                key = output.tensor.key
                crcs[key] = crc32_combine(crcs.get(key, 0), output.crc, output.tensor.nbytes)
            for file, fd in zip(files, fds, strict=True):  # while the disk writes; headers reach it at the publication
                framed = _complete(out.path / file.name, fd, file.layout, crcs)
                sizes[file.name] = {"size": file.layout.size, "header_sha256": hashlib.sha256(framed).hexdigest()}
    return summary(tensor_copies, sizes)


def summary(tensor_copies: list[TensorCopy], files: dict[str, dict[str, int | str]]) -> Written:
    """What was counted and hashed while these were carried out."""
    written = Written(files)
    for copy in tensor_copies:
        key, outputs = copy.tensor.key, copy.outputs
        written.digests.setdefault(key, {}).update({output.tensor.key: output.digest for output in outputs})
        if copy.read:
            written.read[key] = copy.read
        nonfinite = sum(output.nonfinite for output in outputs)
        written.count(key, [count for output in outputs for count in output.zeros], nonfinite, copy.overflowed)
    return written


def _complete(path: Path, fd: int, layout: FileLayout, crcs: dict[str, int]) -> bytes:
    """Put the checksums, where the format has any, into the header; returns the whole header."""
    frame = layout.frame(crcs)
    if frame != layout.frame({}):
        for offset, data in frame:
            write_at(fd, data, offset)
        with _reopened(path, layout, frame) as opened:
            if any(tensor.storage.crc != crcs[tensor.key] for tensor in opened.values()):
                raise _header_mismatch(path)
    return b"".join(data for _, data in frame)


def _header_mismatch(path: Path) -> ConverterError:
    return ConverterError(
        f"{printable(path)}: the header that was read back is not the one that was written "
        "(a faulty disk, or another program?)"
    )


def _reopened(path: Path, layout: FileLayout, frame: list[tuple[int, bytes]]) -> Checkpoint:
    """The new file as a strict reader sees it, its data still to come."""
    wanted = {entry.key: (entry.dtype, entry.shape) for entry in layout.entries}
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(open_checkpoint(path))
            file = opened.files[0]
            file.written_here = True
            for tensor in opened.values():
                tensor.storage.locate()
            tensors = {tensor.key: (tensor.dtype, tensor.shape) for tensor in opened.values()}
            if tensors != wanted or any(file.read(offset, len(data)) != data for offset, data in frame):
                raise _header_mismatch(path)
        except InputError as error:  # no fault of the input
            raise _header_mismatch(path) from error
        stack.pop_all()
    return opened


def counted(bad: dict[str, int], what: str) -> str:
    """How many elements are `what`, and where.

    >>> counted({"blocks.0.a": 2, "blocks.1.a": 1}, "NaN or infinite")
    '3 elements are NaN or infinite, in blocks.{0..1}.a'
    """
    total, names = sum(bad.values()), fold(bad)
    return f"{total} element{'s are' if total > 1 else ' is'} {what}, in {shortened(names, 6)}"


@contextmanager
def _flushing(fds: list[int], target: Path) -> Iterator[Callable[[], None]]:
    """Flushes the files to disk on another thread: little by little while they are written, and whole once what is
    yielded is called, or at the end of the block.

    A failure to flush is raised at the end.
    """
    failures: list[OSError] = []
    begin = threading.Event()

    def flush_all() -> None:
        while not begin.wait(INTERVAL):
            for fd in fds:
                begin_flush(fd)
        try:
            for fd in fds:
                flush(fd)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=flush_all)
    try:
        thread.start()  # in here: an interrupt may arrive while it starts, and it must not wait for ever
        yield begin.set
    finally:
        begin.set()
        if thread.ident is not None:
            thread.join()
    if failures:
        raise write_error(target, failures[0])
