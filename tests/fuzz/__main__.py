"""Try bad inputs, flipped bits, kills and failing system calls on the converter: bin/fuzz --help"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported: what is forked must have no threads

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "checkpoint")]

# What is known and still to be mended: a check, and what its finding says. It is counted apart, and fails no run.
KNOWN: dict[str, str] = {
    "flip_in_folder": r"^(shards|cast|again): .* is damaged, passed on, and not a word",
    "fail": r"the new one is at its place, and yet exit code 5",
}


@dataclass
class Tally:
    """What was tried of one check, and what was found: what to say -> how often."""

    inputs: int = 0
    seconds: float = 0.0
    known: int = 0
    findings: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.inputs, self.seconds = self.inputs + other.inputs, self.seconds + other.seconds
        self.known, self.findings = self.known + other.known, self.findings + other.findings


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from .checks import CHECKS
    from .faults import FAULTS
    from .flips import FLIPS

    names = [*CHECKS, *FLIPS, *FAULTS]
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("--minutes", type=float, metavar="N", help="go on for so long, with seed after seed")
    parser.add_argument(
        "--count", type=int, default=1, metavar="N", help="or: so many inputs of each check (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first input (default 0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side (default 1)")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"of: {', '.join(names)}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the input of each finding there")
    options = parser.parse_args(argv)
    options.only = options.only or names
    if min(options.count, options.jobs) < 1 or (options.minutes or 1) <= 0:
        parser.error("--minutes, --count and --jobs: more than nothing")
    return options


def worker(options: argparse.Namespace, job: int) -> dict[str, Tally]:
    """Every so-many-th seed. With --minutes, always the check that has had the least time so far."""
    import converter

    from . import seeds
    from .checks import CHECKS, Bench
    from .faults import FAULTS
    from .flips import FLIPS

    for module in pkgutil.walk_packages(converter.__path__, "converter."):
        if module.name != "converter.__main__":  # all else once, and not again in each process
            importlib.import_module(module.name)
    tallies = {name: Tally() for name in options.only}
    deadline = time.monotonic() + 60 * (options.minutes or 0)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        made, remembered = seeds.make(Path(folder, "seeds")), {}

        def turns() -> Iterator[tuple[str, int]]:
            if not options.minutes:
                yield from (
                    (name, options.seed + i) for name in options.only for i in range(job, options.count, options.jobs)
                )
            while time.monotonic() < deadline:
                name = min(tallies, key=lambda name: tallies[name].seconds)
                yield name, options.seed + job + tallies[name].inputs * options.jobs

        for name, seed in turns():
            place, started = Path(folder, "input", "place"), time.monotonic()
            place.mkdir(parents=True)
            bench = Bench(Random(f"{name} {seed}"), place, made, remembered)
            try:
                found = (CHECKS | FLIPS | FAULTS)[name](bench)
            except Exception:  # the input is worth no less where the check itself cannot go on
                found = [f"the check failed: {traceback.format_exc()}"]
            tallies[name].inputs += 1
            tallies[name].seconds += time.monotonic() - started
            known = [what for what in found if name in KNOWN and re.search(KNOWN[name], what)]
            tallies[name].known += len(known)
            for what in (what.replace(str(place), "PLACE") for what in found if what not in known):
                tallies[name].findings[what] += 1
                print(f"{name}: {what}\n  again: bin/fuzz --seed {seed} --only {name}", file=sys.stderr, flush=True)
            if found and options.keep:
                shutil.copytree(place, options.keep / f"{name}-{seed}", symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(place.parent)
    return tallies


def report(tallies: dict[str, Tally]) -> str:
    rows = ["| check | inputs | findings | known | s |", "|---|--:|--:|--:|--:|"]
    for name, tally in tallies.items():
        found = tally.findings.total()
        rows.append(f"| {name} | {tally.inputs} | {found} | {tally.known} | {tally.seconds:.0f} |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    from .faults import FAULTS, unusable

    options = parse(argv)
    skipped = [name for name in options.only if name in FAULTS]
    if skipped and (reason := unusable()):
        print(f"fuzz: {', '.join(skipped)} left out: {reason}", file=sys.stderr)
        options.only = [name for name in options.only if name not in skipped]
    if options.jobs == 1:
        made = [worker(options, 0)]
    else:
        with ProcessPoolExecutor(options.jobs) as pool:
            made = list(pool.map(worker, [options] * options.jobs, range(options.jobs)))
    tallies = {name: Tally() for name in options.only}
    for part in made:
        for name, tally in part.items():
            tallies[name].add(tally)
    print(report(tallies))
    return int(any(tally.findings for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
