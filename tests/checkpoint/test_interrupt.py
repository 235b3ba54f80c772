"""Signals and kills at every line leave the whole old folder or the whole new one."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from publications import (
    NAMES,
    NEW,
    OLD,
    STALE,
    allowed,
    contents,
    exchanges,
    make_old,
    replacing,
    write,
)

from converter.checkpoint.write.interrupt import Interrupted, interruptible
from converter.checkpoint.write.target import leftovers

DRIVER = (
    f"""
from __future__ import annotations
import os, random, signal, sys, time
from pathlib import Path
from converter import system
from converter.checkpoint.write import interrupt
from converter.checkpoint.write import publish
from converter.checkpoint.write.publish import Publication
NAMES, STALE = {NAMES!r}, {STALE!r}
"""
    + "\n".join(inspect.getsource(helper) for helper in (allowed, replacing, write, make_old))
    + """
mode, signum, old, root = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "old", Path(sys.argv[4])
os.fsync = lambda fd: None  # killing a process loses nothing that the system has
if mode == "renames":
    system.exchange = lambda one, other: False
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # whatever our parent ignored


def attempt(target, generation="new"):
    try:
        with interrupt.interruptible(), replacing(target) as out:
            write(out, generation)
            if mode == "failing":
                raise RuntimeError
            out.publish()
    except interrupt.Interrupted as stop:
        os._exit(stop.exit_code)
    except RuntimeError:
        pass


def strike(moment):
    '''Signal ourselves at the given line of the traced modules; a second time four lines on.'''
    files, line = (publish.__file__, interrupt.__file__, publish.shutil.__file__), 0
    def trace(frame, event, argument):
        nonlocal line
        if frame.f_code.co_filename not in files:
            return None
        if event == "line" and (frame.f_code.co_filename != files[2] or frame.f_lineno % 3 == 0):
            line += 1
            if line in (moment, moment + 4):
                os.kill(os.getpid(), signum)
        return trace
    sys.settrace(trace)
    return lambda: line < moment


def child(moment, target):
    if mode == "random":
        for generation in range(10**9):
            attempt(target, str(generation))
    over = strike(moment)
    attempt(target)
    os._exit(99 if over() else 0)


for moment in range(1, 31 if mode == "random" else 5000):
    target = root / str(moment) / ("out" if old or mode == "random" else "new/out")
    (root / str(moment)).mkdir()
    if old:
        make_old(target)
    pid = os.fork()
    if not pid:
        child(moment, target)
    if mode == "random":
        time.sleep(random.uniform(0.002, 0.03))
        os.kill(pid, signum)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(moment, code)
    if code == 99 or code not in (0, -signum, 128 + signum):
        break
"""
)


def drive(mode: str, signum: int, old: bool, root: Path) -> list[tuple[Path, int]]:
    """Each round's folder and exit code."""
    here = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", DRIVER, mode, str(int(signum)), "old" if old else "none", str(root)]
    out = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=300)
    assert out.returncode == 0, out.stderr
    rounds = [line.split() for line in out.stdout.splitlines()]
    assert len(rounds) >= 30
    return [(root / moment, int(code)) for moment, code in rounds]


def needs(mode: str, folder: Path) -> None:
    if mode == "exchange" and not exchanges(folder):
        pytest.skip("this system cannot exchange two folders")


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "old"), [("renames", False), ("renames", True), ("exchange", True)])
def test_killed_at_any_line_the_target_is_absent_or_whole(tmp_path: Path, mode: str, old: bool) -> None:
    needs(mode, tmp_path)
    seen = set()
    for root, code in drive(mode, signal.SIGKILL, old, tmp_path):
        target = root / ("out" if old else "new/out")
        found = contents(target) if target.exists() else None
        left = leftovers(target)
        assert found in ((OLD, NEW) if old else (None, NEW)) or (
            found is None and mode == "renames" and any(contents(p) == OLD for p in left if p.suffix == ".old")
        )
        if target.parent.is_dir():
            assert {*target.parent.iterdir()} - {target} == {*left}
            assert len(left) <= 2
        assert code in (-signal.SIGKILL, 99)
        seen.add((found == OLD, found == NEW, bool(left)))
    assert {(old, False, True), (False, True, False)} <= seen  # it struck before as well as after the rename
    assert ((False, True, True) in seen) == old  # and while the old one was being removed


