"""A task in a process of its own, bounded in time and memory, and what is wrong with any outcome whatever the input."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

CANARY = "canary"  # what the payloads of a hostile file would create in the current folder
SECONDS, LONGEST = 10, 120  # of processor time, and of waiting: inputs are small, and a machine may be busy
MEMORY = 1 << 30  # bytes of address space beside what the campaign itself has mapped
ERRORS = (2, 3, 5)  # exit codes that come with a line; 1 and 4 are verdicts


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit code, or minus the signal's number, and what it printed."""

    code: int
    out: str
    err: str


def confined(task: Callable[[], int], place: Path) -> Outcome:
    """Run `task` in a fork whose current folder is `place`; its result is the exit code.

    Nothing is flushed to the disk in there (what reaches it is tried by `faults`), and what it prints lies in
    `place.out` and `place.err`. An exception that leaves the task is a traceback and exit code 1, as it is in Python.
    """
    streams = [place.with_name(f"{place.name}.{name}") for name in ("out", "err")]
    sys.stdout.flush()
    with warnings.catch_warnings():  # OMP_NUM_THREADS is 1: there are no other threads to miss
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        code = 1
        try:
            _enter(place, streams)
            code = task()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(min(code, 255))  # whatever the task returns, this fork ends here
    _, status = os.waitpid(child, 0)
    return Outcome(os.waitstatus_to_exitcode(status), *(path.read_text(errors="replace") for path in streams))


def _enter(place: Path, streams: list[Path]) -> None:
    for number, path in enumerate(streams, 1):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(fd, number)
        os.close(fd)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.chdir(place)
    os.fsync = lambda fd: None
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LONGEST)


def wrong(outcome: Outcome, allowed: Collection[int], place: Path | None = None) -> list[str]:
    """What no input may lead to, in words; `place`: where the canary would be."""
    code, err, found = outcome.code, outcome.err, []
    if code in (-signal.SIGXCPU, -signal.SIGALRM):
        found.append(f"not done within {SECONDS} s")
    elif code < 0:
        found.append(f"killed by {signal.Signals(-code).name}")
    elif code not in allowed:
        found.append(f"exit code {code}")
    if "internal error" in err or "Traceback" in err or "MemoryError" in err:
        found.append("an error that nobody foresaw")
    elif "Warning: " in err:
        found.append("a warning of Python's")
    elif code in ERRORS and (err.count("\n") != 1 or ": error: " not in err or not err.rstrip("\n").isprintable()):
        found.append("not one line of plain text")
    if place and (place / CANARY).exists():
        found.append("CODE OF THE FILE RAN")
    return [f"{what}: {_shown(err)}" for what in found]


def _shown(err: str) -> str:
    lines = err.strip().splitlines() or ["nothing printed"]
    return " | ".join([*lines[:1], *lines[1:][-1:]])[:500]
