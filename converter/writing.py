"""Writing safetensors files out of lazy tensors: moved, searched for NaN, flushed, read back."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .checkpoint import LazyTensor, open_checkpoint
from .checkpoint.publish import Publication
from .checkpoint.safetensors_writer import Entry, Layout, lay_out_file
from .checkpoint.transfer import Delivery, Output, Progress, transfer, verify, write_at
from .errors import ConverterError, InputError, UsageError, printable
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

    def deliveries(self, fd: int) -> list[Delivery]:
        return [
            Delivery(
                tensor,
                [Output(e.key, e.dtype, e.nbytes, fd, self.layout.starts[e.key]) for e in split(tensor, keys)],
            )
            for tensor, keys in self.parts
        ]


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
    """Write the files into the folder in the making, and read them back.

    Raises: `InputError` where the source is damaged, or has NaN or infinity that are not allowed.
    """
    deliveries: list[Delivery] = []
    fds: list[int] = []
    try:
        for file in files:
            fd = out.create(file.name)
            fds.append(fd)
            write_at(fd, file.layout.header, 0)
            os.ftruncate(fd, file.layout.size)
            deliveries += file.deliveries(fd)
        transfer(deliveries, step)
        outputs = [output for delivery in deliveries for output in delivery.outputs]
        bad = {output.key: output.nonfinite for output in outputs if output.nonfinite}
        if bad and not allow_nonfinite:
            raise InputError(
                f"{printable(source)}: {nonfinite_words(bad)}; --allow_nonfinite converts them as they are"
            )
        # Flushing waits for the disk and reading back for the processor: side by side.
        with _flushing(fds):
            for file, fd in zip(files, fds, strict=True):
                _read_back(out.path / file.name, file, {o.key: o.crc for o in outputs if o.fd == fd}, step)
    finally:
        for fd in fds:
            os.close(fd)
    return Written(
        {f.name: {"size": f.layout.size, "header_sha256": hashlib.sha256(f.layout.header).hexdigest()} for f in files},
        {delivery.tensor.key: {o.key: o.sha256 for o in delivery.outputs} for delivery in deliveries},
        bad,
    )


def nonfinite_words(bad: dict[str, int]) -> str:
    """How many elements are NaN or infinite, and where."""
    return f"{sum(bad.values())} elements are NaN or infinite, in {', '.join(fold(bad)[:6])}"


def _read_back(path: Path, file: TensorFile, crcs: dict[str, int], step: Progress) -> None:
    """Open what was written as a stranger would, and compare keys, dtypes, shapes and bytes."""
    with open_checkpoint(path) as written:
        wanted = {e.key: (e.dtype, e.shape) for tensor, keys in file.parts for e in split(tensor, keys)}
        tensors = dict(written.selected.tensors)
        wrong = [key for key in wanted if key not in tensors or (tensors[key].dtype, tensors[key].shape) != wanted[key]]
        wrong += [key for key in tensors if key not in wanted]
        wrong = wrong or verify(tensors, crcs, step)
    if wrong:
        raise ConverterError(
            f"{printable(path)}: what was read back is not what was written (a faulty disk?): "
            + ", ".join(fold(wrong)[:6])
        )


@contextmanager
def _flushing(fds: list[int]) -> Iterator[None]:
    """Flush files to disk on another thread while the block runs; a failure to flush is raised at its end."""
    failures: list[OSError] = []

    def flush() -> None:
        try:
            for fd in fds:
                os.fsync(fd)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise UsageError(f"the result cannot be written to disk: {failures[0].strerror}")
