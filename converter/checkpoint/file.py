"""One open descriptor on one regular file, read by position.

Read and never mapped, but for the weights of a model in memory, once they were read: a file that shrinks while it is
read is then an error in one line, not a SIGBUS, and its pages are not counted as this process's memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from .. import system
from ..errors import ConverterError, InputError, UsageError, printable

PIECE = 1 << 18  # bytes that are copied at once
_Call = TypeVar("_Call", bound=Callable[..., Any])
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
# By their real paths, files of which only the size is there: what brings the bytes of each before they are read.
fetched_files: dict[str, Any] = {}


class InputFile:
    """A regular file, opened once; every byte of it that is used comes through `read` or `read_into`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.written_here = False  # written by this process: what cannot be read of it is no fault of the input
        self.fetching = fetched_files.get(os.path.realpath(self.path)) if fetched_files else None
        self._fd = -1
        try:
            # Asked before opening too: merely opening a device can act on it.
            self._regular(os.stat(self.path))
            self._fd = system.open_to_read(self.path)
            status = self._regular(os.fstat(self._fd))
            self.size, self._version = status.st_size, _version(status)
        except (OSError, ValueError, InputError) as error:
            self.close()
            if isinstance(error, InputError):
                raise
            rule = getattr(error, "strerror", None) or str(error)
            raise self.error("", dangling_link(self.path) or rule) from None

    def _regular(self, status: os.stat_result) -> os.stat_result:
        if stat.S_ISREG(status.st_mode):
            return status
        raise self.error("", f"not a regular file but {_KINDS.get(stat.S_IFMT(status.st_mode), 'a device')}")

    def error(self, where: object, rule: str) -> InputError:
        return InputError.at(self.path, where, rule)

    def _read_error(self, where: object, rule: str) -> ConverterError:
        error = self.error(where, rule)
        return ConverterError(f"{error} (a faulty disk, or another program?)") if self.written_here else error

    def read(self, offset: int, count: int, what: str = "") -> bytes:
        """Exactly `count` bytes from `offset`."""
        if offset < 0 or count < 0 or offset + count > self.size:
            rule = f"bytes {offset} to {offset + count} lie outside the file of {self.size} bytes (truncated?)"
            raise self.error(what, rule)
        data = bytearray(count)
        self.read_into(memoryview(data), offset, what)
        return bytes(data)

    def read_into(self, view: memoryview, offset: int, what: str = "") -> None:
        """Fill `view` from `offset`; a file that has become shorter is an error."""
        self._need(offset, len(view))
        done = 0
        while done < len(view):
            try:
                count = system.read_at(self._fd, view[done:], offset + done)
            except OSError as error:
                raise self._read_error(what, f"offset {offset + done}: {error.strerror}") from None
            if count == 0:
                raise self._read_error(what, f"the file ends at offset {offset + done}, it shrank while it was read")
            done += count

    def copy_to(self, offset: int, count: int, fd: int, position: int, what: str = "") -> None:
        """Copy bytes to `position` of another descriptor."""
        # Through a core's own cache, and to whole pages wherever the source begins: to call `copy_file_range` took a
        # third more time, and left pages of which the disk took half as many in a second.
        buffer, stop = memoryview(bytearray(min(PIECE, count))), position + count
        while position < stop:
            piece = buffer[: min(PIECE - position % PIECE, stop - position)]
            self.read_into(piece, offset, what)
            system.write_at(fd, piece, position)
            offset, position = offset + len(piece), position + len(piece)

    def pages(self, offset: int, count: int) -> memoryview | None:
        """Bytes of the file as memory of this process, which outlives the descriptor: read when they are touched, and
        what is written to them stays in memory. None where the system cannot."""
        self._need(offset, count)
        return system.map_privately(self._fd, offset, count)

    def _need(self, offset: int, count: int) -> None:
        if self.fetching and count:
            self.fetching.need(offset, count)

    def check_unchanged(self) -> None:
        """Raises: `InputError` where another file is there by now, or it was written to since it was opened."""
        if self.fetching:
            self.fetching.check_unchanged()
            return
        try:
            version = _version(os.stat(self.path))
        except OSError:
            version = ()
        if version != self._version:
            raise self.error("", "it changed while it was read")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> InputFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def dangling_link(path: str | os.PathLike[str]) -> str:
    """What is wrong with a path that is a dangling link, or leads through one, as in a cache whose blobs are gone;
    '' for any other."""
    whole = os.path.abspath(path)
    for where in (Path(whole), *Path(whole).parents):
        with suppress(OSError, ValueError):  # what may not be looked at, or goes round in circles, is another matter
            if os.path.islink(where):
                try:
                    os.stat(where)
                except FileNotFoundError:
                    through = "" if str(where) == whole else f"lies behind {printable(where)}, "
                    to = printable(system.read_link(where))
                    return f"{through}a dangling link: {to} is not there (No such file or directory): fetch it again"
    return ""


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` in here into an `InputError` about this path, in one line.

    >>> with reading("weights"):
    ...     os.listdir("weights/none")
    Traceback (most recent call last):
    converter.errors.InputError: weights/none: No such file or directory
    """
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"{printable(repr(path), 60)}: a path is needed, and not {type(path).__name__}")
    if "\0" in os.fspath(path):
        raise InputError.at(path, "", "not a path: it contains a null character")
    try:
        yield
    except OSError as error:
        raise InputError.at(error.filename or path, "", error.strerror or str(error)) from error


def reads(call: _Call) -> _Call:
    """Decorator: run a function inside `reading`, its first argument being the path."""

    @wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        with reading(args[0] if args else next(iter(kwargs.values()))):
            return call(*args, **kwargs)

    return cast(_Call, guarded)


def present(path: str | os.PathLike[str]) -> bool:
    """Whether anything has this name, even a dangling link. Where the system does not say, that is an error: a config
    or a record must not be overlooked."""
    with reading(path), suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(path)
        return True
    return False
