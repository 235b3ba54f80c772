"""Write a folder that appears whole or not at all.

Everything goes into a sibling `.NAME.<random>.partial` folder, is flushed to disk, and is renamed into
place. So at any moment the target is the whole old folder or the whole new one, also after a crash, and
no file of the old one (say, a stale shard index) stays behind in the new one.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     target = check_target(Path(folder, "out"), Path("a.pth"), overwrite=False, allowed=str.isascii)
...     with interruptible(), Publication(target, needed_bytes=2) as out:
...         out.write_text("vae/config.json", "{}")
...         os.listdir(folder) == [out.path.name]
...         out.publish()
...     os.listdir(folder), os.listdir(target)
True
(['out'], ['vae'])
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import final

from ..errors import ConverterError, UsageError, human_bytes, printable

Allowed = Callable[[str], bool]  # may a file of this name in the target, "vae/config.json", be deleted?
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # these come from writing, never from reading


def _refusal(path: Path, rule: str | OSError) -> UsageError:
    return UsageError(f"{printable(path)}: {rule.strerror if isinstance(rule, OSError) else rule}")


def _same(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return os.path.samefile(one, other)  # spelling says nothing where case or bind mounts play a part
    return False


def _nearest(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if os.path.lexists(p) or p == p.parent)


def _refuse_foreign(target: Path, folder: Path, allowed: Allowed) -> None:
    """Replacing `target`, now at `folder`, deletes it: all in it must be files as we write them."""
    found: list[str] = [] if folder.is_dir() and not folder.is_symlink() else ["."]
    waiting = [] if found else [""]
    while waiting and len(found) < 4:  # a loop, not recursion: the depth is the user's
        inside = waiting.pop()
        entries = sorted(os.scandir(folder / inside), key=lambda entry: entry.name)
        if inside and not entries:
            found.append(inside)  # we never write an empty folder
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{inside}{entry.name}/")
            elif not entry.is_file(follow_symlinks=False) or not allowed(inside + entry.name):
                found.append(inside + entry.name)
    if found:
        names = ", ".join(map(printable, found[:3])) + (" and more" if len(found) > 3 else "")
        raise _refusal(target, f"--overwrite would delete what this tool did not write: {names}")


def check_target(target: Path, source: Path, *, overwrite: bool, allowed: Allowed) -> Path:
    """The real path to write to, or a `UsageError`; called before a byte of `source` is read.

    >>> check_target(Path("out"), Path("a.pth"), overwrite=False, allowed=str.isascii).name
    'out'
    """
    for path in (target, _nearest(target)):  # a link that leads nowhere may also be among the parents
        if os.path.islink(path) and not os.path.exists(path):
            raise _refusal(path, "is a dangling symbolic link")
    real = Path(os.path.realpath(target))
    if any(_same(path, source) for path in (real, *real.parents)):
        raise _refusal(target, "is the input or lies inside it; name a folder elsewhere")
    parents = {*Path(os.path.abspath(source)).parents, *Path(os.path.realpath(source)).parents}
    if any(_same(path, real) for path in parents):
        raise _refusal(target, "holds the input, which would be lost; name a folder elsewhere")
    if os.path.exists(real) and not os.path.isdir(real):
        raise _refusal(target, "exists and is not a folder")
    if os.path.ismount(real) or _same(real, Path()):
        # The first cannot be renamed over, and the second would vanish from under the user's shell.
        raise _refusal(target, "is a mount point or the current folder; name a folder inside it")
    parent = _nearest(real.parent)
    if not os.path.isdir(parent):
        raise _refusal(target, f"its parent {printable(parent)} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise _refusal(target, f"its parent {printable(parent)} is not writable")
    try:
        if os.path.isdir(real) and any(real.iterdir()):
            if not overwrite:
                raise _refusal(target, "exists and is not empty; use --overwrite to replace it")
            _refuse_foreign(target, real, allowed)
            for folder, folders, files in os.walk(source):  # a cache of links may lead into the target
                for path in (Path(folder, name) for name in folders + files):
                    if path.is_symlink() and real in Path(os.path.realpath(path)).parents:
                        raise _refusal(target, f"holds what the input's {printable(path)} links to")
    except OSError as error:
        raise _refusal(target, error) from error
    return real


def leftovers(target: Path) -> list[Path]:
    """Siblings that a killed run (or one still running) left: to be named to the user, never touched.

    A `.old` exists only where folders cannot be exchanged; if the target is missing, it is the old target.
    """
    real = Path(os.path.realpath(target))
    form = re.compile(rf"\.{re.escape(real.name)}\.[0-9a-f]{{16}}\.(partial|old)")
    with suppress(OSError):
        return sorted(path for path in real.parent.iterdir() if form.fullmatch(path.name))
    return []


class Interrupted(KeyboardInterrupt):
    """A signal asked us to stop. Not an `Exception`, so that nothing swallows it on the way."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class _Held:
    """Puts off `Interrupted` while half a step would be worse than a short wait."""

    depth = 0
    pending: int | None = None

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if not self.depth and self.pending is not None:
            signum, self.pending = self.pending, None
            signal.raise_signal(signum)


