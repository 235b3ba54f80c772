"""What stands in a converted folder beside the model: texts, and files from elsewhere, as links or as copies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoint.file import InputFile, reading
from ..checkpoint.tensor import CHUNK
from ..checkpoint.write.publish import Publication
from ..checkpoint.write.transfer import Progress
from ..errors import ConverterError, InputError, UsageError, printable
from ..system import read_link, write_at
from .analysis import Analysis
from .sidecar import Sidecar


@dataclass(frozen=True)
class Additions:
    """What is added.

    Attributes:
        texts: contents, by name in the folder, such as "scheduler/scheduler_config.json".
        files: files elsewhere, by name in the folder; their paths are absolute, and no links themselves.
        linked: whether symbolic links to the files are made; else they are copied.
        lines: what is added, in words. notes: what the user should know.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    linked: bool = True
    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that the copies take."""
        return 0 if self.linked else sum(map(os.path.getsize, self.files.values()))

    @property
    def links(self) -> dict[str, str]:
        """Of every file by its name: where the link leads to, '' for a copy."""
        return {name: str(path) if self.linked else "" for name, path in self.files.items()}

    def write(self, out: Publication, step: Progress) -> dict[str, dict[str, int | str]]:
        """Link or copy the files; returns what the record says of each.

        Raises: `InputError` where one cannot be read; `ConverterError` where a copy that is read back differs.
        """
        written: dict[str, dict[str, int | str]] = {}
        for name, path in self.files.items():
            if self.linked:
                try:
                    out.link(name, path)
                except UsageError as error:  # a disk without links, or Windows, which allows them only to some
                    raise UsageError(f"{error}: no link can be made there; `components` copy makes copies") from error
                with reading(path):
                    written[name] = {"size": os.path.getsize(path), "link": str(path)}
            else:
                written[name] = _copy(path, out, name, step)
        return written

    def match(self, folder: Path) -> bool:
        """Whether a folder holds these files already: the same links, or copies of the same bytes."""
        for name, link in self.links.items():
            place = folder / name
            if link or place.is_symlink():
                if not place.is_symlink() or read_link(place) != link:
                    return False
            elif not _equal(place, self.files[name]):
                return False
        return True


# What is to stand beside a model in `target`: (the model, what was kept of it, target, no progress bars).
Adding = Callable[[Analysis, Sidecar, Path, bool], Additions]


def _pieces(file: InputFile) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(CHUNK, file.size)))
    for start in range(0, file.size, CHUNK):
        piece = buffer[: min(CHUNK, file.size - start)]
        file.read_into(piece, start)
        yield piece


def _copy(path: Path, out: Publication, name: str, step: Progress) -> dict[str, int | str]:
    digest, back, size, fd = hashlib.sha256(), hashlib.sha256(), 0, out.create(name)
    try:
        with InputFile(path) as source:
            for piece in _pieces(source):
                digest.update(piece)
                write_at(fd, piece, size)
                size += len(piece)
                step(len(piece))
    finally:
        os.close(fd)
    with InputFile(out.path / name) as copy:
        copy.written_here = True
        for piece in _pieces(copy):
            back.update(piece)
    if back.digest() != digest.digest():
        rule = "what is read back is not what was written (a faulty disk, or another program?)"
        raise ConverterError(f"{printable(out.target / name)}: {rule}")
    return {"size": size, "sha256": digest.hexdigest()}


def _equal(one: Path, other: Path) -> bool:
    with InputFile(other) as there:
        try:
            with InputFile(one) as here:
                pairs = zip(_pieces(here), _pieces(there), strict=True)
                return here.size == there.size and all(piece == wanted for piece, wanted in pairs)
        except InputError:
            return False
