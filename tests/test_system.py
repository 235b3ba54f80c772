"""Each call, with what the systems have: where one is missing, the portable way gives the same."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from platforms import SYSTEMS, Windows, take_away

from converter import system

DATA = random.Random(0).randbytes(300_000)


@pytest.fixture(params=SYSTEMS)
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "linux":
        take_away(monkeypatch, request.param)
    return str(request.param)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Windows:
    calls = take_away(monkeypatch, "win32")
    assert calls
    return calls


def at_once(work: Callable[[int], None], threads: int = 4) -> None:
    """Several threads; a failure of any is raised."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=guarded, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failures:
        raise failures[0]


def test_several_threads_read_one_descriptor_by_position(tmp_path: Path, platform: str) -> None:
    (tmp_path / "data").write_bytes(DATA)
    fd = system.open_to_read(tmp_path / "data")

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            view = memoryview(bytearray(chance.randrange(1, 5000)))
            offset = chance.randrange(len(DATA) + 10)
            count = system.read_at(fd, view, offset)
            assert view[:count] == DATA[offset : offset + len(view)]

    try:
        at_once(read)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_several_threads_write_one_descriptor_by_position(tmp_path: Path, platform: str) -> None:
    fd = system.create(tmp_path / "data")
    pieces = [(start, DATA[start : start + 700]) for start in range(0, len(DATA), 700)]
    random.Random(1).shuffle(pieces)

    def write(number: int) -> None:
        for start, piece in pieces[number::4]:
            system.write_at(fd, memoryview(piece), start)

    try:
        at_once(write)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
    assert (tmp_path / "data").read_bytes() == DATA
    with pytest.raises(FileExistsError):
        system.create(tmp_path / "data")


def test_short_writes_are_continued(tmp_path: Path, platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = "write" if platform == "win32" else "pwrite"
    real = getattr(os, call)
    monkeypatch.setattr(system.os, call, lambda fd, data, *offset: real(fd, data[:7], *offset))
    fd = system.create(tmp_path / "data")
    system.write_at(fd, DATA[:100], 5)
    os.close(fd)
    assert (tmp_path / "data").read_bytes() == bytes(5) + DATA[:100]


# What a name leads to.


def test_a_folder_takes_the_place_of_nothing_and_of_an_empty_one(tmp_path: Path, platform: str) -> None:
    for name in ("new", "empty"):
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "file").write_text(name)
        if name == "empty":
            (tmp_path / name).mkdir()
        system.rename(tmp_path / "one", tmp_path / name)
        assert (tmp_path / name / "file").read_text() == name
    assert sorted(os.listdir(tmp_path)) == ["empty", "new"]


@pytest.mark.parametrize("kind", ["folder", "file", "link to an empty folder"])
def test_a_folder_takes_the_place_of_nothing_else(tmp_path: Path, platform: str, kind: str) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    if kind == "folder":
        other.mkdir()
        (other / "theirs").write_text("precious")
    elif kind == "file":
        other.write_text("precious")
    else:
        (tmp_path / "empty").mkdir()
        other.symlink_to("empty")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=r"File exists|Directory not empty|Not a directory"):
        system.rename(one, other)
    assert sorted(tmp_path.rglob("*")) == before
    assert other.is_symlink() == (kind == "link to an empty folder")


def test_a_file_replaces_another(tmp_path: Path, platform: str) -> None:
    (tmp_path / "one").write_text("new")
    (tmp_path / "other").write_text("old")
    system.replace(tmp_path / "one", tmp_path / "other")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("move", [system.rename, system.replace])
def test_what_is_in_use_for_a_moment_on_windows_is_tried_again(
    tmp_path: Path, windows: Windows, monkeypatch: pytest.MonkeyPatch, move: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "one").write_text("new")
    scanner = (tmp_path / "one").open()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            scanner.close()

    monkeypatch.setattr(system, "WAITS", (0.1, 0.2, 0.4))
    monkeypatch.setattr(system, "time", SimpleNamespace(sleep=sleep))
    move(tmp_path / "one", tmp_path / "other")
    assert slept == [0.1, 0.2]
    assert os.listdir(tmp_path) == ["other"]


def test_what_stays_in_use_is_said(tmp_path: Path, windows: Windows) -> None:
    (tmp_path / "one").mkdir()
    with (tmp_path / "one" / "weights").open("w"), pytest.raises(OSError, match="is it open in another program"):
        system.rename(tmp_path / "one", tmp_path / "other")
    assert os.listdir(tmp_path) == ["one"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_other_errors_are_raised_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    tries: list[int] = []

    def fails(one: object, other: object) -> None:
        tries.append(1)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match=os.strerror(code)):
        system.replace(tmp_path / "one", tmp_path / "other")
    assert tries == [1]


