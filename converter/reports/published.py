"""What may be published of a report: no path of somebody's computer, and a command that others can run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from ..reports.without_paths import base_name, without_paths
from .report import Report

_SIDES = {"--orig_ckpt_path": "original", "--converted_path": "converted"}
_NAMES = ("--push_to_hub",)  # a name on the hub is no path
_WRITTEN = ("--report", "--card")  # each has to name a file of its own


def published(report: Report) -> Report:
    """The report as it may be shown to anybody: of `run` the dates, and the command with the names of both sides."""
    command = str(report.run.get("command") or "")
    paths = [report.run.get(name) for name in ("original", "converted", "converted_path")]
    known = [path for path in (*paths, *_values(command)) if path]
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
    for flag, value, joined in _split(command):
        if value is not None and flag not in _NAMES:
            name, equals, rest = value.rpartition("=") if flag == "--given" else ("", "", value)
            value = base_name(name) + equals + base_name(rest) if equals else base_name(rest)
            value = sides.get(flag, value) if not value.startswith("hf:/") else value
            if flag in _WRITTEN and value in written:
                continue
            written |= {value} if flag in _WRITTEN else set()
        spelled = [part for part in (joined, value) if part is not None]
        words += ["".join(spelled)] if joined and joined.endswith("=") else spelled
    return shlex.join(words)


def _values(command: str) -> Iterator[str]:
    return (value for _, value, _ in _split(command) if value is not None)


def _split(command: str) -> Iterator[tuple[str, str | None, str | None]]:
    """The parts of a command line: (flag with underscores, its value, the flag as it was spelled), one of them '' or
    None where there is none."""
    try:
        parts = shlex.split(command)
    except ValueError:
        return
    flag = spelled = None
    for part in parts:
        if part.startswith("--"):
            if spelled:
                yield flag or "", None, spelled
            name, equals, value = part.partition("=")
            flag, spelled = name.replace("-", "_").replace("__", "--", 1), name + equals
            if equals:
                yield flag, value, spelled
                flag = spelled = None
        else:
            yield flag or "", part, spelled
            flag = spelled = None
    if spelled:
        yield flag or "", None, spelled
