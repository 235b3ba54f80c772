"""Paths of somebody's computer, taken out of what others may read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Told = TypeVar("Told")
_PART = r"[^\s/\\\"'`<>|:;,()\[\]]+"
# From the root, from home, from here or above; on a Windows drive, or in its network. What is said of files inside a
# model, such as transformer/config.json, begins otherwise, and stays.
_PATH = re.compile(
    rf"(?<![\w./\\:<~-])(?:~[\w.-]*/|\.{{1,2}}/|/(?={_PART}/))(?:{_PART}/)*({_PART})?/?"
    rf"|(?<![A-Za-z0-9])(?:[A-Za-z]:[\\/]|\\\\(?={_PART}\\))(?:{_PART}[\\/])*({_PART})?[\\/]?"
)


def base_name(path: str) -> str:
    """The last part of a path of any system; a place on the hub as it is.

    >>> base_name("runs/epoch_5.pth"), base_name("C:\\\\runs\\\\out\\\\"), base_name("hf://owner/name")
    ('epoch_5.pth', 'out', 'hf://owner/name')
    """
    if path.startswith("hf:/"):
        return path
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "."


def without_paths(told: Told, known: Iterable[object] = ()) -> Told:
    """A text, or all texts in lists and dicts, with every path that stands in it cut down to its last part.

    Args:
        known: paths that may stand in it, however they begin and whatever characters they hold.

    >>> without_paths({"note": "/home/me/runs/a.pth and transformer/config.json, x/y b"}, ["x/y b"])
    {'note': 'a.pth and transformer/config.json, y b'}
    """
    folders = sorted({*_folders(known)}, key=len, reverse=True)
    inside = re.compile("|".join(rf"(?<![\w.-]){re.escape(folder)}" for folder in folders)) if folders else None

    def cut(value: Any) -> Any:
        if isinstance(value, str):
            value = inside.sub("", value) if inside else value
            return _PATH.sub(lambda found: found[1] or found[2] or "", value)
        if isinstance(value, dict):
            return {key: cut(item) for key, item in value.items()}
        return [cut(item) for item in value] if isinstance(value, list | tuple) else value

    made: Told = cut(told)
    return made


def _folders(paths: Iterable[object]) -> Iterator[str]:
    """Where paths lie, as they are spelled and from the root."""
    for path in map(str, paths):
        for spelled in (path, os.path.abspath(path)):
            folder = spelled[: len(spelled.rstrip("/\\")) - len(base_name(spelled))]
            if folder.strip("./\\") and not path.startswith("hf:/"):
                yield folder
