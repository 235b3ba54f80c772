"""Try bad inputs, flipped bits, kills and failing system calls on the converter: bin/fuzz --help"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bench import Check

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported: what is forked must have no threads

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "checkpoint")]


@dataclass
class Tally:
    """What was tried of one check, and how much was found."""

    inputs: int = 0
    findings: int = 0
    seconds: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def checks() -> dict[str, Check]:
    """Every check by its name."""
    from .checks import BINARY, TEXTS
    from .faults import FAULTS
    from .flips import FLIPS

    return BINARY | TEXTS | FLIPS | FAULTS


def parser() -> argparse.ArgumentParser:
    names = list(checks())
    made = argparse.ArgumentParser(prog="fuzz", description=__doc__.partition(":")[0] + ".")
    made.add_argument("--minutes", type=float, metavar="N", help="go on for so long, with seed after seed")
    made.add_argument("--count", type=int, default=1, metavar="N", help="or so many inputs of each (default 1)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the first input (default 0)")
    made.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side (default 1)")
    made.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"of: {', '.join(names)}")
    made.add_argument("--keep", type=Path, metavar="DIR", help="keep the input of each finding there")
    return made


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = parser().parse_args(argv)
    options.only = options.only or list(checks())
    if min(options.count, options.jobs) < 1 or (options.minutes is not None and options.minutes <= 0):
        parser().error("--minutes, --count and --jobs: more than nothing")
    return options


def worker(options: argparse.Namespace, job: int) -> dict[str, Tally]:
    """One of `--jobs`: every so-many-th seed of each check."""
    import converter

    from . import seeds
    from .bench import Bench
    from .faults import FAULTS

    forked = not FAULTS.keys() >= {*options.only}  # the commands of FAULTS are processes of their own
    for module in pkgutil.walk_packages(converter.__path__, "converter.") if forked else ():
        if module.name != "converter.__main__":  # all else once, and not again in each process
            importlib.import_module(module.name)
    tallies, remembered = {name: Tally() for name in options.only}, dict[Any, Any]()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        made = seeds.make(Path(folder, "seeds"))
        for name, seed in turns(options, job, tallies):
            place = Path(folder, "input", "place")
            place.mkdir(parents=True)
            bench, tally = Bench(Random(f"{name} {seed}"), place, made, remembered), tallies[name]
            started = time.monotonic()
            try:
                found = checks()[name](bench)
            except Exception:  # one that cannot go on has met something, too
                found = [f"the check failed: {traceback.format_exc()}"]
            tally.inputs, tally.seconds = tally.inputs + 1, tally.seconds + time.monotonic() - started
            for what in found:
                tally.findings += 1
                words = what.replace(str(place), "PLACE")
                print(f"{name}: {words}\n  again: bin/fuzz --seed {seed} --only {name}", file=sys.stderr, flush=True)
            if found and options.keep:
                shutil.copytree(place, options.keep / f"{name}-{seed}", symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(place.parent)
    return tallies


def turns(options: argparse.Namespace, job: int, tallies: dict[str, Tally]) -> Iterator[tuple[str, int]]:
    """A check and a seed, one after the other; with --minutes, always of the check that has had the least time."""
    if options.minutes:
        deadline = time.monotonic() + 60 * options.minutes
        while time.monotonic() < deadline:
            name = min(tallies, key=lambda name: tallies[name].seconds)
            yield name, options.seed + job + tallies[name].inputs * options.jobs
    else:
        for name in options.only:
            for i in range(job, options.count, options.jobs):
                yield name, options.seed + i


def main(argv: Sequence[str] | None = None) -> int:
    from .faults import FAULTS, unusable

    options = parse(argv)
    faults = [name for name in options.only if name in FAULTS]
    if faults and (reason := unusable()):
        print(f"fuzz: {', '.join(faults)} left out: {reason}", file=sys.stderr)
        options.only = [name for name in options.only if name not in faults]
    if options.jobs == 1:
        parts = [worker(options, 0)]
    else:
        with ProcessPoolExecutor(options.jobs) as pool:
            parts = list(pool.map(worker, [options] * options.jobs, range(options.jobs)))
    print("| check | inputs | findings | s |\n|---|--:|--:|--:|")
    total = Tally()
    for name in options.only:
        tally = sum((part[name] for part in parts), Tally())
        print(f"| {name} | {tally.inputs} | {tally.findings} | {tally.seconds:.0f} |")
        total += tally
    return int(total.findings > 0)


if __name__ == "__main__":
    sys.exit(main())
