"""What Linux, macOS and Windows do differently. The rest of the package asks here, and is the same on all of them.

A call that only some systems have is looked up when it is needed, and has a portable way beside it, with the same
result. What there is no portable way for: two folders change places in one step on Linux alone (macOS has `renamex_np`
for it, which is not used, since it could not be tried), and Windows puts no folder on the disk when it is asked to.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

AnyPath = str | os.PathLike[str]
_IN_USE = (5, 32)  # of Windows: access denied, sharing violation
WAITS = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds until a file that is in use is tried again
_positions: dict[int, Lock] = {}  # by descriptor; the next file with that number may have the same


def open_to_read(path: AnyPath) -> int:
    """A descriptor to read a file by; one on a FIFO that waits for nobody."""
    return os.open(path, os.O_RDONLY | _flag("O_NONBLOCK") | _flag("O_BINARY"))


def create(path: AnyPath) -> int:
    """A descriptor that writes a new file."""
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _flag("O_BINARY"), 0o666)


def _flag(name: str) -> int:
    """A flag of `os.open`, 0 where it means nothing. (Without O_BINARY Windows changes line ends.)"""
    return getattr(os, name, 0)


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Read into `view` from `offset` of a file, from several threads at once; how many bytes, 0 at its end."""
    if hasattr(os, "preadv"):
        count: int = os.preadv(fd, [view], offset)
        return count
    with _position(fd, offset), FileIO(fd, closefd=False) as file:
        return file.readinto(view)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset` of a file, from several threads at once."""
    view = memoryview(data)
    while view:
        if hasattr(os, "pwrite"):
            count: int = os.pwrite(fd, view, offset)
        else:
            with _position(fd, offset):
                count = os.write(fd, view)
        view, offset = view[count:], offset + count


@contextmanager
def _position(fd: int, offset: int) -> Iterator[None]:
    """The descriptor's position is at `offset`, and nobody else's until the block ends."""
    with _positions.setdefault(fd, Lock()):
        os.lseek(fd, offset, os.SEEK_SET)
        yield


def map_privately(fd: int, offset: int, count: int) -> memoryview | None:
    """Bytes of a file as pages that are copied when they are written to; None where the system cannot."""
    import mmap

    before = offset % mmap.ALLOCATIONGRANULARITY
    try:
        pages = mmap.mmap(fd, count + before, access=mmap.ACCESS_COPY, offset=offset - before)
    except (OSError, ValueError):  # the last where the file has become shorter, which reading it tells
        return None
    return memoryview(pages)[before:]


def reserve(fd: int, size: int) -> None:
    """Give a new file its size and, where the file system can, its place on the disk: writing then costs less."""
    if call := _of_c("fallocate"):
        import ctypes

        if call(fd, 0, ctypes.c_long(0), ctypes.c_long(size)) == 0:
            return
    os.ftruncate(fd, size)  # a disk that is too full says so when it is written to


def begin_flush(fd: int) -> None:
    """Let the disk begin with what was written so far, where the system can. Whether it failed, `flush` says."""
    if call := _of_c("sync_file_range"):
        import ctypes

        call(fd, ctypes.c_longlong(0), ctypes.c_longlong(0), 2)  # SYNC_FILE_RANGE_WRITE, to the end


def flush(fd: int) -> None:
    """Put what was written to a file on the disk."""
    if sys.platform == "darwin":  # where `fsync` is content with the disk's own memory
        import fcntl

        with suppress(OSError):  # not every file system can
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def flush_path(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk. That a system does so for no folder is no loss."""
    # Windows flushes only what is open for writing; elsewhere a file may by now be read-only.
    way = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY
    try:
        fd = os.open(path, way | _flag("O_BINARY"))
        try:
            flush(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def rename(one: AnyPath, other: AnyPath) -> None:
    """Rename a file or folder; a folder also takes the place of an empty one."""
    try:
        _patiently(os.rename, one, other)
    except FileExistsError:
        if sys.platform == "win32" and os.path.isdir(one) and not os.path.islink(other):
            os.rmdir(other)  # fails if it is not an empty folder
            return _patiently(os.rename, one, other)
        raise


def replace(one: AnyPath, other: AnyPath) -> None:
    """Rename a file, in one step, also over another."""
    _patiently(os.replace, one, other)


def _patiently(move: Callable[[AnyPath, AnyPath], None], one: AnyPath, other: AnyPath) -> None:
    """On Windows nothing is renamed that a program has open, and for a moment a virus scanner opens what is new."""
    for wait in (*WAITS, None):
        try:
            return move(one, other)
        except OSError as error:
            if getattr(error, "winerror", None) not in _IN_USE:
                raise
            if wait is None:
                raise PermissionError(error.errno, f"{error.strerror} (is it open in another program?)") from error
            time.sleep(wait)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where the system or the file system cannot."""
    if not (call := _of_c("renameat2")):
        return False
    import ctypes

    here, swap = ctypes.c_int(-100), ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
        return True
    if (code := ctypes.get_errno()) in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))


def trim_memory() -> None:
    """Give what was freed back to the system, where the C library keeps it and can (glibc)."""
    if call := _of_c("malloc_trim"):
        call(0)


def _of_c(name: str) -> Any:
    """A function of the C library; None where it has none of that name, or cannot be asked."""
    try:
        import ctypes  # here, because some builds of Python lack it

        return getattr(ctypes.CDLL(None, use_errno=True), name)
    except (ImportError, AttributeError, OSError, TypeError):  # the last on Windows, where None is no library
        return None


def read_link(path: AnyPath) -> str:
    r"""Where a link leads to, as it was written. (Windows puts `\\?\` before it.)"""
    to = os.readlink(path)
    if sys.platform == "win32":
        to = "\\" + to[7:] if to.startswith("\\\\?\\UNC\\") else to.removeprefix("\\\\?\\")
    return to


def ignores_case(path: AnyPath) -> bool:
    """Whether names that differ in case only are one where this path lies, as on most disks of macOS and Windows. It
    need not exist: the nearest folder above it that has letters in its name is asked."""
    for place in (Path(path), *Path(path).parents):
        other = place.with_name(place.name.swapcase()) if place.name else place
        if other.name != place.name and os.path.lexists(place):
            with suppress(OSError):
                return not os.path.islink(other) and os.path.samefile(place, other)
            return False
    return False


def stop_signals() -> list[signal.Signals]:
    """The signals by which a user or the system asks to stop."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # of which Windows lacks SIGHUP, all others SIGBREAK
    return [getattr(signal, name) for name in names if hasattr(signal, name)]