def test_killed_at_random_moments_the_target_is_one_whole_generation(tmp_path: Path) -> None:
    for root, code in drive("random", signal.SIGKILL, False, tmp_path):
        assert code == -signal.SIGKILL
        target = root / "out"
        if target.exists():
            found = contents(target)
            assert set(found) == {*NAMES}
            assert len({*found.values()}) == 1
        kept = {path: contents(path) for path in leftovers(target)}
        assert {*root.iterdir()} - {target} == {*kept}
        with replacing(target) as out:
            write(out, "new")
            out.publish()
        assert contents(target) == NEW
        assert {path: contents(path) for path in leftovers(target)} == kept


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "old"), [("renames", False), ("renames", True), ("exchange", True)])
def test_terminated_at_any_line_nothing_is_left_behind(tmp_path: Path, mode: str, old: bool) -> None:
    """Two signals, a few lines apart: the second may not disturb the clean-up after the first."""
    needs(mode, tmp_path)
    seen = set()
    for root, code in drive(mode, signal.SIGTERM, old, tmp_path):
        target = root / ("out" if old else "new/out")
        found = contents(target) if target.exists() else None
        assert found in ((OLD, NEW) if old else (None, NEW))
        assert {*root.iterdir()} == ({target} if old else {target.parent} if found else set())
        assert not leftovers(target)
        assert code in (143, 0, 99, -signal.SIGTERM)
        if code == 0:
            assert found == NEW
        seen.add((code, found == NEW))
    assert {(143, False), (143, True)} <= seen


@pytest.mark.slow
def test_terminated_while_a_failed_conversion_cleans_up_nothing_is_left_behind(tmp_path: Path) -> None:
    codes = set()
    for root, code in drive("failing", signal.SIGTERM, False, tmp_path):
        assert list(root.iterdir()) == []
        codes.add(code)
    assert codes <= {143, 0, 99, -signal.SIGTERM}
    assert 143 in codes


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_from_outside_removes_the_partial(tmp_path: Path, signum: signal.Signals) -> None:
    script = """
import signal, sys, time
from pathlib import Path
from converter.checkpoint.write.interrupt import Interrupted, interruptible
from converter.checkpoint.write.publish import Publication
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
try:
    with interruptible(), Publication(Path(sys.argv[1]), needed_bytes=0) as out:
        out.write_text("a", "a")
        print("ready", flush=True)
        time.sleep(60)
except Interrupted as stop:
    print(stop)
    sys.exit(stop.exit_code)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "new" / "out")]
    here = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        assert len(leftovers(tmp_path / "new" / "out")) == 1
        process.send_signal(signum)
        assert process.stdout.read() == f"interrupted by {signum.name}\n"
    assert process.returncode == 128 + signum
    assert list(tmp_path.iterdir()) == []


def raise_both(first: int, second: int) -> None:
    try:
        signal.raise_signal(first)
    finally:
        signal.raise_signal(second)


def test_handlers_are_restored_and_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    try:
        with pytest.raises(Interrupted) as caught, interruptible():
            raise_both(signal.SIGHUP, signal.SIGTERM)  # the first is ignored
        assert caught.value.exit_code == 143
        assert isinstance(caught.value, KeyboardInterrupt)
        assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_the_first_signal_raises() -> None:
    with pytest.raises(Interrupted, match="SIGINT"), interruptible():
        raise_both(signal.SIGINT, signal.SIGTERM)


def test_other_threads_leave_signals_alone() -> None:
    seen: list[object] = []

    def work() -> None:
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert seen == [before]