def test_two_folders_change_places_on_linux_alone(tmp_path: Path, platform: str) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    done = system.exchange(tmp_path / "one", tmp_path / "other")
    assert done is False or platform == "linux"
    assert os.listdir(tmp_path / "one") == (["other"] if done else ["one"])


@pytest.mark.parametrize("to", ["plain", "/a/b", "//server/share/x"])
def test_a_link_is_read_as_it_was_written(tmp_path: Path, platform: str, to: str) -> None:
    (tmp_path / "link").symlink_to(to)
    assert system.read_link(tmp_path / "link") == to


def test_a_link_into_windows_network_is_read_as_it_was_written(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system.os, "readlink", lambda path: r"\\?\UNC\server\share\vae")
    assert system.read_link("link") == r"\\server\share\vae"


# The disk.


@pytest.mark.parametrize("size", [0, 5 << 20])
def test_a_new_file_has_its_size_before_it_is_written(tmp_path: Path, platform: str, size: int) -> None:
    fd = system.create(tmp_path / "new")
    try:
        system.reserve(fd, size)
        assert os.path.getsize(tmp_path / "new") == size
        system.write_at(fd, DATA, 0)
        system.begin_flush(fd)
        system.flush(fd)
    finally:
        os.close(fd)
    assert (tmp_path / "new").read_bytes().rstrip(b"\0") == DATA.rstrip(b"\0")


def test_a_file_system_without_room_to_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the file all the same; whether it is full, or the disk fails, writing and flushing say."""
    asked: list[str] = []

    def failing(name: str) -> Any:
        return lambda *_: asked.append(name) or -1

    library = SimpleNamespace(fallocate=failing("fallocate"), sync_file_range=failing("sync_file_range"))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    fd = system.create(tmp_path / "new")
    try:
        system.reserve(fd, 1000)
        system.begin_flush(fd)
    finally:
        os.close(fd)
    assert asked == ["fallocate", "sync_file_range"]
    assert os.path.getsize(tmp_path / "new") == 1000


def test_windows_flushes_what_is_open_for_writing(tmp_path: Path, windows: Windows) -> None:
    (tmp_path / "data").write_bytes(DATA)
    system.flush_path(tmp_path / "data")
    system.flush_path(tmp_path)  # which cannot be opened, and is no loss
    assert windows.flushed == [str(tmp_path / "data")]


@pytest.mark.parametrize("can", [True, False])
def test_macos_is_asked_to_empty_the_disks_own_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool
) -> None:
    take_away(monkeypatch, "darwin")
    asked: list[str] = []

    def command(fd: int, number: int) -> int:
        asked.append(f"fcntl {number}")
        if not can:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        return 0

    monkeypatch.setattr(fcntl, "fcntl", command)
    monkeypatch.setattr(system.os, "fsync", lambda fd: asked.append("fsync"))
    system.flush_path(tmp_path)
    assert asked == ["fcntl 51", *([] if can else ["fsync"])]


def test_a_file_that_cannot_be_flushed_is_an_error(tmp_path: Path, platform: str) -> None:
    with pytest.raises(FileNotFoundError):
        system.flush_path(tmp_path / "none")


# Signals and memory.


def test_the_signals_that_ask_to_stop(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if platform == "win32":
        monkeypatch.setattr(system.signal, "SIGBREAK", 21, raising=False)
    last: list[Any] = [21] if platform == "win32" else [signal.SIGHUP]
    assert system.stop_signals() == [signal.SIGINT, signal.SIGTERM, *last]


def test_a_disk_that_ignores_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Out" / "1").mkdir(parents=True)
    assert not system.ignores_case(tmp_path / "Out" / "1" / "x" / "2")
    (tmp_path / "oUT").symlink_to("Out")  # on another disk, a link may be called so
    assert not system.ignores_case(tmp_path / "Out")
    (tmp_path / "oUT").unlink()
    monkeypatch.setattr(os.path, "samefile", lambda one, other: str(one).casefold() == str(other).casefold())
    assert system.ignores_case(tmp_path / "Out" / "1" / "x" / "2")
    assert not system.ignores_case("/1/2")


def test_memory_is_given_back_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(malloc_trim=asked.append))
    system.trim_memory()
    assert asked == [0]


@pytest.mark.parametrize("other", ["darwin", "win32"])
def test_memory_is_left_alone_where_the_c_library_cannot(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    take_away(monkeypatch, other)
    system.trim_memory()
