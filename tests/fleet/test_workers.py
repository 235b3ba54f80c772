"""Processes of this machine: one that is killed costs its own task another try, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from deadly import Deadly, stopped, threads
from makers import GOLDEN, HEADS, ROOT, pixart, save, tree

import converter
from converter import ConverterError, UsageError, Workers

STATED = {"num_attention_heads": HEADS}


def gone(pid: int) -> bool:
    """Whether a process has ended, or will at once."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_a_worker_killed_while_it_writes_costs_one_more_try(tmp_path: Path) -> None:
    """One checkpoint's conversion dies once, one's always; each of the others is done by one process, and whole."""
    (tmp_path / "seen").mkdir()
    names = [f"t{i}" for i in range(6)]
    pairs = [(str(GOLDEN / "sigma-ms.pth"), str(tmp_path / name)) for name in names]
    deadly = Deadly(tmp_path / "seen", {"t1": 1, "t3": 99})
    with Workers(2) as executor:
        outcomes = converter.convert_all(pairs, None, STATED, components=deadly, executor=executor)
        assert executor.deaths == 3
    assert [outcome.status for outcome in outcomes] == [*["converted"] * 3, "failed", *["converted"] * 2]
    assert [outcome.pair.converted for outcome in outcomes] == [target for _, target in pairs]
    assert outcomes[3].exit_code == 5
    words = "its worker died (SIGKILL): a crash, or too little memory"
    assert outcomes[3].words == f"{pairs[3][0]}: {words}"
    seen = sorted(path.stem for path in (tmp_path / "seen").iterdir())
    assert seen == ["t0", "t1", "t1", "t2", "t3", "t3", "t4", "t5"]
    # What the dead left is told of where it lies, and stands in no result's place.
    left = [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"]
    assert sorted(name.split(".")[1] for name in left) == ["t1", "t3", "t3"]
    assert [".partial is left from an interrupted run" in note for note in outcomes[1].notes] == [True]
    (alone,) = converter.convert_all([(pairs[0][0], str(tmp_path / "alone"))], None, STATED)
    for name in names:
        assert (tmp_path / name).exists() == (name != "t3")
        if name != "t3":
            assert tree(tmp_path / name) == tree(Path(alone.pair.converted))


def test_a_worker_that_is_asked_to_stop_is_replaced_too() -> None:
    with Workers(1) as executor:
        with pytest.raises(ConverterError, match=r"its worker died \(SIGTERM\)"):
            executor.submit(stopped).result()
        assert executor.submit(os.getpid).result() != os.getpid()
        assert executor.deaths == 1


def test_the_workers_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # Dask sets them for the workers that it starts
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    with Workers(3) as executor:
        assert executor.submit(threads).result() == (2, "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Workers(1) as executor:
        assert executor.submit(threads).result() == (1, "1")


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_a_number_of_workers_that_is_none(count: int) -> None:
    with pytest.raises(UsageError, match=r"`workers` .*: must be a whole number of at least 1"):
        Workers(count)


def test_an_error_of_the_task_is_raised_here_and_what_cannot_be_sent_is_told() -> None:
    with Workers(1) as executor:
        with pytest.raises(ValueError, match="invalid literal"):
            executor.submit(int, "x").result()
        with pytest.raises(AttributeError, match="local object"):
            executor.submit(lambda: 0)
        with pytest.raises(TypeError, match="cannot pickle"):
            executor.submit(open, os.devnull).result()
        assert executor.deaths == 0
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(int)


def test_a_script_without_a_main_part_ends(tmp_path: Path) -> None:
    """Each worker reads it, and would start workers of its own: Python refuses that."""
    (tmp_path / "main.py").write_text(
        "import converter\n"
        f"pairs = [({str(GOLDEN / 'sigma-ms.pth')!r}, 'a')]\n"
        "with converter.Workers(1) as executor:\n"
        "    print(converter.convert_all(pairs, executor=executor)[0].words)\n"
    )
    call = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "main.py"], timeout=60, **call)
    first, *_ = done.stdout.splitlines()
    assert "RuntimeError: An attempt has been made to start a new process" in first  # and it says what is missing


def test_what_cannot_be_given_to_a_worker_is_an_outcome(tmp_path: Path) -> None:
    pairs = [(str(GOLDEN / "sigma-ms.pth"), str(tmp_path / "a"))]
    with Workers(1) as executor:
        (outcome,) = converter.convert_all(pairs, None, STATED, components=lambda *how: how, executor=executor)
    assert (outcome.status, outcome.exit_code) == ("failed", 2)
    assert "it cannot be given to another process: " in outcome.words


def test_errors_have_the_paths_that_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pth").write_bytes(b"PK")
    with Workers(1) as executor:
        there = converter.convert_all([("a.pth", "out")], executor=executor)
    here = converter.convert_all([("a.pth", "out")])
    assert there[0].words == here[0].words
    assert there[0].words.startswith("a.pth: ")


