"""Checkpoints of a running training job, each as soon as it is complete: it has stopped growing, and can be opened."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from ..checkpoint import open_checkpoint
from ..checkpoint.weight_names import SUFFIXES
from ..errors import InputError, UsageError, printable
from .pairs import Pair, in_folder, natural_order, paired

POLL = 1.0  # seconds at the most between two looks

State = tuple[int, int, int]  # size and both times: the second is another for a file that is replaced by its like


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
    archive ends with it); one that is written again is taken again. One that is still not complete when the watch ends
    comes last, as it is: it is for its reader to say what is wrong with it.

    Args:
        converted: a template with {stem}, {name} or {parent}.
        settle: seconds.
        idle: stop after so many seconds in which nothing came or grew; None: never.
        say: told once of each file that has stopped growing and is not complete.

    Raises: `UsageError` where there is no such folder, at the start.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"`watch` {printable(folder)}: not a folder")
    if not settle >= 0 or not (idle is None or idle >= 0):  # NaN too
        raise UsageError("`watch_settle` and `watch_idle` must be 0 seconds or more")
    # A template that cannot be filled, or that feeds the watch with its own results, is an error now, not in an hour.
    if not any(place in converted for place in ("{stem}", "{name}")):
        raise UsageError(f"`dump_path` {printable(converted)}: {{stem}} or {{name}} must tell checkpoints apart")
    place = paired(os.path.join(folder, "a.pth"), converted).converted
    if place.lower().endswith(SUFFIXES) and os.path.realpath(os.path.dirname(place) or ".") == os.path.realpath(folder):
        raise UsageError(
            f"`dump_path` {printable(converted)}: its files would be taken for new checkpoints of the watched folder"
        )
    seen: dict[str, tuple[State, float]] = {}  # what is there, and since when it has been so
    settled: dict[str, State] = {}  # taken, or found incomplete
    incomplete: set[str] = set()
    last = clock()
    while True:
        now, there = clock(), dict(_states(folder))
        for path in seen.keys() - there.keys():
            del seen[path]
            settled.pop(path, None)
            incomplete.discard(path)
        for path, state in there.items():
            if path not in seen or seen[path][0] != state:
                seen[path], last = (state, now), now
                incomplete.discard(path)
            if now - seen[path][1] >= settle and settled.get(path) != state:
                settled[path] = state
                if why := _unfinished(path):
                    incomplete.add(path)
                    say(f"waiting for the rest: {why}")
                else:
                    yield paired(path, converted)
                    last = clock()
        waited = idle is not None and clock() - last >= idle + settle
        if waited and all(settled.get(path) == state for path, (state, _) in seen.items()):
            break
        sleep(min(POLL, settle or POLL))
    for path in sorted(incomplete, key=natural_order):
        yield paired(path, converted)


def _states(folder: str | os.PathLike[str]) -> Iterator[tuple[str, State]]:
    for path in in_folder(os.fspath(folder)):
        try:
            status = os.stat(path)
        except OSError:
            continue  # it went while we looked
        yield path, (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _unfinished(path: str) -> str:
    """Why a file cannot be opened (yet), '' where it can."""
    try:
        with open_checkpoint(path):
            return ""
    except InputError as error:
        return str(error)
