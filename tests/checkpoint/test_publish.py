"""A folder appears whole or not at all: under faults and races."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from publications import (
    AFTER,
    CODES,
    NAMES,
    NEW,
    OLD,
    STALE,
    allowed,
    contents,
    convert,
    exchanges,
    faulty,
    make_old,
    only_old,
    replacing,
    then_fail,
    write,
)

from converter import system
from converter.checkpoint.write.publish import Publication
from converter.checkpoint.write.target import leftovers
from converter.errors import ConverterError, UsageError


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with Publication(tmp_path / "new" / "out", needed_bytes=0) as out:
            write(out, "new")
            out.publish()
    finally:
        os.umask(before)
    for path in (tmp_path / "new").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("name", ["", ".", "/etc/x", "../x", "vae/../../x"])
def test_create_stays_inside(tmp_path: Path, name: str) -> None:
    with Publication(tmp_path / "out", needed_bytes=0) as out, pytest.raises(ConverterError, match="inside"):
        out.create(name)
    assert list(tmp_path.iterdir()) == []


def test_create_makes_new_files_only_and_closes_them_on_exec(tmp_path: Path) -> None:
    with Publication(tmp_path / "out", needed_bytes=0) as out:
        fd = out.create("a")
        assert not os.get_inheritable(fd)
        os.close(fd)
        for name, why in (("a", "File exists"), ("a/b", "Not a directory")):
            with pytest.raises(UsageError, match=why):
                out.create(name)


def test_create_after_the_end_brings_nothing_back(tmp_path: Path) -> None:
    with Publication(tmp_path / "out", needed_bytes=0) as out:
        pass
    with pytest.raises(UsageError, match="No such file"):
        out.create("vae/late")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, None])
def test_leaving_without_publish_removes_everything(tmp_path: Path, error: type[BaseException] | None) -> None:
    (tmp_path / "kept").mkdir()
    with (
        pytest.raises(error) if error else nullcontext(),
        Publication(tmp_path / "kept" / "a" / "b" / "out", needed_bytes=0) as out,
    ):
        write(out, "new")
        assert out.path.name.startswith(".out.")
        assert out.path.parent == tmp_path / "kept" / "a" / "b"
        if error:
            raise error
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]


def test_a_parent_that_others_use_by_now_is_kept(tmp_path: Path) -> None:
    with Publication(tmp_path / "a" / "b" / "out", needed_bytes=0):
        (tmp_path / "a" / "theirs").write_text("precious")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "theirs"]


def test_a_parent_that_someone_else_makes_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def overtaken(path: Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        if Path(path).name == "theirs":
            mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", overtaken)
    with Publication(tmp_path / "theirs" / "ours" / "out", needed_bytes=0):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "theirs"]


def test_a_parents_name_that_is_too_long_leaves_no_parents(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="File name too long"),
        Publication(tmp_path / "new" / ("x" * 256) / "out", needed_bytes=0),
    ):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []


def test_long_names_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    one, other = (tmp_path / ("a_run_of_a_team_that_likes_to_give_its_runs_long_names_epoch_" + end) for end in "12")
    with Publication(one, needed_bytes=0) as out:
        assert (leftovers(one), leftovers(other)) == ([out.path], [])


@pytest.mark.parametrize("name", ["x" * 255, "\N{SNOWMAN}" * 85])
def test_a_name_as_long_as_it_can_be(name: str, tmp_path: Path) -> None:
    with Publication(tmp_path / name, needed_bytes=6) as out:
        assert leftovers(tmp_path / name) == [out.path]
        write(out, "new")
        out.publish()
    assert os.listdir(tmp_path) == [name]


# Publishing.


def test_publishes_to_an_absent_an_empty_and_a_linked_target(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "link").symlink_to("linked")
    for name in ("a/b/absent", "empty", "link"):
        with Publication(tmp_path / name, needed_bytes=6) as out:
            write(out, "new")
            out.publish()
            assert out.published
        assert contents(tmp_path / name) == NEW
    assert sorted(os.listdir(tmp_path)) == ["a", "empty", "link", "linked"]
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "a" / "b") == ["absent"]


@pytest.mark.usefixtures("both_ways")
def test_the_whole_old_gives_way_to_the_whole_new(tmp_path: Path) -> None:
    make_old(tmp_path / "out")
    with replacing(tmp_path / "out") as out:
        write(out, "new")
        assert contents(tmp_path / "out") == OLD
        out.publish()
    assert contents(tmp_path / "out") == NEW  # and no stale shard
    assert os.listdir(tmp_path) == ["out"]


def test_exchange_leaves_no_instant_without_a_target(tmp_path: Path) -> None:
    if not exchanges(tmp_path):
        pytest.skip("this system cannot exchange two folders")
    make_old(tmp_path / "out")
    reads, gaps, stop = 0, 0, threading.Event()

    def look() -> None:
        nonlocal reads, gaps
        while not stop.is_set():
            reads += 1
            gaps += not os.path.exists(tmp_path / "out" / "config.json")

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(20):
            with replacing(tmp_path / "out") as out:
                write(out, "new")
                out.publish()
    finally:
        stop.set()
        watcher.join()
    assert reads > 20
    assert gaps == 0


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_exchange_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    ctypes = pytest.importorskip("ctypes")
    library = SimpleNamespace(renameat2=lambda *_: -1)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    monkeypatch.setattr(ctypes, "get_errno", lambda: code)
    make_old(tmp_path / "out")
    with replacing(tmp_path / "out") as out:
        write(out, "new")
        out.publish()
    assert contents(tmp_path / "out") == NEW
    assert os.listdir(tmp_path) == ["out"]


def test_a_failing_exchange_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(one: Path, other: Path) -> bool:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(system, "exchange", fail)
    make_old(tmp_path / "out")
    with pytest.raises(UsageError, match="cross-device"), replacing(tmp_path / "out") as out:
        out.publish()
    assert only_old(tmp_path)


def break_second_rename(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Without exchange: the old one moves aside, then the new one cannot take its place."""
    monkeypatch.setattr(system, "exchange", lambda one, other: False)
    rename, tries = os.rename, 0

    def broken(one: Path, other: Path) -> None:
        nonlocal tries
        tries += Path(one).suffix == ".partial"
        if Path(one).suffix == ".partial" and tries == 2:
            assert not other.exists()
            meanwhile()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(one, other)

    monkeypatch.setattr(os, "rename", broken)


