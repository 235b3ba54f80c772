"""One open descriptor on one regular file, read by position.

`pread` and never `mmap`: a file that shrinks while it is read is then an error in one line,
not a SIGBUS, and its pages are not counted as this process's memory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from ..errors import ConverterError, InputError, printable

_Call = TypeVar("_Call", bound=Callable[..., Any])
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
# The system cannot copy, or not between these files. Reading and writing takes over, and meets other errors again.
_CANNOT_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EIO}


class InputFile:
    """A regular file, opened once; every byte of it that is used comes through `read` or `read_into`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.written_here = False  # written by this process: what cannot be read of it is no fault of the input
        self._fd = -1
        try:
            # Asked before opening too: merely opening a device can act on it. O_NONBLOCK: a FIFO must not block.
            self._regular(os.stat(self.path))
            self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self.size = self._regular(os.fstat(self._fd)).st_size
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
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise self._read_error(what, f"offset {offset + done}: {error.strerror}") from None
            if count == 0:
                raise self._read_error(what, f"the file ends at offset {offset + done}, it shrank while it was read")
            done += count

    def copy_to(self, offset: int, count: int, fd: int, position: int, what: str = "") -> bool:
        """Let the system copy bytes to `position` of another descriptor; False, nothing promised, where it cannot."""
        done = 0
        while done < count:
            try:
                copied = os.copy_file_range(self._fd, fd, count - done, offset + done, position + done)
            except AttributeError:
                return False  # not a Linux
            except OSError as error:
                if error.errno in _CANNOT_COPY:
                    return False
                raise
            if copied == 0:
                raise self.error(what, f"the file ends at offset {offset + done}, it shrank while it was read")
            done += copied
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> InputFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
                    to = printable(os.readlink(where))
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
