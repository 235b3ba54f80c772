"""Writing safetensors files out of lazy tensors: the header first, then every tensor moved and proven."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .checkpoint import Checkpoint, LazyTensor, open_checkpoint
from .checkpoint.publish import Publication, unwritten
from .checkpoint.safetensors_writer import Entry, Layout, lay_out_file
from .checkpoint.transfer import Delivery, Output, Progress, transfer, write_at
from .errors import ConverterError, InputError, printable
from .mapping import fold


@dataclass
class TensorFile:
    """A safetensors file in the making: which source tensors go into it, under which keys."""

    name: str
    metadata: dict[str, str] | None
    parts: list[tuple[LazyTensor, tuple[str, ...]]] = field(default_factory=list)
    layout: Layout = field(init=False)

    def plan(self) -> None:
        self.layout = lay_out_file(
            (entry for tensor, keys in self.parts for entry in split(tensor, keys)), self.metadata
        )

    def deliveries(self, fd: int, written: dict[str, LazyTensor]) -> list[Delivery]:
        """What goes where; `written` is the new file as a strict reader sees it, data still to come."""
        wanted = {e.key: (e.dtype, e.shape) for tensor, keys in self.parts for e in split(tensor, keys)}
        assert {key: (tensor.dtype, tensor.shape) for key, tensor in written.items()} == wanted
        return [Delivery(tensor, [Output(written[key], fd) for key in keys]) for tensor, keys in self.parts]


def split(tensor: LazyTensor, keys: tuple[str, ...]) -> list[Entry]:
    """What a tensor becomes: itself under one key, or equal parts of its first axis under several."""
    if len(keys) == 1:
        return [Entry(keys[0], tensor.dtype, tensor.shape)]
    return [Entry(key, tensor.dtype, (tensor.shape[0] // len(keys), *tensor.shape[1:])) for key in keys]


@dataclass
class Written:
    """What was written: per file its size and the digest of its header; per source key the SHA-256 of each part."""

    files: dict[str, dict[str, int | str]]
    digests: dict[str, dict[str, str]]
    nonfinite: dict[str, int]


def write_files(
    out: Publication, files: list[TensorFile], source: str, allow_nonfinite: bool, step: Progress
) -> Written:
    """Write the files into the folder in the making; every tensor is read back and proven.

    Raises: `InputError` where the source is damaged, or has NaN or infinity that are not allowed.
    """
    deliveries: list[Delivery] = []
    with ExitStack() as stack:
        fds = []
        for file in files:
            fd = out.create(file.name)
            stack.callback(os.close, fd)
            fds.append(fd)
            write_at(fd, file.layout.header, 0)
            os.ftruncate(fd, file.layout.size)
            opened = stack.enter_context(_reopened(out.path / file.name, file.layout.header))
            deliveries += file.deliveries(fd, opened.selected.tensors)
        with _flushing(fds, out.target) as flush:
            transfer(deliveries, step, flush)
    outputs = [output for delivery in deliveries for output in delivery.outputs]
    digests: dict[str, dict[str, str]] = {}
    for delivery in deliveries:  # of a tensor that is written several times, several
        digests.setdefault(delivery.tensor.key, {}).update({o.tensor.key: o.sha256 for o in delivery.outputs})
    bad = {output.tensor.key: output.nonfinite for output in outputs if output.nonfinite}
    if bad and not allow_nonfinite:
        raise InputError(f"{printable(source)}: {nonfinite_words(bad)}; --allow_nonfinite converts them as they are")
    return Written(
        {f.name: {"size": f.layout.size, "header_sha256": hashlib.sha256(f.layout.header).hexdigest()} for f in files},
        digests,
        bad,
    )


def _reopened(path: Path, header: bytes) -> Checkpoint:
    """The new file as a strict reader sees it, its data still to come."""
    wrong = ConverterError(
        f"{printable(path)}: the header that was read back is not the one that was written "
        "(a faulty disk, or another program?)"
    )
    try:
        opened = open_checkpoint(path)
    except InputError as error:  # no fault of the input
        raise wrong from error
    opened.files[0].ours = True
    with ExitStack() as stack:
        stack.callback(opened.close)
        if opened.files[0].read(0, len(header)) != header:
            raise wrong
        stack.pop_all()
    return opened


def nonfinite_words(bad: dict[str, int]) -> str:
    """How many elements are NaN or infinite, and where."""
    total = sum(bad.values())
    are = "1 element is" if total == 1 else f"{total} elements are"
    return f"{are} NaN or infinite, in {', '.join(fold(bad)[:6])}"


@contextmanager
def _flushing(fds: list[int], target: Path) -> Iterator[Callable[[], None]]:
    """Yields what starts to flush the files to disk, on another thread; at the end of the block they are flushed.

    A failure to flush is raised at the end.
    """
    failures: list[OSError] = []
    begin = threading.Event()

    def flush() -> None:
        begin.wait()
        try:
            for fd in fds:
                os.fsync(fd)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=flush)
    try:
        thread.start()  # in here: an interrupt may arrive while it starts, and it must not wait for ever
        yield begin.set
    finally:
        begin.set()
        if thread.ident is not None:
            thread.join()
    if failures:
        raise unwritten(target, failures[0])