def test_a_failing_second_rename_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(tmp_path / "out")
    break_second_rename(monkeypatch, lambda: None)
    with faulty(r"out: cannot be written: Input/output error"):
        convert(replacing(tmp_path / "out"))
    assert only_old(tmp_path)


def test_an_old_one_that_cannot_go_back_is_named_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(tmp_path / "out")

    def squat() -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("precious")

    break_second_rename(monkeypatch, squat)
    with pytest.raises(UsageError, match=r"\.old: is the old target, whole"):
        convert(replacing(tmp_path / "out"))
    assert contents(tmp_path / "out") == {"theirs": "precious"}
    assert OLD in map(contents, leftovers(tmp_path / "out"))


# What others do to the target while we write.


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link", "link to a folder"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.usefixtures("both_ways")
def test_a_target_that_someone_else_made_meanwhile_is_kept(tmp_path: Path, kind: str, overwrite: bool) -> None:
    target = tmp_path / "out"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("precious")
    inode = 0

    def meanwhile() -> None:
        nonlocal inode
        if kind == "folder":
            target.mkdir()
            (target / "notes.txt").write_text("precious")
        elif kind == "file":
            target.write_text("precious")
        else:
            target.symlink_to("theirs" if kind == "link to a folder" else "nowhere")
        inode = target.lstat().st_ino

    out = Publication(target, needed_bytes=6, overwrite=overwrite, allowed=allowed)
    with pytest.raises(UsageError, match="did not write" if overwrite else "someone else"):
        convert(out, meanwhile)
    assert target.lstat().st_ino == inode
    assert sorted(os.listdir(tmp_path)) == ["out", "theirs"]
    assert (target / "notes.txt").exists() == (kind == "folder")
    assert contents(tmp_path / "theirs") == {"config.json": "precious"}


