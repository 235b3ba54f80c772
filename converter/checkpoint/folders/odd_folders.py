"""Folders that are not what they look like: a repository in a hub's cache, the loose members of a torch file."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import InputError, printable
from ..file import InputFile


def in_cache(folder: Path) -> Path:
    """Of a repository in a hub's cache (`models--OWNER--NAME`) the snapshot in use: that of `refs/main`, or the only
    one; any other folder as it is."""
    snapshots, main = folder / "snapshots", folder / "refs" / "main"
    if not (snapshots.is_dir() and ((folder / "refs").is_dir() or (folder / "blobs").is_dir())):
        return folder
    names = sorted(path.name for path in snapshots.iterdir() if path.is_dir())
    wanted = ""
    if os.path.lexists(main):
        with InputFile(main) as file:
            wanted = file.read(0, min(file.size, 200)).decode(errors="replace").strip()
    if wanted in names or (len(names) == 1 and not wanted):
        return snapshots / (wanted or names[0])
    which = f"its refs/main is {printable(wanted, 60)}" if wanted else "and none is its refs/main"
    there = ", ".join(printable(name, 60) for name in names[:4]) + (" ..." if len(names) > 4 else "")
    rule = f"a cached repository with the snapshots {there}; {which}: give the folder of the one that is meant"
    if not names:
        rule = "a cached repository without a snapshot: fetch it again"
    raise InputError.at(folder, "snapshots", rule)


def refuse_loose(folder: Path, *, inside: bool) -> None:
    """Raises: `InputError` where the members of a torch file lie loose in a folder, or (`inside`) in one in it, as
    browsers and file managers leave what they take for a zip."""
    for place in (folder, *(sorted(path for path in folder.iterdir() if path.is_dir()) if inside else ())):
        if (place / "data.pkl").is_file() and ((place / "data").is_dir() or (place / "version").is_file()):
            rule = "an unpacked torch file (data.pkl, data/0 ... lie loose): fetch it again without unpacking it"
            raise InputError.at(place, "data.pkl", rule)
