"""A running job: a checkpoint is taken once it is complete, and only then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import ROOT, pixart, save, within

from converter.conversion.watch import watch
from converter.errors import UsageError


class Job:
    """A job in simulated time: what happens to the folder at which second."""

    def __init__(self, folder: Path, events: dict[int, Callable[[], object]]) -> None:
        self.folder, self.events, self.now, self.said = folder, dict(events), 0.0, list[str]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for when in [when for when in self.events if when <= self.now]:
            self.events.pop(when)()

    def run(self, idle: float = 10, settle: float = 3) -> list[tuple[str, float]]:
        pairs = watch(
            self.folder, "out/{stem}", settle=settle, idle=idle, say=self.said.append,
            clock=lambda: self.now, sleep=self.sleep,
        )  # fmt: skip
        return [(Path(pair.original).name, self.now) for pair in pairs]


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    return save(pixart(), tmp_path / "a.pth").read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def test_what_is_there_and_what_comes(folder: Path, data: bytes) -> None:
    (folder / "epoch_1.pth").write_bytes(data)
    assert Job(folder, {}).run(idle=0, settle=0) == [("epoch_1.pth", 0)]
    job = Job(folder, {5: lambda: (folder / "epoch_2.pth").write_bytes(data)})
    assert job.run() == [("epoch_1.pth", 3), ("epoch_2.pth", 8)]
    assert job.said == []


def test_a_file_that_grows_is_left_alone(folder: Path, data: bytes) -> None:
    path, step = folder / "epoch_1.pth", len(data) // 10 + 1
    events = {t + 1: lambda t=t: path.write_bytes(data[: step * (t + 1)]) for t in range(10)}
    assert Job(folder, events).run() == [("epoch_1.pth", 13)]


def test_an_archive_that_stopped_growing_and_is_not_complete(folder: Path, data: bytes) -> None:
    path = folder / "epoch_1.pth"
    path.write_bytes(data[:-100])
    job = Job(folder, {8: lambda: path.write_bytes(data)})
    assert job.run() == [("epoch_1.pth", 11)]
    assert len(job.said) == 1
    assert job.said[0].startswith("waiting for the rest: ")
    path.write_bytes(data[:-100])
    job = Job(folder, {})
    assert job.run() == [("epoch_1.pth", 13)]  # at the end, as it is: its reader says what is wrong with it
    assert [words.split(":")[0] for words in job.said] == ["waiting for the rest"]


def test_one_that_goes_is_nobodys_and_what_never_completed_comes_in_order(tmp_path: Path, data: bytes) -> None:
    (folder := tmp_path / "runs[1]").mkdir()  # its name looks like a glob
    for name in ("cut.pth", "epoch[10].pth", "epoch[9].pth"):
        (folder / name).write_bytes(data[:-100])
    (folder / "whole.pth").write_bytes(data)
    job = Job(folder, {2: (folder / "whole.pth").unlink, 6: (folder / "cut.pth").unlink})
    assert [name for name, _ in job.run()] == ["epoch[9].pth", "epoch[10].pth"]


def test_one_that_changes_or_goes_and_comes_back_is_taken_again(folder: Path, data: bytes) -> None:
    path, other = folder / "last.pth", folder.parent / "other"
    for file in (path, other):
        file.write_bytes(data)
        os.utime(file, ns=(1, 1))

    def write(when: int = 1) -> None:
        path.write_bytes(data)
        os.utime(path, ns=(when, when))

    for events in (
        {6: lambda: os.replace(other, path)},  # of the same size and time
        {6: path.unlink, 7: write},
        {6: lambda: write(2)},
    ):
        assert [name for name, _ in Job(folder, events).run()] == ["last.pth", "last.pth"]


@pytest.mark.parametrize("settle", [0.0, 1.5, 1.7, 2.5, 5.0])
def test_a_slow_look_ends_no_watch_before_what_is_there_was_taken(folder: Path, data: bytes, settle: float) -> None:
    (folder / "epoch_1.pth").write_bytes(data)
    now = [0.0]

    def clock() -> float:
        now[0] += 0.3
        return now[0]

    pairs = watch(folder, "out/{stem}", settle=settle, idle=0, clock=clock, sleep=lambda seconds: None)
    assert [Path(pair.original).name for pair in pairs] == ["epoch_1.pth"]


def test_one_that_never_completed_is_a_failure(folder: Path, data: bytes, cli: Callable[..., Any]) -> None:
    (folder / "a.pth").write_bytes(data)
    (folder / "b.pth").write_bytes(data[:-100])
    call = ["--watch", folder, "--dump_path", f"{folder.parent}/out/{{stem}}", "--num_attention_heads", "4"]
    done = cli("convert-pixart", *call, "--watch_settle", "0", "--watch_idle", "0")
    assert done.returncode == 3
    assert done.stdout.endswith("summary: 1 converted, 0 unchanged, 1 failed\n")
    assert f"error: {folder}/b.pth: " in done.stderr


def test_other_files_are_nobodys(folder: Path, data: bytes) -> None:
    (folder / "log.txt").write_bytes(data)
    (folder / ".epoch.pth").write_bytes(data)
    (folder / "sub.pth").mkdir()
    assert Job(folder, {}).run() == []


@pytest.mark.parametrize("template", ["out", "out/{parent}", "out/{stem}/{nothing}"])
def test_a_template_that_cannot_tell_them_apart_is_an_error_at_once(folder: Path, template: str) -> None:
    with pytest.raises(UsageError):
        next(watch(folder, template))


def test_the_command_ends_with_its_job(folder: Path, data: bytes, tmp_path: Path) -> None:
    """A process of its own, a slow writer, and an interrupt."""
    command = [sys.executable, "-m", "converter", "convert", "--watch", str(folder), "--dump_path"]
    command += [f"{tmp_path}/out/{{stem}}", "--watch_settle", "0.5", "--num_attention_heads", "4"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        with (folder / "epoch_1.pth").open("wb") as file:
            for start in range(0, len(data), len(data) // 4 + 1):
                file.write(data[start : start + len(data) // 4 + 1])
                file.flush()
                time.sleep(0.2)
                assert not (tmp_path / "out" / "epoch_1").exists()
        assert process.stdout
        with within(120):
            printed = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        printed += rest
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"converted: {folder}/epoch_1.pth" in printed
    assert "interrupted by SIGINT" in errors
    assert printed.endswith("summary: 1 converted, 0 unchanged, 0 failed\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["epoch_1"]