@pytest.mark.usefixtures("both_ways")
def test_a_foreign_file_added_to_the_old_one_meanwhile_is_kept(tmp_path: Path) -> None:
    make_old(tmp_path / "out")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        convert(replacing(tmp_path / "out"), lambda: (tmp_path / "out" / "notes.txt").write_text("precious"))
    assert contents(tmp_path / "out") == OLD | {"notes.txt": "precious"}
    assert os.listdir(tmp_path) == ["out"]


def test_overwrite_without_a_record_deletes_nothing(tmp_path: Path) -> None:
    make_old(tmp_path / "out")
    with (
        pytest.raises(UsageError, match="did not write"),
        Publication(tmp_path / "out", needed_bytes=0, overwrite=True) as out,
    ):
        out.publish()
    assert only_old(tmp_path)


def test_a_partial_that_someone_deleted_is_one_line(tmp_path: Path) -> None:
    out = Publication(tmp_path / "out", needed_bytes=0)
    with pytest.raises(UsageError, match="No such file"):
        convert(out, lambda: shutil.rmtree(out.path))


# Disks that are full or broken.


def disk(monkeypatch: pytest.MonkeyPatch, **fields: int) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bfree=0, **fields))


def test_space_is_checked_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, f_bavail=10, f_frsize=4096, f_blocks=100)
    with (
        pytest.raises(UsageError, match=r"out: not enough space on the disk: 2\.00 GB needed, 41 kB free"),
        Publication(tmp_path / "new" / "out", needed_bytes=2_000_000_000),
    ):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []
    with Publication(tmp_path / "new" / "out", needed_bytes=40_960):
        pass


def test_a_file_system_that_tells_no_size_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, f_bavail=0, f_frsize=0, f_blocks=0)
    with Publication(tmp_path / "out", needed_bytes=1):
        pass


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["write", "fsync", "mkdir"])
def test_a_disk_that_fills_up_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    make_old(tmp_path / "out")
    real, calls = getattr(os, call), 0

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:  # a short write first, then nothing goes
            raise OSError(code, os.strerror(code))
        return real(args[0], args[1][:1]) if call == "write" else real(*args, **kwargs)

    def meanwhile() -> None:
        monkeypatch.setattr(os, call, broken)
        out.write_text("unet/config.json", "new")
        out.write_text("text_encoder/config.json", "new")

    out = replacing(tmp_path / "out")
    with faulty(f"cannot be written: {os.strerror(code)}"):
        convert(out, meanwhile)
    monkeypatch.undo()
    assert only_old(tmp_path)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_fault_of_the_disk_names_the_target(tmp_path: Path, code: int) -> None:
    """What cannot be read is an error of its own kind; so these come from writing, wherever in the block."""
    with faulty(f"out: cannot be written: {os.strerror(code)}"), Publication(tmp_path / "out", needed_bytes=0):
        raise OSError(code, os.strerror(code))


def test_what_is_no_fault_of_the_disk_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), Publication(tmp_path / "out", needed_bytes=0):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))  # of whoever shows the progress


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    with Publication(tmp_path / "out", needed_bytes=0) as out:
        out.write_text("a", "größer als drei")
        out.publish()
    assert (tmp_path / "out" / "a").read_text(encoding="utf-8") == "größer als drei"