def test_an_error_stops_what_runs(tmp_path: Path) -> None:
    started, executor, pids, futures = time.monotonic(), Workers(2), [], []

    def fail_within() -> None:
        with executor:
            pids.append(executor.submit(os.getpid).result())
            futures.extend(executor.submit(time.sleep, 60) for _ in range(3))
            while not futures[0].running():
                time.sleep(0.01)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_within()
    assert len(futures) == 3
    assert all(future.cancelled() or isinstance(future.exception(), BaseException) for future in futures)
    assert time.monotonic() - started < 30
    assert all(map(gone, pids))
    assert executor.deaths == 0


def command(*arguments: object) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a shell starts it."""
    call = [sys.executable, "-m", "converter", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(call, env=environment, start_new_session=True, **pipes)


def of_group(group: int) -> list[int]:
    """The processes of a process group that live. (One that ends, as Python's resource tracker does just after its
    command, has no memory and no command line from before its pipes close, and can still be listed.)"""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, owner = stat.read_text().rpartition(")")[2].split()[:3]
            command_line = (stat.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(owner) == group and command_line:
            alive.append(int(stat.parent.name))
    return alive


@pytest.mark.parametrize("kill", [os.killpg, os.kill])
def test_ctrl_c_stops_all_workers_and_leaves_nothing_half_written(
    kill: Callable[[int, int], None], tmp_path: Path
) -> None:
    """As a terminal tells all processes of the group, or somebody the command alone."""
    (tmp_path / "in").mkdir()
    source = save(pixart(), tmp_path / "in" / "0.pth").read_bytes()
    for i in range(1, 400):
        (tmp_path / "in" / f"{i}.pth").write_bytes(source)
    call = ["convert", f"{tmp_path}/in/*.pth", f"{tmp_path}/out/{{stem}}", "--num_attention_heads", HEADS]
    with command(*call, "--workers", 2) as process:
        assert process.stdout
        for _ in range(20):
            assert process.stdout.readline()
        kill(process.pid, signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "pixart: error: interrupted by SIGINT; nothing half-finished was left behind\n"
    assert "summary: " in rest
    targets = [*(tmp_path / "out").iterdir()]
    assert 5 <= len(targets) < 400
    assert not [path.name for path in targets if path.name.startswith(".")]
    contents = [tree(path) for path in targets]
    assert all(json.loads(content.pop("conversion.json"))["written"] for content in contents)  # it names its source
    assert all(content == contents[0] for content in contents)
    assert not of_group(process.pid)


def test_workers_end_with_the_command_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(
        "import os, time\n"
        "from converter import Workers\n"
        "if __name__ == '__main__':\n"
        "    executor = Workers(2)\n"
        "    futures = [executor.submit(time.sleep, 0.2) for _ in range(2)]\n"
        "    print(*(future.result() for future in futures), flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment, pipe = os.environ | {"PYTHONPATH": str(ROOT)}, subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, tmp_path / "main.py"], env=environment, stdout=pipe, start_new_session=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"None None\n"
        workers = of_group(process.pid)
        assert len(workers) >= 3
        process.kill()
    assert all(map(gone, workers))


def test_the_command(tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for name in "ab":
        save(pixart(), tmp_path / f"{name}.pth")
    (tmp_path / "c.pth").write_bytes(b"<html>")
    call = [f"{tmp_path}/*.pth", f"{tmp_path}/out/{{stem}}", "--num_attention_heads", HEADS]
    done = cli("convert-pixart", *call, "--workers", 2)
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1] == "summary: 2 converted, 0 unchanged, 1 failed"
    assert done.stderr.startswith(f"convert-pixart: error: {tmp_path}/c.pth: offset 0: this is an HTML or XML page")
    again = cli("convert-pixart", *call, "--workers", 1, "--json")
    alone = cli("convert-pixart", *call, "--json")
    assert (again.stdout, again.stderr) == (alone.stdout, alone.stderr)
    # One is as good as many.
    assert cli("convert-pixart", tmp_path / "a.pth", tmp_path / "a", *call[2:], "--workers", 3).returncode == 0


@pytest.mark.parametrize(("flags", "rule"), [
    (["--workers", 0], "Invalid value for '--workers': 0 is not in the range x>=1"),
    (["--workers", "two"], "Invalid value for '--workers': 'two' is not a valid integer"),
    (["--workers", 1, "--cluster", "x"], "--workers cannot be combined with --cluster, which has its own"),
    (["--workers", 1, "--push_to_hub", "a/b"], "--push_to_hub cannot be combined with --workers"),
])  # fmt: skip
def test_bad_input(flags: list[object], rule: str, cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = cli("convert-pixart", GOLDEN / "sigma-ms.pth", "nowhere", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"convert-pixart: error: {rule}")
    assert len(done.stderr.splitlines()) == 1


def test_a_watched_folder_is_not_for_workers(
    tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = cli("convert-pixart", "--watch", tmp_path, "--dump_path", f"{tmp_path}/out/{{stem}}", "--workers", 1)
    assert (done.returncode, done.stderr) == (2, "convert-pixart: error: --watch cannot be combined with --workers\n")


def test_the_error_of_a_task_that_kills(tmp_path: Path) -> None:
    with Workers(1) as executor, pytest.raises(ConverterError, match=r"died \(exit status 3\)"):
        executor.submit(os._exit, 3).result()
