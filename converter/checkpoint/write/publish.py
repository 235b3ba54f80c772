"""Write a folder, or a file, that appears whole or not at all.

Everything goes into a sibling `.NAME.<random>.partial` folder, is flushed to disk, and is renamed into
place. So at any moment the target is the whole old folder or the whole new one, also after a crash, and
no file of the old one (say, a stale shard index) stays behind in the new one. Where two folders cannot change
places, which is everywhere but on Linux, there is no target for the instant between two renames; a crash just then
leaves the old one whole beside it, and the next run names it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from ... import system
from ...errors import ConverterError, human_bytes, printable
from .interrupt import pending_cleanup, signals_deferred
from .target import REPLACED, Allowed, check_replaceable, nearest, target_error, temporary_prefix

# A disk that is full or fails. In here these come from writing: what cannot be read is an error of its own.
_NAMES = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ESTALE", "EREMOTEIO", "ENXIO", "ENODEV")
_FAULTS = {getattr(errno, name) for name in _NAMES if hasattr(errno, name)}  # not every system knows all of them


_TAKEN = "was created by someone else in the meantime"


def write_error(path: Path, error: OSError) -> ConverterError:
    """The error that a path could not be written: the environment's fault where the disk is, else the call's."""
    if error.errno in _FAULTS:
        return ConverterError(f"{printable(path)}: cannot be written: {error.strerror}")
    return target_error(path, error)


class Publication:
    """A folder that appears whole, by `publish()`; leaving the `with` without it removes everything.

    >>> with Publication(Path("new", "out"), needed_bytes=2) as out:
    ...     out.write_text("config.json", "{}")  # and then out.publish()
    >>> os.path.exists("new")
    False
    """

    def __init__(
        self, target: Path, *, needed_bytes: int, overwrite: bool = False, allowed: Allowed = lambda _: {}
    ) -> None:
        self.target = Path(os.path.realpath(target))
        self.path = self.target.with_name(f"{temporary_prefix(self.target)}.{secrets.token_hex(8)}.partial")
        self.published = False
        self.notes: list[str] = []  # what failed once the target was there, in words
        self._needed, self._overwrite, self._allowed = needed_bytes, overwrite, allowed
        self._parents: list[Path] = []  # those that this one created, outermost first
        self._replaced = False  # whether there was an old target, which is then deleted
        self._to_delete: Path | None = None  # what `discard` deletes; None while it may be someone else's

    def __enter__(self) -> Publication:
        try:
            with signals_deferred:
                pending_cleanup.add(self.discard)
                disk = shutil.disk_usage(nearest(self.target.parent))
                if disk.total and disk.free < self._needed:  # some file systems tell no size at all
                    sizes = f"{human_bytes(self._needed)} needed, {human_bytes(disk.free)} free"
                    raise target_error(self.target, f"not enough space on the disk: {sizes}")
                for folder in reversed(self.target.parents):
                    if not folder.is_dir():
                        with suppress(FileExistsError):  # someone else was faster: not to be removed here
                            os.mkdir(folder)
                            self._parents.append(folder)
                os.mkdir(self.path)
                self._to_delete = self.path
        except BaseException as error:
            self.__exit__(None, error)
            if isinstance(error, OSError):
                raise write_error(self.target, error) from error
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object = None) -> None:
        self.discard()
        if isinstance(error, OSError) and error.errno in _FAULTS:
            raise write_error(self.target, error) from error

    def discard(self) -> None:
        """Delete what is not, or no longer, wanted. What resists is left for `leftovers` to name, and once the target
        is there, for `notes`."""
        with signals_deferred:
            if self._to_delete is not None:
                shutil.rmtree(self._to_delete, ignore_errors=True)
                if self.published and os.path.lexists(self._to_delete):
                    try:  # once more, up to the first failure
                        shutil.rmtree(self._to_delete)
                    except OSError as error:
                        of_old = "what is left of the old result"
                        what = of_old if self._replaced else "the folder in which the result was written"
                        why = f"{printable(error.filename or self._to_delete)}: {error.strerror or error}"
                        remains = f"{printable(self._to_delete)} is {what}, and could not be deleted"
                        self.notes.append(f"{remains} ({why}): delete it")
                self._to_delete = None
            for folder in [] if self.published else reversed(self._parents):
                with suppress(OSError):  # someone else has put something there
                    folder.rmdir()
            pending_cleanup.discard(self.discard)

    def create(self, name: str) -> int:
        """A descriptor that writes the new file `name`, such as "vae/config.json"; the caller closes it."""
        with self._place(name) as path:
            return system.create(path)

    def link(self, name: str, to: Path) -> None:
        """Make the new symbolic link `name`."""
        with self._place(name) as path:
            os.symlink(to, path)

    @contextmanager
    def _place(self, name: str) -> Iterator[Path]:
        """Where something new of this name goes, in a folder that is there by then."""
        path = self.path / PurePosixPath(name)
        if self.path not in path.parents or ".." in path.parts:
            raise ConverterError(f"{printable(name)}: not a path inside the output folder")
        try:
            for folder in reversed(path.parents):
                if self.path in folder.parents:  # never the folder itself: it may just have been discarded
                    with suppress(FileExistsError):
                        os.mkdir(folder)
            yield path
        except OSError as error:
            raise write_error(path, error) from error

    def write_text(self, name: str, text: str) -> None:
        """Write the new file `name`, in UTF-8."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write the new file `name`."""
        fd, rest = self.create(name), memoryview(data)
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)

    def publish(self) -> None:
        """Flush everything to the disk and rename it into place, once; a signal during the rename waits.

        Raises: `ConverterError` where the target is as it was. What fails after the rename is in `notes`: the target
        is there by then, whole.
        """
        try:
            for folder, _, files in os.walk(self.path, topdown=False):
                for path in (*(Path(folder, name) for name in files), Path(folder)):
                    if not path.is_symlink():  # what it leads to is not ours
                        system.flush_path(path)
            with signals_deferred:
                self._move()
                self.published = True
                try:  # flush what the rename changed
                    for path in (self.target, *reversed(self._parents)):
                        system.flush_path(path.parent)
                except OSError as error:
                    rule = "its new name may not be on the disk yet, and a system crash now could lose it"
                    self.notes.append(f"{printable(self.target)} is complete; {rule} ({error.strerror or error})")
                self.discard()  # of the old folder, now that the new one is sure to stay
        except OSError as error:
            raise write_error(self.target, error) from error

    def _move(self) -> None:
        """Give the target's name to the new folder; `_to_delete` is then the old one, where there was one."""
        try:
            system.rename(self.path, self.target)  # takes the place of nothing, or of an empty folder
            self._to_delete = None
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if not self._overwrite:
                raise target_error(self.target, _TAKEN) from error
        old = self.path if system.exchange(self.path, self.target) else self.path.with_suffix(".old")
        if old != self.path:
            # For an instant there is no target: a crash right here leaves the old one, whole, as `.old`.
            system.rename(self.target, old)
        self._to_delete = None
        try:
            check_replaceable(self.target, old, self._allowed)  # it may have come since `check_target`
            if old != self.path:
                system.rename(self.path, self.target)
        except BaseException:
            try:
                if old != self.path:
                    system.rename(old, self.target)
                elif not system.exchange(self.path, self.target):
                    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
            except OSError as error:
                raise target_error(old, "is the old target, whole: it could not be put back") from error
            self._to_delete = self.path
            raise
        self._replaced, self._to_delete = True, old
        with suppress(OSError):  # a kill while it is deleted leaves it under a name that says what it is
            system.rename(old, old.with_suffix(REPLACED))
            self._to_delete = old.with_suffix(REPLACED)


class FilePublication(Publication):
    """A single file that appears whole, by `publish()`: it is written in the `.partial` folder, under its own name."""

    def _move(self) -> None:
        written = self.path / self.target.name
        if self._overwrite:
            system.replace(written, self.target)
            return
        try:
            os.link(written, self.target)  # unlike a rename, never over a file that came in the meantime
        except OSError as error:
            if error.errno in _FAULTS:
                raise
            # A file system without hard links says so in many ways.
            if os.path.lexists(self.target):
                raise target_error(self.target, _TAKEN) from error
            system.rename(written, self.target)


def write_file(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a file, whole or not at all.

    Raises: `UsageError` where it may not be written or is there already, `ConverterError` for a full disk.

    >>> write_file(tmp / "new.bin", b"1", overwrite=False)
    >>> (tmp / "new.bin").read_bytes()
    b'1'
    """
    if os.path.lexists(path) and not overwrite:
        raise target_error(path, "exists; use `overwrite` to replace it")
    with FilePublication(path, needed_bytes=len(data), overwrite=overwrite) as out:
        out.write_bytes(out.target.name, data)
        out.publish()