def test_everything_is_flushed_before_the_rename_and_the_parents_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[int] = []
    fsync, rename = os.fsync, os.rename

    def logged_fsync(fd: int) -> None:
        log.append(os.fstat(fd).st_ino)
        fsync(fd)

    def logged_rename(one: Path, other: Path) -> None:
        log.append(0)
        rename(one, other)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "rename", logged_rename)
    with Publication(tmp_path / "a" / "b" / "out", needed_bytes=6) as out:
        write(out, "new")
        everything = {p.stat().st_ino for p in (out.path, *out.path.rglob("*"))}
        out.publish()
    cut = log.index(0)
    assert set(log[:cut]) == everything
    assert log[cut + 1 :] == [p.stat().st_ino for p in (tmp_path / "a" / "b", tmp_path / "a", tmp_path)]


def test_folders_that_cannot_be_flushed_are_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with Publication(tmp_path / "out", needed_bytes=6) as out:
        write(out, "new")
        out.publish()
    assert contents(tmp_path / "out") == NEW


# What fails once the target is there.


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", AFTER)
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.usefixtures("both_ways")
def test_what_fails_after_the_rename_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool, call: str, code: int
) -> None:
    if old:
        make_old(tmp_path / "out")
    out = replacing(tmp_path / "out")
    with monkeypatch.context() as patch:
        convert(out, lambda: then_fail(patch, tmp_path / "out", call, code))
    assert out.published
    assert contents(tmp_path / "out") == NEW
    left = [path.name for path in tmp_path.iterdir() if path.name != "out"]
    flushed, deleted = call not in ("open", "fsync"), not left
    assert len(out.notes) == (not flushed) + (not deleted)
    assert all(str(tmp_path / "out") in note or left[0] in note for note in out.notes)
    assert all(os.strerror(code) in note for note in out.notes)
    if not flushed:
        assert "is complete" in out.notes[0]
    if not deleted:
        assert "the old result" in out.notes[-1]
        assert "delete it" in out.notes[-1]
        assert leftovers(tmp_path / "out") == [tmp_path / left[0]]
        assert call != "unlink" or left[0].endswith(".replaced")


@pytest.mark.usefixtures("both_ways")
def test_an_old_result_that_cannot_be_deleted_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(tmp_path / "out")
    unlink = os.unlink

    def protected(path: Any, *args: Any, **kwargs: Any) -> None:
        if str(path).endswith("config.json") and "vae" not in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        unlink(path, *args, **kwargs)

    monkeypatch.setattr(os, "unlink", protected)
    out = replacing(tmp_path / "out")
    convert(out)
    (left,) = leftovers(tmp_path / "out")
    assert left.suffix == ".replaced"
    (note,) = out.notes
    assert note.startswith(f"{left} is what is left of the old result, and could not be deleted (")
    assert "config.json: Permission denied): delete it" in note
    assert STALE not in contents(left)  # all that can be is deleted
    assert contents(tmp_path / "out") == NEW


# Leftovers of killed runs.


def test_leftovers_are_named_and_never_adopted_or_deleted(tmp_path: Path) -> None:
    names = [".out.0123456789abcdef.partial", ".out.fedcba9876543210.old"]
    others = [".out.x.0123456789abcdef.partial", ".out.partial", "out.0123456789abcdef.partial", names[0] + "~"]
    for name in names + others:
        make_old(tmp_path / name)
    before = contents(tmp_path)
    assert leftovers(tmp_path / "out") == [tmp_path / name for name in names]
    with Publication(tmp_path / "out", needed_bytes=6) as out:
        write(out, "new")
        assert out.path in leftovers(tmp_path / "out")
        out.publish()
    assert contents(tmp_path) == before | {f"out/{name}": "new" for name in NAMES}


@given(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=30))
@settings(max_examples=60)
def test_leftovers_are_found_whatever_the_name(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if name in (".", ".."):
            return
        with Publication(Path(folder, name), needed_bytes=0) as out:
            assert leftovers(Path(folder, name)) == [Path(os.path.realpath(folder), out.path.name)]
            assert leftovers(Path(folder, name + "x")) == []
