"""What may be published of a report: no path of somebody's computer, and a command that others can run."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from .report import Report

Texts = TypeVar("Texts")
_PART = r"[^\s/\\\"'`<>|:;,()\[\]]+"
# From the root, from home, from here or above; on a Windows drive, or in its network. What is said of files inside a
# model, such as transformer/config.json, begins otherwise, and stays.
_PATH = re.compile(
    rf"(?<![\w./\\:<~-])(?:~[\w.-]*/|\.{{1,2}}/|/(?={_PART}/))(?:{_PART}/)*({_PART})?/?"
    rf"|(?<![A-Za-z0-9])(?:[A-Za-z]:[\\/]|\\\\(?={_PART}\\))(?:{_PART}[\\/])*({_PART})?[\\/]?"
)
_SIDES = {"--orig_ckpt_path": "original", "--converted_path": "converted"}
_NAMES = ("--push_to_hub",)  # a name on the hub is no path
_WRITTEN = ("--report", "--card")  # each has to name a file of its own


def published(report: Report) -> Report:
    """The report as it may be shown to anybody: of `run` the dates, and the command with the names of both sides."""
    command = str(report.run.get("command") or "")
    paths = [report.run.get(name) for name in ("original", "converted", "converted_path")]
    known = [path for path in (*paths, *(value for _, _, value in _split(command))) if path]
    about = report.as_dict()
    run = {name: about["run"][name] for name in ("date", "seconds", "cached") if name in about["run"]}
    shown = Report.from_dict(without_paths(about | {"run": run}, known))
    names = {flag: str(getattr(report, side).get("name") or "") for flag, side in _SIDES.items()}
    if command and (portable := portable_command(command, names)):
        shown.run["command"] = portable
    return shown


def portable_command(command: str, names: Mapping[str, str]) -> str:
    """A command line for a folder that holds the files under their own names; '' for none that a shell could read.

    Args:
        names: of the two sides, by their flags. Where both have the same name, each goes into a folder of its own.

    >>> portable_command("pixart parity --orig_ckpt_path 'runs/*.pth' --cases=/a/b.safetensors", {})
    "pixart parity --orig_ckpt_path '*.pth' --cases=b.safetensors"
    """
    sides = {flag: base_name(name) for flag, name in names.items() if name}
    if len({*sides.values()}) < len(sides):
        sides = {flag: f"{_SIDES[flag]}/{name}" for flag, name in sides.items()}
    words: list[str] = []
    written: set[str] = set()
    for before, flag, value in _split(command):
        if value and flag not in _NAMES:
            value = "=".join(map(base_name, value.rsplit("=", 1 if flag == "--given" else 0)))
            value = sides.get(flag, value) if not value.startswith("hf:/") else value
            if flag in _WRITTEN and value in written:
                words = words if before else words[:-1]  # without the flag
                continue
            written |= {value} if flag in _WRITTEN else set()
        words.append(before + value)
    return shlex.join(words)


def _split(command: str) -> Iterator[tuple[str, str, str]]:
    """The words of a command line: (what stands before a value in one word with it, the flag of the value with
    underscores, the value)."""
    try:
        words = shlex.split(command)
    except ValueError:
        return
    flag = ""
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        flag = name.replace("-", "_").replace("__", "--", 1) or flag
        yield name + equals, flag, value
        flag = flag if name and not equals else ""


def base_name(path: str) -> str:
    """The last part of a path of any system; a place on the hub as it is.

    >>> base_name("runs/epoch_5.pth"), base_name("C:\\\\runs\\\\out\\\\"), base_name("hf://owner/name")
    ('epoch_5.pth', 'out', 'hf://owner/name')
    """
    if path.startswith("hf:/"):
        return path
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "."


def without_paths(texts: Texts, known: Iterable[object] = ()) -> Texts:
    """A text, or all texts in lists and dicts, with every path that stands in it cut down to its last part.

    Args:
        known: paths that may stand in it, however they begin and whatever characters they hold.

    >>> without_paths({"note": "/home/me/runs/a.pth and transformer/config.json, x/y b"}, ["x/y b"])
    {'note': 'a.pth and transformer/config.json, y b'}
    """
    folders = sorted({*_folders(known)}, key=len, reverse=True)
    inside = re.compile("|".join(rf"(?<![\w.-]){re.escape(folder)}" for folder in folders))

    def cut(value: Any) -> Any:
        if isinstance(value, str):
            return _PATH.sub(lambda match: match[1] or match[2] or "", inside.sub("", value))
        if isinstance(value, dict):
            return {key: cut(item) for key, item in value.items()}
        return [cut(item) for item in value] if isinstance(value, list | tuple) else value

    shown: Texts = cut(texts)
    return shown


def _folders(paths: Iterable[object]) -> Iterator[str]:
    """Where paths lie, as they are spelled and from the root."""
    for path in map(str, paths):
        for spelled in (path, os.path.abspath(path)):
            folder = spelled[: len(spelled.rstrip("/\\")) - len(base_name(spelled))]
            if folder.strip("./\\") and not path.startswith("hf:/"):
                yield folder
