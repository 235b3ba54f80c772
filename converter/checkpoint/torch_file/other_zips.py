"""Zip files that torch did not write, for the error line: one around a checkpoint, or a torch file packed again."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import printable, shortened
from ..weight_names import SUFFIXES
from .zip_directory import ZipEntry

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".xz", ".zst", ".bz2", ".rar")  # that may hold one
_WRITTEN_BY_TORCH = (0, 45)  # `made_by` as torch writes it, and as this tool does
_MACOS = ("._", ".DS_Store")  # what macOS puts in, and "__MACOSX/"


def around(entries: Iterable[ZipEntry]) -> str:
    """That a zip is one around checkpoints, and around which; '' where it is not.

    >>> entry = ZipEntry(788, 20, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, b"models/base.pth", b"")
    >>> around([entry])
    'this is a zip that holds models/base.pth: unpack it first'
    """
    names = [name for name in _names(entries) if not name.startswith("__MACOSX/")]
    files = [name for name in names if not name.rpartition("/")[2].startswith(_MACOS)]
    if any(name.rpartition("/")[2] == "data.pkl" for name in files):
        return ""
    for suffixes in (SUFFIXES, _ARCHIVES):
        if inner := [name for name in files if name.lower().endswith(suffixes)]:
            one = "" if len(inner) == 1 else ", and give one of them, or their folder"
            shown = shortened([printable(name, 80) for name in inner], 3)
            return f"this is a zip that holds {shown}: unpack it first{one}"
    return ""


def packed_again(entries: Iterable[ZipEntry]) -> str:
    """What is to be added to an error where the members are those of a torch file, as another tool packed them: it
    compresses, makes entries of folders, or signs what it makes."""
    entries = list(entries)
    names = set(_names(entries))
    another = any(e.method or e.made_by not in _WRITTEN_BY_TORCH or e.name.endswith(b"/") for e in entries)
    for name in names:
        root = name.removesuffix("data.pkl")
        whole = root != name and root[-1:] in ("", "/") and {f"{root}version", f"{root}data/0"} & names
        if whole and (another or root.count("/") != 1):
            return (
                ": a torch file that was unpacked and packed again by another tool; fetch the original again, or where "
                "torch still loads it, save it anew: "
                "torch.save(torch.load(PATH, weights_only=True, map_location='cpu'), NEW)"
            )
    return ""


def _names(entries: Iterable[ZipEntry]) -> list[str]:
    return [entry.name.decode(errors="replace").replace("\\", "/") for entry in entries]
