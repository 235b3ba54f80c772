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
from types import TracebackType
from typing import Any, TypeVar, cast

from ..errors import ConverterError, InputError, printable
from .recognition import text_in

_Call = TypeVar("_Call", bound=Callable[..., Any])
# What people have under a checkpoint's name that is not one. (offset, magic bytes, what to say)
_FOREIGN = (
    (
        0,
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19",
        "a legacy torch file (the default before torch 1.6): re-save it with a current torch: "
        "torch.save(torch.load(PATH, weights_only=True, map_location='cpu'), NEW)",
    ),
    (0, b"\x80", "a bare pickle, not a torch archive: re-save it with torch.save"),
    (0, b"\x89HDF", "an HDF5 file (Keras), not a torch or safetensors checkpoint"),
    (0, b"GGUF", "a GGUF file, not a torch or safetensors checkpoint"),
    (0, b"\x93NUMPY", "a NumPy array, not a torch or safetensors checkpoint"),
    (0, b"\x1f\x8b", "gzip-compressed: decompress it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed: decompress it first"),
    (0, b"\xfd7zXZ", "xz-compressed: decompress it first"),
    (0, b"BZh", "bzip2-compressed: decompress it first"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"RIFF", "a RIFF file (WebP, WAV)"),
    (
        257,
        b"ustar",
        "a tar archive: if torch before 0.4 wrote it, re-save it with a current torch, else unpack it",
    ),
)
_HEAD = 2048  # bytes that are looked at to tell what a file is

# Between these two files, or on this system. Reading and writing takes over, and meets what was no such refusal again.
_CANNOT_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EIO}


class InputFile:
    """A regular file, opened once; every byte of it that is used comes through `read` or `read_into`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.ours = False  # written by this process: what cannot be read of it is no fault of the input
        self._fd = -1
        try:
            # Asked before opening too: merely opening a device can act on it. O_NONBLOCK: a FIFO must not block.
            self._check_regular(os.stat(self.path))
            self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            status = os.fstat(self._fd)
            self._check_regular(status)
        except (OSError, ValueError) as error:
            self.close()
            rule = getattr(error, "strerror", None) or str(error)
            raise self.error("", leads_nowhere(self.path) or rule) from None
        except InputError:
            self.close()
            raise
        self.size = status.st_size

    def _check_regular(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            kind = next(
                (
                    k
                    for test, k in (
                        (stat.S_ISDIR, "a folder"),
                        (stat.S_ISFIFO, "a FIFO"),
                        (stat.S_ISSOCK, "a socket"),
                    )
                    if test(status.st_mode)
                ),
                "a device",
            )
            raise self.error("", f"not a regular file but {kind}")

    def error(self, where: object, rule: str) -> InputError:
        return InputError.at(self.path, where, rule)

    def _unreadable(self, where: object, rule: str) -> ConverterError:
        error = self.error(where, rule)
        return ConverterError(f"{error} (a faulty disk, or another program?)") if self.ours else error

    def read(self, offset: int, count: int, what: str = "") -> bytes:
        """Exactly `count` bytes from `offset`."""
        if offset < 0 or count < 0 or offset + count > self.size:
            raise self.error(
                what,
                f"bytes {offset} to {offset + count} lie outside the file of {self.size} bytes (truncated?)",
            )
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
                raise self._unreadable(what, f"offset {offset + done}: {error.strerror}") from None
            if count == 0:
                raise self._unreadable(what, f"the file ends at offset {offset + done}, it shrank while it was read")
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

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def leads_nowhere(path: str | os.PathLike[str]) -> str:
    """What is wrong with a path that is a link to nothing, or lies behind one, as in a cache whose blobs are gone; ''
    for any other."""
    whole = os.path.abspath(path)
    for where in (Path(whole), *Path(whole).parents):
        with suppress(OSError, ValueError):  # what may not be looked at, or goes round in circles, is another matter
            if os.path.islink(where):
                try:
                    os.stat(where)
                except FileNotFoundError:
                    behind = "" if str(where) == whole else f"lies behind {printable(where)}, "
                    to = printable(os.readlink(where))
                    return f"{behind}a link to nothing: {to} is not there (No such file or directory): fetch it again"
    return ""


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the system refuses in here is an error of the input that lies at this path, in one line.

    >>> with reading("weights"):
    ...     os.listdir("weights/none")
    Traceback (most recent call last):
    converter.errors.InputError: weights/none: No such file or directory
    """
    if "\0" in os.fspath(path):
        raise InputError.at(path, "", "not a path: a null character is in it")
    try:
        yield
    except OSError as error:
        raise InputError.at(error.filename or path, "", error.strerror or str(error)) from error


def reads(call: _Call) -> _Call:
    """A function whose first argument is the path of an input: `reading` that, all the time."""

    @wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        with reading(args[0] if args else next(iter(kwargs.values()))):
            return call(*args, **kwargs)

    return cast(_Call, guarded)


def present(path: str | os.PathLike[str]) -> bool:
    """Whether anything has this name, be it a link to nothing. What cannot be told is an error: a config or a record
    that is there and not seen would be missed in silence."""
    with reading(path):
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def container_of(file: InputFile) -> str:
    """'zip' or 'safetensors', told by the first bytes; anything else is refused under its own name."""
    head = file.read(0, min(file.size, _HEAD))
    if not head:
        raise file.error("", "empty")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    # A safetensors file begins with the length of its header, and the header with '{'.
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return "safetensors"
    for offset, magic, what in _FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            raise file.error("offset 0", f"this is {what}")
    if text := text_in(head, whole=len(head) == file.size):
        raise file.error("offset 0", text)
    if not any(head):
        raise file.error("offset 0", "this begins with zeros (an unfinished download?)")
    raise file.error("offset 0", f"neither a torch archive nor a safetensors file (it begins with {head[:8].hex(' ')})")
