"""A running job: a checkpoint is taken once it is complete, and only then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from makers import HEADS, ROOT, converted, lock, pixart, save, within

from converter.conversion import batch
from converter.conversion.pairs import Pair
from converter.conversion.watch import watch
from converter.errors import InputError, UsageError

Cli = Callable[..., Any]


class Job:
    """A job in simulated time: what happens to the folder at which second."""

    def __init__(self, folder: Path, events: dict[int, Callable[[], object]]) -> None:
        self.folder, self.events, self.now, self.said = folder, dict(events), 0.0, list[str]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for when in [when for when in self.events if when <= self.now]:
            self.events.pop(when)()

    def run(self, idle: float = 10, settle: float = 3, template: str = "out/{stem}") -> list[tuple[str, float]]:
        pairs = watch(
            self.folder, template, settle=settle, idle=idle, say=self.said.append,
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


def test_one_that_never_completed_is_a_failure(folder: Path, data: bytes, cli: Cli) -> None:
    (folder / "a.pth").write_bytes(data)
    (folder / "b.pth").write_bytes(data[:-100])
    call = ["--watch", folder, "--dump_path", f"{folder.parent}/out/{{stem}}", "--num_attention_heads", "4"]
    done = cli("convert-pixart", *call, "--watch_settle", "0", "--watch_idle", "0")
    assert done.returncode == 3
    assert done.stdout.endswith("summary: 1 converted, 0 unchanged, 1 failed\n")
    assert f"error: {folder}/b.pth: " in done.stderr


def test_runs_that_begin_later(folder: Path, data: bytes) -> None:
    def begin(path: str) -> Callable[[], None]:
        def write() -> None:
            (folder / path).parent.mkdir(parents=True)
            (folder / path).write_bytes(data)

        return write

    places = ("checkpoints/1.pth", "exp1/checkpoints/2.pth", "exp2/3.pth", "exp2/deep/checkpoints/4.pth")
    job = Job(folder, {5 * i + 5: begin(path) for i, path in enumerate(places)})
    assert job.run(template="out/{run}/{stem}") == [("1.pth", 8), ("2.pth", 13), ("3.pth", 18)]
    assert job.said == [f"no checkpoint yet: looking in {folder}/, {folder}/*/ and {folder}/*/checkpoints/"]


def test_two_runs_with_one_target_are_an_error_at_once(folder: Path, data: bytes) -> None:
    for run in ("exp1", "exp2"):
        (folder / run / "checkpoints").mkdir(parents=True)
        (folder / run / "checkpoints" / "1.pth").write_bytes(data)
    with pytest.raises(
        UsageError, match=r"have the same target out/1: tell their conversions apart with \{run\}/\{stem\}$"
    ):
        Job(folder, {}).run()
    assert Job(folder, {}).run(template="out/{run}/{stem}") == [("1.pth", 3), ("1.pth", 3)]


def test_two_runs_of_which_the_second_comes_later(folder: Path, data: bytes, tmp_path: Path) -> None:
    (folder / "1.pth").write_bytes(data)

    def begin() -> None:
        (folder / "exp2").mkdir()
        (folder / "exp2" / "1.pth").write_bytes(data)

    job = Job(folder, {5: begin})
    pairs = watch(
        folder, f"{tmp_path}/out/{{stem}}", settle=3, idle=5, clock=lambda: job.now, sleep=job.sleep
    )  # fmt: skip
    one, two = converted(pairs, num_attention_heads=HEADS)
    assert (one.status, two.status, two.exit_code) == ("converted", "failed", 2)
    assert two.words.endswith("tell their conversions apart with {run}/{stem}")


@pytest.mark.parametrize(
    "template",
    [
        "{f}/{stem}.pth", "{f}/{name}", "{f}/back/{stem}.pth", "{f}/{run}/{stem}.safetensors", "{f}/x/ckpts/{name}",
        "{f}/{stem}/../{name}", "{f}/{run}/checkpoints/{stem}.pth", "{f}/../link/{stem}.pth",
    ],
)  # fmt: skip
def test_no_result_is_taken_for_a_checkpoint(folder: Path, data: bytes, template: str) -> None:
    (folder.parent / "link").symlink_to(folder)
    with pytest.raises(UsageError, match="would be taken for new checkpoints of the watched folder"):
        Job(folder, {}).run(template=template.replace("{f}", str(folder)))


@pytest.mark.parametrize("template", ["{f}/{stem}", "{f}/x/{stem}", "{f}/{stem}/ckpt", "{f}/x/checkpoints/{stem}"])
def test_results_in_the_watched_folder_are_left_alone(folder: Path, data: bytes, template: str, cli: Cli) -> None:
    (folder / "1.pth").write_bytes(data)
    call = ["--watch", folder, "--dump_path", template.replace("{f}", str(folder))]
    call += ["--num_attention_heads", "4", "--watch_settle", "0", "--watch_idle", "0"]
    assert cli("convert-pixart", *call).stdout.endswith("summary: 1 converted, 0 unchanged, 0 failed\n")
    assert cli("convert-pixart", *call).stdout.endswith("summary: 0 converted, 1 unchanged, 0 failed\n")


def test_a_folder_that_cannot_be_read_is_told_once(folder: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "1.pth").write_bytes(data)
    (folder / "closed").mkdir()
    lock(monkeypatch, "closed")
    job = Job(folder, {})
    assert job.run() == [("1.pth", 3)]
    assert job.said == [f"not looked into: {folder}/closed: Permission denied"]


def test_a_watch_of_nothing_says_so_unless_quiet(folder: Path, cli: Cli) -> None:
    call = ["--watch", folder, "--dump_path", "out/{run}/{stem}", "--watch_idle", "0", "--watch_settle", "0"]
    assert cli("convert-pixart", *call).stderr.startswith("note: no checkpoint yet: looking in ")
    assert cli("convert-pixart", *call, "--quiet").stderr == ""


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


@pytest.mark.parametrize(
    "template",
    ["{f}/{run}/{stem}/{stem}0.safetensors", "{f}/{run}/{stem}/comfy.safetensors", "{f}/x/step_{stem}/a.pth"],
)
def test_a_name_that_becomes_a_folder_that_is_looked_into_is_no_place_of_results(folder: Path, template: str) -> None:
    with pytest.raises(UsageError, match="would be taken for new checkpoints of the watched folder"):
        Job(folder, {}).run(template=template.replace("{f}", str(folder)))


def test_a_target_is_no_checkpoint_whatever_folder_it_comes_into(folder: Path, data: bytes) -> None:
    """A link to where results go comes during the watch, which nobody knew before."""
    (out := folder.parent / "out").mkdir()
    for path in (out / "a0.pth", folder / "step_9.pth", folder / "step_10.pth"):
        path.write_bytes(data)
    # What was a checkpoint until then is written over: no checkpoint either.
    job = Job(
        folder, {5: lambda: (folder / "linked").symlink_to(out), 12: lambda: (folder / "a.pth").write_bytes(data)}
    )
    taken = []
    for pair in watch(folder, f"{out}/{{stem}}0.pth", settle=3, idle=5, clock=lambda: job.now, sleep=job.sleep):
        taken.append(Path(pair.original).name)
        Path(pair.converted).write_bytes(data)
    assert taken == ["step_9.pth", "step_10.pth", "a0.pth", "a.pth"]


def test_a_folder_that_is_gone_for_a_while_is_waited_for(folder: Path, data: bytes) -> None:
    (folder / "1.pth").write_bytes(data)
    elsewhere = folder.parent / "elsewhere"

    def back() -> None:
        elsewhere.rename(folder)
        (folder / "2.pth").write_bytes(data)

    job = Job(folder, {5: lambda: folder.rename(elsewhere), 14: back})
    assert job.run(idle=10) == [("1.pth", 3), ("2.pth", 17)]  # and what was taken is not taken again
    assert job.said == [
        f"{folder}: No such file or directory: waiting for the watched folder to come back",
        f"{folder}: the watched folder is back",
    ]


def test_a_folder_that_does_not_come_back_ends_the_watch(folder: Path, data: bytes) -> None:
    (folder / "1.pth").write_bytes(data)
    job = Job(folder, {5: lambda: folder.rename(folder.parent / "elsewhere")})
    with pytest.raises(InputError, match="runs: No such file or directory: the watch ended, since the watched folder"):
        job.run(idle=10)
    assert (job.now, len(job.said)) == (15, 1)


@pytest.mark.parametrize("ending", ["gone", "interrupted"])
def test_what_was_converted_is_told_however_the_watch_ends(
    ending: str, folder: Path, data: bytes, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "1.pth").write_bytes(data)
    batch_run = batch.convert_all

    def run(pairs: Iterator[Pair], *args: Any, finished: Callable[..., object], **more: Any) -> object:
        def end(outcome: object, step: str) -> None:
            finished(outcome, step)
            folder.rename(f"{folder}-gone")
            if ending == "interrupted":
                raise KeyboardInterrupt

        return batch_run(pairs, *args, finished=end, **more)

    monkeypatch.setattr(batch, "convert_all", run)
    monkeypatch.setattr("converter.conversion.watch.POLL", 0.05)
    call = ["--watch", folder, "--dump_path", f"{folder.parent}/out/{{stem}}", "--num_attention_heads", HEADS]
    call += ["--watch_settle", "0", "--watch_idle", "0.05"]
    code = {"gone": 3, "interrupted": 130}[ending]
    done = cli("convert-pixart", *call)
    assert (done.returncode, done.stderr.count("error: ")) == (code, 1)
    assert done.stdout.endswith("summary: 1 converted, 0 unchanged, 0 failed\n")
    Path(f"{folder}-gone").rename(folder)
    done = cli("convert-pixart", *call, "--json")
    content = json.loads(done.stdout)
    assert (done.returncode, content["ok"], content["exit_code"]) == (code, False, code)
    assert [row["status"] for row in content["conversions"]] == ["unchanged"]
    assert content["summary"] == {"converted": 0, "unchanged": 1, "failed": 0}
