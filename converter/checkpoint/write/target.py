"""May a folder or file be created or replaced here? Checked before a byte of the input is read: nothing is lost."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from ...errors import InputError, UsageError, printable
from ...system import read_link
from ..file import InputFile

REPLACED = ".replaced"  # of an old target that has given way to the new one, and is being deleted
# What of a folder may be deleted, by names such as "vae/config.json": where a link leads to, '' for a file; empty where
# this tool wrote none of it.
Allowed = Callable[[Path], Mapping[str, str]]

_OF_SYSTEMS = {".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini"}
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
_LARGEST = 1 << 24  # bytes of one of those
HUB_CACHE = ".cache/huggingface/"


def target_error(path: Path, rule: str | OSError) -> UsageError:
    """The error that names a path and why nothing can be written there."""
    return UsageError(f"{printable(path)}: {rule.strerror if isinstance(rule, OSError) else rule}")


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file or folder from all others; spelling says nothing where case or bind mounts play a part."""
    with suppress(OSError):
        there = os.stat(path)
        return there.st_dev, there.st_ino
    return None


def _is_one_of(path: Path, others: Iterable[Path]) -> bool:
    identity = _identity(path)
    return identity is not None and identity in map(_identity, others)


def nearest(path: Path) -> Path:
    """The path itself, or the closest parent that exists."""
    return next(p for p in (path, *path.parents) if os.path.lexists(p) or p == p.parent)


def check_replaceable(target: Path, folder: Path, allowed: Allowed) -> None:
    """Replacing `target`, now at `folder`, deletes it: all in it must be files that we wrote, or no one's work."""
    others: list[str] = [] if folder.is_dir() and not folder.is_symlink() else ["."]
    we_wrote: Mapping[str, str] = {} if others else allowed(folder)
    waiting = [] if others else [""]
    while waiting and len(others) < 4:  # a loop, not recursion: the depth is the user's
        inside = waiting.pop()
        entries = sorted(os.scandir(folder / inside), key=lambda entry: entry.name)
        if inside and not entries and not inside.startswith(HUB_CACHE):
            others.append(inside)  # we never write an empty folder
        siblings = {entry.name for entry in entries}
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{inside}{entry.name}/")
            elif entry.is_symlink():
                if we_wrote.get(inside + entry.name) != read_link(entry.path):
                    others.append(inside + entry.name)
            elif not entry.is_file(follow_symlinks=False) or not (
                we_wrote.get(inside + entry.name) == "" or _left_by_system(inside, entry, siblings)
            ):
                others.append(inside + entry.name)
    if others:
        names = ", ".join(map(printable, others[:3])) + (" and more" if len(others) > 3 else "")
        raise target_error(target, f"is not empty, and is kept: this tool did not write, or has no record of, {names}")


def _left_by_system(inside: str, entry: os.DirEntry[str], siblings: Set[str]) -> bool:
    """Whether a file is one that a system leaves in any folder that it shows, or the hub's client next to what it
    downloads: nobody's work, and written again when it is missing."""
    if inside.startswith(HUB_CACHE):
        return entry.name in ("CACHEDIR.TAG", ".gitignore") or entry.name.endswith(
            (".metadata", ".lock", ".incomplete")
        )
    if entry.stat(follow_symlinks=False).st_size > _LARGEST:
        return False
    if entry.name.startswith("._"):  # what macOS knows of a file on a disk that has no place for it
        if entry.name[2:] in siblings:
            return True
        with suppress(InputError), InputFile(entry.path) as file:
            return file.read(0, len(_APPLE_DOUBLE)) == _APPLE_DOUBLE
        return False
    return entry.name in _OF_SYSTEMS


def check_target(target: Path, source: Path, *, overwrite: bool, allowed: Allowed | None = None) -> Path:
    """The real path of what is to be written, or a `UsageError`; called before a byte of `source` is read.

    Args:
        allowed: what of a folder that is there may be deleted; None where a file is to be written.

    >>> check_target(Path("new.pth"), Path("a.pth"), overwrite=False).name
    'new.pth'
    """
    for path in (target, nearest(target)):  # a dangling link may also be among the parents
        if os.path.islink(path) and not os.path.exists(path):
            raise target_error(path, "is a dangling symbolic link")
    real = Path(os.path.realpath(target))
    if _is_one_of(source, (real, *real.parents)):
        raise target_error(target, "is the input or lies inside it; name a place elsewhere")
    parent = nearest(real.parent)
    if not os.path.isdir(parent):
        raise target_error(target, f"its parent {printable(parent)} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise target_error(target, f"its parent {printable(parent)} is not writable")
    try:
        with suppress(FileNotFoundError):
            os.lstat(real)  # a name that is too long is one only when it is used, hours later
        if allowed is not None:
            there = _folder_there(target, real, source, allowed)
        elif os.path.isdir(real):
            raise target_error(target, "is a folder; name the file to write")
        elif os.path.exists(real) and not os.path.isfile(real):
            raise target_error(target, "exists and is no regular file")
        else:
            there = "exists" if os.path.exists(real) else ""
        if there and not overwrite:
            raise target_error(target, f"{there}; use `overwrite` to replace it")
        for path in _links_in(source) if there else ():  # a cache is full of them
            leads_to = Path(os.path.realpath(path))
            if _is_one_of(real, [leads_to]) or real in leads_to.parents:
                how = "is" if allowed is None else "holds"
                raise target_error(target, f"{how} what the input's {printable(path)} links to")
    except OSError as error:
        raise target_error(target, error) from error
    return real


def _folder_there(target: Path, real: Path, source: Path, allowed: Allowed) -> str:
    """That there is a folder with something in it already, in words; '' where there is none."""
    if _is_one_of(
        real, (path for where in (os.path.abspath, os.path.realpath) for path in Path(where(source)).parents)
    ):
        raise target_error(target, "holds the input, which would be lost; name a folder elsewhere")
    if os.path.exists(real) and not os.path.isdir(real):
        raise target_error(target, "exists and is not a folder")
    if os.path.ismount(real) or _is_one_of(real, [Path()]):
        # The first cannot be renamed over, and the second would vanish from under the user's shell.
        raise target_error(target, "is a mount point or the current folder; name a folder inside it")
    if not (os.path.isdir(real) and any(real.iterdir())):
        return ""
    check_replaceable(target, real, allowed)  # first: do not advise --overwrite where it cannot help
    return "exists and is not empty"


def _links_in(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        yield from filter(os.path.islink, (Path(place, name) for name in folders + files))


def temporary_prefix(target: Path) -> str:
    """The prefix of a target's temporary siblings: its own name; for a long name a part of it, and a digest
    that tells it from others."""
    name = target.name
    return f".{name}" if len(name) <= 50 else f".{name[:40]}~{sha256(os.fsencode(name)).hexdigest()[:16]}"


def leftovers(target: Path) -> list[Path]:
    """Siblings that a killed run (or one still running) left: to be named to the user, never touched.

    A `.old` exists only where folders cannot be exchanged; if the target is missing, it is the old target. What is left
    of a `.replaced` nobody needs.
    """
    real = Path(os.path.realpath(target))
    form = re.compile(rf"{re.escape(temporary_prefix(real))}\.[0-9a-f]{{16}}\.(partial|old|replaced)")
    with suppress(OSError):
        return sorted(real.parent / name for name in os.listdir(real.parent) if form.fullmatch(name))
    return []
