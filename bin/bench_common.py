"""What the parts of `bin/bench` share: a whole process measured from the outside, and a row of a table."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

# A child is charged with the peak of the memory it was started from. After vfork that is all of this process,
# after fork only what fork copies; for the same reason whatever imports much is imported late.
subprocess._USE_VFORK = False
# As where it is installed: what an earlier start compiled is kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


class BenchError(Exception):
    """A command that was to be measured is missing, or failed."""


class Run(NamedTuple):
    """One whole process: seconds until it ended and until its bytes were on the disk, those of processors that it took,
    peak MB."""

    wall: float
    synced: float
    cpu: float
    rss: float


def measure(command: list[str]) -> Run:
    os.sync()  # what others left to write must not be paid for here
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": errors}
        child = subprocess.Popen(command, **quiet)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        os.sync()
        synced = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)  # tells Popen that it has been reaped
        if child.returncode:
            errors.seek(0)
            tail = errors.read().decode(errors="replace").strip()[-2000:]
            raise BenchError(f"exit status {child.returncode}: {shlex.join(command)}\n{tail}")
    return Run(wall, synced, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)


def row(what: str, runs: list[Run], ratio: float = 0, limit: str = "", synced: bool = True) -> tuple:
    """Median times and the highest peak of all runs of one command."""
    wall, disk, cpu, _ = (f"{median(column):.2f}" for column in zip(*runs, strict=True))
    peak = f"{max(run.rss for run in runs):.0f}"
    return what, wall, disk if synced else "", f"{ratio:.2f}" if ratio else "", cpu, peak, limit


def shown(run: Run) -> str:
    return f"{run.wall:.2f} s, {run.synced:.2f} s with sync, {run.cpu:.2f} s of CPU, peak {run.rss:.0f} MB"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read_through(path: Path, look: Callable = len) -> None:
    """Bring a file into the page cache, and show it to `look` piece by piece."""
    buffer = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            look(buffer[:size])


def memory(field: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