_held = _Held()
_live: set[Publication] = set()


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into `Interrupted`, and ignore the next while that cleans up.

    >>> try:
    ...     with interruptible():
    ...         signal.raise_signal(signal.SIGTERM)
    ... except Interrupted as stop:
    ...     print(stop, stop.exit_code)
    interrupted by SIGTERM 143
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows handlers in the main thread only
        return
    raised, previous = False, {}

    def handler(signum: int, frame: FrameType | None) -> None:
        nonlocal raised
        if _held.depth:
            _held.pending = signum
        elif not raised:
            raised = True
            raise Interrupted(signum)

    try:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if (before := signal.getsignal(signum)) != signal.SIG_IGN:  # `nohup` must keep its meaning
                previous[signum] = before or signal.SIG_DFL
                signal.signal(signum, handler)
        yield
    except Interrupted:
        for publication in list(_live):  # it may have hit between a `with` and its body
            publication.discard()
        raise
    finally:
        raised = True
        for signum, before in previous.items():
            signal.signal(signum, before)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    try:
        import ctypes  # here, because some builds of Python lack it

        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (ImportError, AttributeError, OSError):
        return False
    here, swap = ctypes.c_int(-100), ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
        return True
    if (code := ctypes.get_errno()) in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))


def _sync(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:  # folders cannot be opened or flushed everywhere, and that is no loss
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


@final
class Publication:
    """A folder that appears whole, by `publish()`; leaving the `with` without it removes everything.

    >>> with Publication(Path("new", "out"), needed_bytes=2) as out:
    ...     out.write_text("config.json", "{}")
    >>> os.path.exists("new")
    False
    """

    def __init__(
        self, target: Path, *, needed_bytes: int, overwrite: bool = False, allowed: Allowed = lambda _: False
    ) -> None:
        self.target = Path(os.path.realpath(target))
        self.path = self.target.with_name(f".{self.target.name}.{secrets.token_hex(8)}.partial")
        self.published = False
        self._needed, self._overwrite, self._allowed = needed_bytes, overwrite, allowed
        self._parents: list[Path] = []  # those that we made, outermost first
        self._doomed: Path | None = None  # what `discard` deletes; None while it is not certain to be ours

    def __enter__(self) -> Publication:
        try:
            with _held:
                _live.add(self)
                disk = os.statvfs(_nearest(self.target.parent))
                free = disk.f_bavail * disk.f_frsize
                if disk.f_blocks and free < self._needed:  # some file systems tell no size at all
                    sizes = f"{human_bytes(self._needed)} needed, {human_bytes(free)} free"
                    raise _refusal(self.target, f"not enough space on the disk: {sizes}")
                for folder in reversed(self.target.parents):
                    if not folder.is_dir():
                        with suppress(FileExistsError):  # someone else was faster: not ours to remove
                            folder.mkdir()
                            self._parents.append(folder)
                self.path.mkdir()
                self._doomed = self.path
        except BaseException as error:
            self.__exit__(None, error)
            if isinstance(error, OSError):
                raise _refusal(self.target, error) from error
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object = None) -> None:
        self.discard()
        if isinstance(error, OSError) and error.errno in _FULL:
            raise _refusal(self.target, error) from error

    def discard(self) -> None:
        """Delete what is not, or no longer, wanted. What resists is left for `leftovers` to name."""
        with _held:
            if self._doomed is not None:
                shutil.rmtree(self._doomed, ignore_errors=True)
                self._doomed = None
            for folder in [] if self.published else reversed(self._parents):
                with suppress(OSError):  # someone else has put something there
                    folder.rmdir()
            _live.discard(self)

    def create(self, name: str) -> int:
        """A descriptor that writes the new file `name`, such as "vae/config.json"; the caller closes it."""
        path = self.path / PurePosixPath(name)
        if self.path not in path.parents or ".." in path.parts:
            raise ConverterError(f"{printable(name)}: not a path inside the output folder")
        try:
            for folder in reversed(path.parents):
                if self.path in folder.parents:  # never the folder itself: it may just have been discarded
                    folder.mkdir(exist_ok=True)
            return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise _refusal(path, error) from error

    def write_text(self, name: str, text: str) -> None:
        """Write the new file `name`, in UTF-8."""
        fd, rest = self.create(name), text.encode()
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)

    def publish(self) -> None:
        """Flush everything to the disk and rename it into place, once; a signal during the rename waits."""
        try:
            for folder, _, files in os.walk(self.path, topdown=False):
                for path in (*(Path(folder, name) for name in files), Path(folder)):
                    _sync(path)
            with _held:
                self._move()
                self.published = True
                for path in (self.target, *reversed(self._parents)):
                    _sync(path.parent)
                self.discard()  # the old folder, now that the new one is sure to stay
        except OSError as error:
            raise _refusal(self.target, error) from error

    def _move(self) -> None:
        """Give the target's name to the new folder; `_doomed` is then the old one, where there was one."""
        try:
            os.rename(self.path, self.target)  # takes the place of nothing, or of an empty folder
            self._doomed = None
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if not self._overwrite:
                raise _refusal(self.target, "was created by someone else in the meantime") from error
        old = self.path if _exchange(self.path, self.target) else self.path.with_suffix(".old")
        if old != self.path:
            # For an instant there is no target: a crash right here leaves the old one, whole, as `.old`.
            os.rename(self.target, old)
        self._doomed = None
        try:
            _refuse_foreign(self.target, old, self._allowed)  # it may have come since `check_target`
            if old != self.path:
                os.rename(self.path, self.target)
        except BaseException:
            self._put_back(old)
            raise
        self._doomed = old

    def _put_back(self, old: Path) -> None:
        try:
            if old != self.path:
                os.rename(old, self.target)
            elif not _exchange(self.path, self.target):
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        except OSError as error:
            raise _refusal(old, "is the old target, whole: it could not be put back") from error
        self._doomed = self.path
