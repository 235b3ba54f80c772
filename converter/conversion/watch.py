"""Checkpoints of a running training job, each as soon as it is complete: it has stopped growing, and can be opened."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from ..checkpoint import open_checkpoint
from ..checkpoint.weight_names import SUFFIXES
from ..errors import InputError, UsageError, printable
from .pairs import Pair, check_targets_unique, paired, place_of
from .training_folders import checkpoints_under, is_looked_into, natural_order

POLL = 1.0  # seconds between two looks, where these are quick
# Where checkpoints may lie, and their names: some become those of folders that are looked into, such as `step_9`.
_PLACES = ("", "checkpoints", "run", "run/checkpoints")
_NAMES = ("a.pth", "9.pth", "step_9.pth", "model.pth")

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
    """Every checkpoint that is in a folder or comes into it, as a pair with its converted path. The folders in it, and
    their `checkpoints/`, are looked into too, also those that come later.

    A file is taken once its size and time have not changed for `settle` seconds and its index reads whole (a torch
    archive ends with it); one that is written again is taken again. What is the target of another is none. One that is
    still not complete when the watch ends comes last, as it is: it is for its reader to say what is wrong with it. A
    folder that cannot be read any more is waited for, as long as a new file is.

    Args:
        converted: a template as of `expand`.
        settle: seconds.
        idle: stop after so many seconds in which nothing came or grew; None: never.
        say: told where nothing is there at the start, and once of each file that has stopped growing and is not
            complete, of each folder that cannot be read, and where the watched one goes and comes back.

    Raises: `UsageError` at the start, where there is no such folder, or where the template does not tell apart what is
        there, or leads into a folder that is looked into. `InputError` at the end, if the folder did not come back.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise UsageError(f"`watch` {printable(folder)}: not a folder")
    if not settle >= 0 or not (idle is None or idle >= 0):  # NaN too
        raise UsageError("`watch_settle` and `watch_idle` must be 0 seconds or more")
    _check_template(converted, folder)
    unreadable: set[str] = set()
    places: dict[str, str] = {}  # of all that was ever there,
    targets: set[str] = set()  # and where its conversions go: they are no checkpoints

    def look() -> list[str]:
        def cannot_read(error: InputError) -> None:
            if str(error) not in unreadable:
                unreadable.add(str(error))
                say(f"not looked into: {error}")

        paths = checkpoints_under(folder, unreadable=cannot_read)
        for path in paths:
            if path not in places:
                places[path] = place_of(path)
                targets.add(place_of(paired(path, converted).converted))
        return [path for path in paths if places[path] not in targets]

    if paths := look():
        check_targets_unique([paired(path, converted) for path in paths])
    else:
        within = printable(os.path.join(folder, ""))
        say(f"no checkpoint yet: looking in {within}, {within}*/ and {within}*/checkpoints/")
    seen: dict[str, tuple[State, float]] = {}  # what is there, and since when it has been so
    settled: dict[str, State] = {}  # taken, or found incomplete
    incomplete: set[str] = set()
    gone: InputError | None = None
    last = clock()
    while True:
        now = clock()
        try:
            there = dict(_states(look()))
        except InputError as error:
            if not gone:
                gone, last = error, now
                say(f"{error}: waiting for the watched folder to come back")
            if idle is not None and now - last >= idle:
                raise InputError(f"{error}: the watch ended, since the watched folder did not come back") from None
            sleep(POLL)
            continue
        if gone:
            gone, settled = None, {path: state for path, state in settled.items() if path not in incomplete}
            say(f"{printable(folder)}: the watched folder is back")
        pause = max(min(POLL, settle or POLL), 9 * (clock() - now))  # at most a tenth of the time goes into looking
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
        sleep(pause)
    for path in sorted(incomplete, key=natural_order):
        yield paired(path, converted)


def _check_template(converted: str, folder: str) -> None:
    """One that cannot be filled, or that feeds the watch with its own results, is an error now, not in an hour."""
    if not any(place in converted for place in ("{stem}", "{name}")):
        raise UsageError(f"`dump_path` {printable(converted)}: {{stem}} or {{name}} must tell checkpoints apart")
    targets = [paired(os.path.join(folder, place, name), converted).converted for place in _PLACES for name in _NAMES]
    places = {os.path.dirname(target) or "." for target in targets if target.lower().endswith(SUFFIXES)}
    if any(is_looked_into(place, folder) for place in places):
        rule = "its files would be taken for new checkpoints of the watched folder: write them outside of it"
        raise UsageError(f"`dump_path` {printable(converted)}: {rule}")


def _states(paths: list[str]) -> Iterator[tuple[str, State]]:
    for path in paths:
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
