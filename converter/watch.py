"""Checkpoints of a running training job, each as soon as it is complete: it has stopped growing, and can be opened."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .checkpoint import open_checkpoint
from .errors import InputError, UsageError, printable
from .pairs import SUFFIXES, Pair, expand, in_folder

POLL = 1.0  # seconds at the most between two looks


def watch(
    folder: str | os.PathLike[str],
    converted: str,
    *,
    settle: float = 5.0,
    idle: float | None = None,
    say: Callable[[str], object] = lambda words: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Pair]:
    """Every checkpoint that is or comes into a folder, as a pair with its converted path.

    A file is taken once its size and time have not changed for `settle` seconds and its index reads whole (a torch
    archive ends with it); one that is written again is taken again.

    Args:
        converted: a template with {stem}, {name} or {parent}.
        settle: seconds.
        idle: stop after so many seconds in which nothing came or grew; None: never.
        say: told once of each file that has stopped growing and is not complete, and of those left at the end.

    Raises: `UsageError` where there is no such folder, at the start.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"--watch {printable(folder)}: not a folder")
    if not settle >= 0 or not (idle is None or idle >= 0):  # NaN too
        raise UsageError("--watch_settle, --watch_idle: seconds, 0 or more")
    # A template that cannot be filled, or that feeds the watch with its own results, is an error now, not in an hour.
    place = _paired(Path(folder, "a.pth"), converted).converted
    if place.lower().endswith(SUFFIXES) and os.path.realpath(os.path.dirname(place) or ".") == os.path.realpath(folder):
        raise UsageError(f"--dump_path {printable(converted)}: its files would be taken for checkpoints of the job")
    seen: dict[str, tuple[tuple[int, int], float]] = {}  # path -> (size and time, since when)
    settled: dict[str, tuple[int, int]] = {}  # taken, or found incomplete
    incomplete: dict[str, str] = {}
    last = clock()
    while True:
        now = clock()
        for path, state in _states(folder):
            if seen.get(path, (None, 0.0))[0] != state:
                seen[path], last = (state, now), now
                incomplete.pop(path, None)
            elif now - seen[path][1] >= settle and settled.get(path) != state:
                settled[path] = state
                if why := _unfinished(path):
                    incomplete[path] = why
                    say(f"waiting for the rest: {why}")
                else:
                    yield _paired(Path(path), converted)
                    last = clock()
        if idle is not None and clock() - last >= idle + settle:
            break
        sleep(min(POLL, settle or POLL))
    for why in incomplete.values():
        say(f"never completed: {why}")


def _states(folder: str | os.PathLike[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    try:
        paths = in_folder(os.fspath(folder))
    except OSError as error:
        raise UsageError(f"--watch {printable(folder)}: {error.strerror}") from error
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue  # it went while we looked
        yield path, (status.st_size, status.st_mtime_ns)


def _paired(path: Path, converted: str) -> Pair:
    if not any(place in converted for place in ("{stem}", "{name}")):
        raise UsageError(f"--dump_path {printable(converted)}: {{stem}} or {{name}} has to tell checkpoints apart")
    (pair,) = expand(os.fspath(path), converted)
    return pair


def _unfinished(path: str) -> str:
    """Why a file cannot be opened (yet), '' where it can."""
    try:
        with open_checkpoint(path):
            return ""
    except InputError as error:
        return str(error)
