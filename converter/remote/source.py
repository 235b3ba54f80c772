"""What lies at a URL, as files on this machine, of which each piece is fetched when it is first read, and once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from ..checkpoint.file import fetched_files
from ..checkpoint.folder import CONFIG
from ..checkpoint.write.publish import write_error
from ..errors import ConverterError, InputError
from ..filenames import RECORD, SIDECAR
from ..hub import local
from ..hub.names import stays_inside
from .store import Store, is_url, shown, version

PIECE = 4 << 20  # bytes
AHEAD = 3  # pieces that are fetched before they are asked for, where a file is read front to back
_APART = 16  # pieces by which two threads that read, or a look at what follows a tensor, may be apart in that
_CONNECTIONS = 4
_LEVELS = 3  # of a URL's path are the same here: names of files and folders tell something of weights


class Pieces:
    """One object, and the file that its pieces come to; `InputFile` asks for what it is about to read."""

    def __init__(self, store: Store, size: int, path: Path, pool: ThreadPoolExecutor) -> None:
        self._store, self.size, self._path, self._pool = store, size, path, pool
        self._version, self._begun = tuple[str, ...](), dict[int, Future[None]]()
        self._lock, self._reached = Lock(), -_APART
        with open(path, "xb") as file:
            file.truncate(size)

    def need(self, offset: int, count: int) -> None:
        """Wait until these bytes are in the file. Raises: `InputError` where the store does not give them."""
        first, last = offset // PIECE, (offset + count - 1) // PIECE
        with self._lock:
            self._version = self._version or self._now()
            onwards = self._reached - _APART <= first <= self._reached + 1
            ahead = AHEAD if onwards and last > self._reached else 0
            self._reached = max(last, self._reached) if onwards else last
            for number in range(first, min(last + ahead, (self.size - 1) // PIECE) + 1):
                if number not in self._begun:
                    self._begun[number] = self._pool.submit(self._fetch, number * PIECE)
        for number in range(first, last + 1):
            self._begun[number].result()

    def _fetch(self, start: int) -> None:
        stop = min(start + PIECE, self.size)
        with self._store.errors():
            data = self._store.fs.cat_file(self._store.path, start=start, end=stop)
        if len(data) != stop - start:
            raise InputError(f"{self._store}: it ends at offset {start + len(data)}, it shrank while it was read")
        try:
            with open(self._path, "r+b") as file:
                file.seek(start)
                file.write(data)
        except OSError as error:
            raise write_error(self._path, error) from error

    def check_unchanged(self) -> None:
        """Raises: `InputError` where the object is another one than when it was first read."""
        if self._version and self._now() != self._version:
            raise InputError(f"{self._store}: another version came while it was read")

    def _now(self) -> tuple[str, ...]:
        with self._store.errors():
            return version(self._store.fs.info(self._store.path))


@dataclass(frozen=True)
class Mirror:
    """A temporary folder with files of a store; `path` is the one, or the folder, that is meant. `pieces` are those of
    the files, by their paths."""

    store: Store
    files: dict[str, dict[str, Any]]
    root: str
    path: Path
    pieces: dict[str, Pieces]

    def words(self, text: str) -> str:
        """A text in which the URL stands in the place of the folder."""
        inside = self.path.relative_to(self.root).as_posix()
        return text.replace(self.root, shown(self.store.url.rstrip("/")).removesuffix(f"/{inside}"))


@contextmanager
def mirrored(store: Store, files: dict[str, dict[str, Any]]) -> Iterator[Mirror]:
    """These files of a store, fetched as they are read. Errors in the block name the URL."""
    with tempfile.TemporaryDirectory(prefix="pixart-") as folder, ThreadPoolExecutor(_CONNECTIONS) as pool:
        parts = str(store).partition("://")[2].strip("/").split("/")[-_LEVELS:]
        mirror = Mirror(store, files, root := os.path.realpath(folder), Path(root, *parts), {})
        mirror.path.parent.mkdir(parents=True, exist_ok=True)
        for name, about in files.items():
            path = os.path.normpath(mirror.path / os.path.relpath(name, store.path))
            if stays_inside(Path(os.path.relpath(path, root)).as_posix()):
                try:
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    mirror.pieces[path] = Pieces(store.at(name), about["size"], Path(path), pool)
                except OSError as error:  # such as a file with the name of a folder
                    raise InputError(f"{store.at(name)}: no file can have this name here: {error.strerror}") from error
        fetched_files.update(mirror.pieces)
        try:
            yield mirror
        except ConverterError as error:
            error.args = tuple(mirror.words(arg) if isinstance(arg, str) else arg for arg in error.args)
            raise
        finally:
            for path in mirror.pieces:
                del fetched_files[path]
            pool.shutdown(cancel_futures=True)


@contextmanager
def fetched(
    path: str | os.PathLike[str], *, hub: bool = False, quiet: bool = False, whole: bool = False
) -> Iterator[Path]:
    """Where a source lies on this machine while the block lasts: a path as it is; what a URL names in a temporary
    folder, where this package's readers have each piece of a file fetched when they first read it, and once.

    Args:
        hub: a name on the hub is one too, and fetched into its cache: `hub.local`; `quiet`, as of that.
        whole: fetch all that a URL names at once, for readers of other packages.

    Raises: `InputError` where nothing is there, or it cannot be had. Errors in the block name the URL.

    Example:
        >>> import fsspec
        >>> fsspec.filesystem("memory").put_file("fixtures/golden/sigma-ms.pth", "/runs/sigma.pth")
        >>> with fetched("memory://runs/sigma.pth") as path, converter.open_checkpoint(path) as checkpoint:
        ...     checkpoint["x_embedder.proj.weight"].shape
        (48, 4, 2, 2)
    """
    if not is_url(path):
        yield local(path, quiet=quiet) if hub else Path(path)
        return
    store = Store(path)
    if not (files := store.files()):
        raise InputError(f"{store}: no such file, folder or bucket")
    folder = store.path
    for _ in range(0 if path.startswith("http") else 2):  # a web server lists no folder
        folder = folder.rpartition("/")[0]
        # For a config, or a record, beside it. Who may only read a file may not list its folder.
        with store.errors(), suppress(FileNotFoundError, PermissionError):
            beside = store.fs.ls(folder, detail=True) if folder.strip("/") else ()
            wanted = {f"{folder}/{name}" for name in (CONFIG, RECORD, SIDECAR)}
            files |= {about["name"]: about for about in beside if about["type"] == "file" and about["name"] in wanted}
    with mirrored(store, files) as mirror:
        for pieces in mirror.pieces.values() if whole else ():
            pieces.need(0, pieces.size)
            pieces.check_unchanged()
        yield mirror.path
