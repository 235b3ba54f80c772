"""The campaign of `bin/fuzz`: a fixed sample of it finds nothing, and what it is there to find, it finds."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz.__main__ import checks, main
from fuzz.bench import Bench
from fuzz.checks import BINARY, TEXTS
from fuzz.confined import CANARY, MEMORY, Outcome, confined, wrong
from fuzz.faults import FAULTS, unusable
from fuzz.flips import FLIPS
from fuzz.oracles import strange, unlike
from makers import ROOT

# By number and not by time, so that every machine tries the same ones; together about half a minute of one processor.
SAMPLE = {"faults": (FAULTS, 2), "inputs": (BINARY | TEXTS | FLIPS, 6)}


def fuzz(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAMPLE)
def test_a_fixed_sample_finds_nothing(kind: str) -> None:
    if kind == "faults" and (reason := unusable()):
        pytest.skip(reason)
    names, count = SAMPLE[kind]
    done = fuzz("-m", "fuzz", "--count", count, *(word for name in names for word in ("--only", name)))
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \|", done.stdout, re.M) == [(n, str(count), "0") for n in names]


def test_every_check_is_sampled() -> None:
    assert {name for names, _ in SAMPLE.values() for name in names} == checks().keys()


def found(task: Callable[[], int], place: Path) -> str:
    place.mkdir()
    return " ".join(wrong(confined(task, place), (0, 3), place))


def internal() -> int:
    print("pixart: error: internal error: KeyError: 1", file=sys.stderr)
    return 3


def spinning() -> int:
    while True:
        pass


TASKS: dict[str, tuple[Callable[[], int], str]] = {
    "nothing": (lambda: 0, ""),
    "a traceback": (lambda: 1 // 0, "exit code 1: .* foresaw: Traceback"),
    "an internal error": (internal, "nobody foresaw"),
    "another exit code": (lambda: 7, "exit code 7"),
    # More than an allocator can still hold of what an earlier test gave back.
    "memory": (lambda: len(bytearray(16 * MEMORY)), "nobody foresaw.*MemoryError"),
    "a crash": (lambda: os.kill(os.getpid(), signal.SIGKILL) or 0, "killed by SIGKILL"),
    "code of the file": (lambda: os.mkdir(CANARY) or 0, "CODE OF THE FILE RAN"),
}


@pytest.mark.parametrize("kind", TASKS)
def test_what_is_wrong_with_any_input_is_seen(kind: str, tmp_path: Path) -> None:
    task, words = TASKS[kind]
    seen = found(task, tmp_path / "place")
    assert re.search(words, seen) if words else not seen, seen


def test_a_task_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.confined.SECONDS", 1)
    assert "not done within 1 s" in found(spinning, tmp_path / "place")


@pytest.mark.parametrize(
    ("err", "words"),
    [
        ("pixart: error: a.pth: no\n", ""),
        ("", "not one line"),
        ("pixart: error: a\npixart: error: b\n", "not one line"),
        ("pixart: error: \x1b[31m\n", "not one line"),
        ("x.py:3: RuntimeWarning: invalid value\npixart: error: a\n", "a warning"),
    ],
)
def test_an_error_is_one_line_of_plain_text(err: str, words: str) -> None:
    assert bool(words) == bool(seen := wrong(Outcome(3, "", err), (3,)))
    assert words in " ".join(seen)


def test_other_bits_and_lost_tensors_are_seen() -> None:
    one, two = ["torch.float16", [2], "aa"], ["torch.float16", [2], "bb"]
    file = {".state_dict": {"m.x": one, "m.y": two, "other": one}, ".optimizer": {"x": two}}
    assert unlike({"x": one, "y": two}, file, "") == ""
    assert "other bits in ['y']" in unlike({"x": one, "y": one}, file, "")
    assert "not written ['m.y', 'other']" in unlike({"m.x": one}, file, "")
    assert unlike({"m.x": one}, file, "left out: m.y, other") == ""
    assert "none has these keys" in unlike({"z": one}, file, "")
    assert strange({"z": one}, file, "") == ""
    assert "does not hold: ['z']" in strange({"z": ["torch.float16", [2], "cc"]}, file, "")


def test_a_seed_gives_the_same_input_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What it names is what it ran: the inputs that are kept of a check that always finds something."""

    def planted(bench: Bench) -> list[str]:
        bench.write("x", str(bench.chance.random()))
        return ["planted"]

    monkeypatch.setitem(BINARY, "archive", planted)
    monkeypatch.setattr("fuzz.seeds.make", lambda place: None)
    for words in ("--count", "3"), ("--seed", "2"):
        assert main(["--only", "archive", *words, "--keep", f"{tmp_path / 'kept'}{words[0]}"]) == 1
    done = capfd.readouterr()
    assert re.findall(r"again: (.*)", done.err) == [f"bin/fuzz --seed {i} --only archive" for i in (0, 1, 2, 2)]
    assert re.findall(r"archive \| (\d) \| (\d) \|", done.out) == [("3", "3"), ("1", "1")]
    one, again = (tmp_path / f"kept{word}" / "archive-2" / "x" for word in ("--count", "--seed"))
    assert one.read_text() == again.read_text()
