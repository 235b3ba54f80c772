"""The real command under strace: killed at a system call that writes, or with a call that fails.

strace counts a thread's calls of one name, and the command makes the same ones each time: so a run that is only
watched tells which of them concern the input or the target, and one of those is struck in the run that counts.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

from makers import Result, launch, tree

from .bench import GIVEN, Bench, Check
from .confined import Outcome, wrong

WRITES = (
    "write", "pwrite64", "sendfile", "fsync", "rename", "renameat", "renameat2", "link", "linkat",
    "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "ftruncate", "fallocate",
)  # fmt: skip
READS = ("openat", "preadv", "pread64", "read", "newfstatat", "stat", "lstat", "statx", "fstat", "getdents64", "close")
LASTING = ("write", "pwrite64", "fsync", "ftruncate", "mkdir")  # a disk stays full or broken
ERRORS = ("ENOSPC", "EIO", "EMFILE", "EINTR", "EACCES")
# How the command ends in each kind of target: its name -> its flags, and what is there before.
TARGETS: dict[str, tuple[tuple[object, ...], str]] = {
    "new": ((), ""),
    "over": ((), "folder"),
    "over-shards": (("--max_shard_size", 2000), "folder"),
    "new.pth": (("--to", "original"), ""),
    "over.pth": (("--to", "original"), "file"),
}
NO_EXCHANGE = ("-e", "inject=renameat2:error=ENOSYS")  # a system that cannot swap two folders


def unusable() -> str:
    """Why nothing can be traced here; '' where it can."""
    if not shutil.which("strace"):
        return "there is no strace"
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "-e", "inject=chdir:error=EIO", "true"],
                           capture_output=True, text=True, check=False)  # fmt: skip
    return f"strace cannot trace here: {tried.stderr.strip().splitlines()[:1]}" if tried.returncode else ""


@dataclass(frozen=True)
class Call:
    """The so-many-th call of its name by its thread, as strace shows it."""

    name: str
    number: int
    shown: str


class Run:
    """One kind of target below the place of an input: what was there, and the command that replaces it."""

    def __init__(self, bench: Bench, name: str, *, exchange: bool = True) -> None:
        self.bench, (flags, there) = bench, TARGETS[name]
        self.exchange, self.source = exchange, bench.place / "source.pth"
        self.target = bench.place / "out" / name
        shutil.copy(bench.seeds.torch[4], self.source)
        self.target.parent.mkdir()
        if there == "folder":
            shutil.copytree(bench.seeds.folders[0], self.target)
        elif there:
            shutil.copy(bench.seeds.original, self.target)
        self.old = self.now()
        self.words = ("--orig_ckpt_path", self.source, "--dump_path", self.target, *GIVEN, *flags, "--overwrite")
        if ("new", name) not in bench.known:
            aside = bench.place / "aside"
            shutil.copytree(self.target.parent, aside)
            assert self.again().code == 0
            bench.known["new", name] = self.now()
            shutil.rmtree(self.target.parent)
            aside.rename(self.target.parent)
        self.new: dict[str, bytes] = bench.known["new", name]

    def now(self) -> dict[str, bytes] | None:
        if self.target.is_file():
            return {"": self.target.read_bytes()}
        return tree(self.target) if self.target.exists() else None

    def beside(self) -> list[Path]:
        """What lies beside the target and is no part of it."""
        return sorted(path for path in self.target.parent.iterdir() if path != self.target)

    def again(self) -> Outcome:
        """The command once more, with nothing in its way."""
        return self.bench.command("convert", *self.words)

    def traced(self, *inject: str) -> Result:
        """The command under strace, its standard output a file below the place."""
        trace = ",".join(f"?{name}" for name in WRITES + READS)
        under = ["strace", "-f", "-y", "-qq", "-o", self.log, "-e", f"trace={trace}", *inject]
        with open(self.bench.place / "printed", "w+") as printed:
            made = launch(
                "convert-pixart", *self.words, under=list(map(str, under)), stdout=printed, cwd=self.bench.place
            )
            printed.seek(0)
            made.stdout = printed.read()
        return made

    @property
    def log(self) -> Path:
        return self.bench.place.with_name("calls")

    def calls(self) -> list[Call]:
        """The calls that concern what lies below the place, of a run in a place like this one; found out once."""
        key = "calls", self.target.name, self.exchange
        if key not in self.bench.known:
            assert self.traced(*(() if self.exchange else NO_EXCHANGE)).returncode == 0
            counts: Counter[tuple[str, str]] = Counter()
            found = []
            for thread, name, rest in re.findall(r"^(\d+) +(\w+)\((.*)$", self.log.read_text(errors="replace"), re.M):
                counts[thread, name] += 1
                rest = rest.replace(f"AT_FDCWD<{self.bench.place}>, ", "")
                # The current folder itself is listed by the interpreter alone, looking for modules.
                if str(self.bench.place) in rest and not (name == "getdents64" and f"<{self.bench.place}>" in rest):
                    shown = re.sub(r"\.[0-9a-f]{16}\.", ".RANDOM.", rest.replace(str(self.bench.place), "PLACE"))
                    found.append(Call(name, counts[thread, name], f"{name}({shown[:200]}"))
            self.bench.known[key] = found
            shutil.rmtree(self.target.parent)
            self.source.unlink()
            self.__init__(self.bench, self.target.name, exchange=self.exchange)
        return list(self.bench.known[key])


def _one(calls: list[Call], chance: Random) -> Call:
    """By its name first: most calls copy tensors, and a rename is one among a hundred."""
    name = chance.choice(sorted({call.name for call in calls}))
    return chance.choice([call for call in calls if call.name == name])


def kill(bench: Bench) -> list[str]:
    """Killed at a call that writes: the target is the whole old one or the whole new one, and the next run succeeds and
    names what was left."""
    run = Run(bench, bench.chance.choice(list(TARGETS)), exchange=bench.chance.random() < 0.7)
    call = _one([call for call in run.calls() if call.name in WRITES or "O_CREAT" in call.shown], bench.chance)
    run.traced(*(() if run.exchange else NO_EXCHANGE), "-e", f"inject={call.name}:signal=KILL:when={call.number}")
    found, now, left = [], run.now(), run.beside()
    # Where two folders cannot be swapped there is an instant without a target: the old one, whole, is then `.old`.
    aside = not run.exchange and now is None and any(tree(path) == run.old for path in left if path.suffix == ".old")
    if now not in (run.old, run.new) and not aside:
        found.append("the target is neither the old one nor the new one")
    before = [tree(path) for path in left]
    again = run.again()
    found += [f"the next run: {what}" for what in wrong(again, (0,))]
    if run.now() != run.new:
        found.append("the next run made something else")
    if [tree(path) for path in left] != before or run.beside() != left:
        found.append("the next run touched what was left")
    found += [f"the next run does not name {path.suffix} of the target" for path in left if path.name not in again.out]
    return [f"killed at {call.shown}: {what}" for what in found]


def fail(bench: Bench) -> list[str]:
    """A call fails: one line and the old target, or success and the new one, whatever is said with it."""
    run = Run(bench, bench.chance.choice(list(TARGETS)), exchange=bench.chance.random() < 0.7)
    call, error = _one(run.calls(), bench.chance), bench.chance.choice(ERRORS)
    lasting = call.name in LASTING and error != "EINTR"  # which Python answers by trying again, for as long as it lasts
    more = "+" if lasting and bench.chance.random() < 0.3 else ""
    inject = f"inject={call.name}:error={error}:when={call.number}{more}"
    without = () if run.exchange or call.name == "renameat2" else NO_EXCHANGE
    made = run.traced(*without, "-e", inject)
    found, now, left = wrong(Outcome(made.returncode, made.stdout, made.stderr), (0, 2, 3, 5)), run.now(), run.beside()
    if made.returncode == 0:
        if now != run.new:
            found.append("exit code 0, and the target is not the new one")
        unsaid = [path for path in left if path.name not in made.stdout + made.stderr]
        found += [f"exit code 0, and not a word of {path.suffix}" for path in unsaid]
    elif now == run.new:
        found.append(f"the new one is at its place, and yet exit code {made.returncode}: {made.stderr.strip()}")
    elif now != run.old:
        found.append("the target is neither the old one nor the new one")
    elif left:
        found.append(f"a failure left {[path.suffix for path in left]}")
    if call.name in READS and "PLACE/source.pth" in call.shown and made.returncode not in (0, 3):
        found.append(f"the input cannot be read, and yet exit code {made.returncode}: {made.stderr.strip()}")
    return [f"{error} of {call.shown}{' and on' if more else ''}: {what}" for what in found]


FAULTS: dict[str, Check] = {"kill": kill, "fail": fail}
