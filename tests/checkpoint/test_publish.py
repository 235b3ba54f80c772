"""A folder appears whole or not at all: under refusals, faults, races, signals and kills at every line."""

from __future__ import annotations

import errno
import inspect
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint.write import publish
from converter.checkpoint.write.interrupt import Interrupted, interruptible
from converter.checkpoint.write.publish import FilePublication, Publication
from converter.checkpoint.write.target import check_target, leftovers
from converter.errors import ConverterError, UsageError

NAMES = ("config.json", "vae/config.json", "weights.safetensors.index.json")
STALE = "weights-00001-of-00002.safetensors"  # only the old folder has it


def allowed(folder: Path) -> set[str]:
    return {*NAMES, STALE}


def write(out: Publication, generation: str) -> None:
    for name in NAMES:
        out.write_text(name, generation)


def make_old(target: Path) -> None:
    (target / "vae").mkdir(parents=True)
    for name in (*NAMES, STALE):
        (target / name).write_text("old")


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def replacing(target: Path) -> Publication:
    return Publication(target, needed_bytes=6, overwrite=True, allowed=allowed)


def convert(out: Publication, meanwhile: Callable[[], object] = lambda: None) -> None:
    with out:
        write(out, "new")
        meanwhile()
        out.publish()


def only_old(folder: Path) -> bool:
    return contents(folder) == {f"out/{name}": text for name, text in OLD.items()} and len(os.listdir(folder)) == 1


OLD = dict.fromkeys((*NAMES, STALE), "old")
NEW = dict.fromkeys(NAMES, "new")


@pytest.fixture(params=["exchange", "two renames"])
def both_ways(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Replacing is tried with the system's exchange (where there is one) and without."""
    if request.param == "two renames":
        monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
    elif not exchanges(tmp_path):
        pytest.skip("this system cannot exchange two folders")
    return str(request.param)


def exchanges(folder: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=folder) as one, tempfile.TemporaryDirectory(dir=folder) as other:
        return publish._exchange(Path(one), Path(other))


# Refusals, all before anything is read or written.


def refused(target: Path, source: Path, *, overwrite: bool = True) -> str:
    before = sorted(Path(target.anchor or ".", *target.parts[:-1]).glob("*")) if target.parent.is_dir() else []
    with pytest.raises(UsageError) as caught:
        check_target(target, source, overwrite=overwrite, allowed=allowed)
    if target.parent.is_dir():
        assert sorted(target.parent.glob("*")) == before
    line = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in line
    assert line.count(": ") >= 1
    return line


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "model.pth"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


def test_refuses_a_file(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").write_text("precious")
    assert refused(tmp_path / "out", source) == f"{tmp_path}/out: exists and is not a folder"


def test_refuses_a_fifo_without_blocking(tmp_path: Path, source: Path) -> None:
    os.mkfifo(tmp_path / "out")
    assert "not a folder" in refused(tmp_path / "out", source)


@pytest.mark.parametrize("below", ["", "deep/out"])
def test_refuses_a_dangling_link_also_among_the_parents(tmp_path: Path, source: Path, below: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert refused(tmp_path / "link" / below, source) == f"{tmp_path}/link: is a dangling symbolic link"


def test_refuses_a_link_to_itself(tmp_path: Path, source: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "dangling" in refused(tmp_path / "loop", source)


def test_refuses_the_input_itself_under_any_name(tmp_path: Path, source: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    for path in (source, tmp_path / "link", tmp_path / "hard", tmp_path / "in" / ".." / "in" / "model.pth"):
        assert "is the input" in refused(path, source)
    assert "is the input" in refused(source.parent, source.parent)


def test_refuses_a_target_inside_the_input(tmp_path: Path, source: Path) -> None:
    (tmp_path / "alias").symlink_to("in")
    for path in (
        source.parent / "out",
        source.parent / "a" / "b",
        tmp_path / "alias" / "out",
        source / "out",
    ):
        assert "lies inside it" in refused(path, source if path.parent == source else source.parent)


def test_refuses_a_target_that_holds_the_input(tmp_path: Path, source: Path) -> None:
    (tmp_path / "alias").symlink_to("in")
    (tmp_path / "link.pth").symlink_to(source)
    for target in (source.parent, tmp_path, tmp_path / "alias"):
        assert "holds the input" in refused(target, source)
    assert "holds the input" in refused(source.parent, tmp_path / "link.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link.pth").symlink_to(source)
    assert "holds the input" in refused(tmp_path / "out", tmp_path / "out" / "link.pth")


def test_refuses_to_replace_what_links_in_the_input_lead_to(tmp_path: Path) -> None:
    make_old(tmp_path / "out")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "config.json").symlink_to("../out/config.json")
    assert "links to" in refused(tmp_path / "out", tmp_path / "snapshot")


def test_refuses_a_full_folder_and_names_the_flag(tmp_path: Path, source: Path) -> None:
    make_old(tmp_path / "out")
    assert "--overwrite" in refused(tmp_path / "out", source, overwrite=False)
    check_target(tmp_path / "out", source, overwrite=True, allowed=allowed)
    # The flag is not advised where it would be refused in its turn.
    (tmp_path / "out" / "notes.txt").write_text("precious")
    line = refused(tmp_path / "out", source, overwrite=False)
    assert line == refused(tmp_path / "out", source, overwrite=True)
    assert "notes.txt" in line
    assert "--overwrite" not in line


def test_what_may_be_deleted_is_asked_of_the_folder_where_it_is_by_now(tmp_path: Path, both_ways: str) -> None:
    asked: list[Path] = []

    def by_record(folder: Path) -> set[str]:
        asked.append(folder)
        return set((folder / "config.json").read_text().split())

    make_old(tmp_path / "out")
    for text in (" ".join(OLD), "config.json"):
        (tmp_path / "out" / "config.json").write_text(text)
        out = Publication(tmp_path / "out", needed_bytes=6, overwrite=True, allowed=by_record)
        refusing = pytest.raises(UsageError, match="has no record of, ") if text == "config.json" else nullcontext()
        with refusing:
            convert(out)
        assert asked.pop() == (out.path if both_ways == "exchange" else out.path.with_suffix(".old"))
        assert contents(tmp_path / "out") == NEW | ({"config.json": text} if text == "config.json" else {})
        assert os.listdir(tmp_path) == ["out"]


def test_overwrite_refuses_to_delete_foreign_entries_and_names_three(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    make_old(out)
    for name in ("notes.txt", "vae/a\x1b[31m.txt", "vae/b.txt", "vae/c.txt"):
        (out / name).write_text("precious")
    line = refused(out, source)
    assert line.endswith(r"has no record of, notes.txt, vae/a\x1b[31m.txt, vae/b.txt and more")


@pytest.mark.parametrize("kind", ["empty folder", "link to a file", "link to a folder", "fifo", "deep"])
def test_overwrite_refuses_what_is_not_a_file_of_ours(tmp_path: Path, source: Path, kind: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make_old(tmp_path / "elsewhere")
    make = {
        "empty folder": lambda: (out / "vae").mkdir(),
        "link to a file": lambda: (out / "config.json").symlink_to(source),
        "link to a folder": lambda: (out / "vae").symlink_to(tmp_path / "elsewhere" / "vae"),
        "fifo": lambda: os.mkfifo(out / "config.json"),
        "deep": lambda: out.joinpath(*["d"] * 500, "config.json").parent.mkdir(parents=True),
    }
    make[kind]()
    assert "did not write" in refused(out, source)


@given(st.sets(st.sampled_from([*NAMES, STALE, "vae/notes.txt", "notes.txt", "a/b/c", ".git"]), min_size=1))
@settings(max_examples=60)
def test_overwrite_is_refused_exactly_when_something_foreign_is_there(names: set[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder, "out", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        foreign = sorted(name for name in names if name not in allowed(Path()))
        with pytest.raises(UsageError, match=r"has no record of, \S") if foreign else nullcontext():
            check_target(Path(folder, "out"), Path(folder, "a.pth"), overwrite=True, allowed=allowed)


def test_refuses_a_parent_that_is_a_file(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused(tmp_path / "file" / "deep" / "out", source)


def test_refuses_a_parent_without_write_permission(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.geteuid() == 0:  # root may write anywhere, so ask as someone who may not
        tmp_path.chmod(0o755)
        monkeypatch.setattr(os, "access", lambda path, mode, **_: not mode & os.W_OK)
        monkeypatch.setattr(os, "supports_effective_ids", {os.access})
    assert f"{tmp_path}/locked is not writable" in refused(tmp_path / "locked" / "deep" / "out", source)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
def test_refuses_what_another_user_cannot_reach(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(UsageError, match="not writable"):
            check_target(tmp_path / "locked" / "out", Path("a.pth"), overwrite=True, allowed=allowed)
    finally:
        os.seteuid(0)


def test_refuses_mount_points_and_the_current_folder(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "here")
        for path in (Path(), Path("..", "here"), tmp_path / "here"):
            with pytest.raises(UsageError, match="current folder"):
                check_target(path, source, overwrite=True, allowed=allowed)
    check_target(tmp_path / "here", source, overwrite=True, allowed=allowed)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "here")
    with pytest.raises(UsageError, match="mount point"):
        check_target(tmp_path / "here", source, overwrite=True, allowed=allowed)


def test_accepts_absent_empty_and_linked_folders_and_touches_nothing(tmp_path: Path, source: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    before = sorted(tmp_path.rglob("*"))
    for name, real in (("empty", "empty"), ("link", "empty"), ("a/b/out", "a/b/out"), ("link/x", "empty/x")):
        found = check_target(tmp_path / name, source, overwrite=False, allowed=allowed)
        assert found == Path(os.path.realpath(tmp_path)) / real
    assert sorted(tmp_path.rglob("*")) == before


# Writing.


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

    monkeypatch.setattr(publish, "_exchange", fail)
    make_old(tmp_path / "out")
    with pytest.raises(UsageError, match="cross-device"), replacing(tmp_path / "out") as out:
        out.publish()
    assert only_old(tmp_path)


def break_second_rename(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Without exchange: the old one moves aside, then the new one cannot take its place."""
    monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
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
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**fields))


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


@contextmanager
def faulty(words: str) -> Iterator[None]:
    """The block ends in the one error of a full or broken disk: neither the call's fault nor the input's."""
    with pytest.raises(ConverterError, match=words) as caught:
        yield
    assert type(caught.value) is ConverterError
    assert caught.value.exit_code == 5


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


# A single file.


def write_file(out: Publication, text: str = "new") -> None:
    out.write_text(out.target.name, text)


def make_file(out: Publication, meanwhile: Callable[[], object] = lambda: None) -> None:
    with out:
        write_file(out)
        meanwhile()
        out.publish()


UNLINKABLE = [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES]


@pytest.fixture(params=["links", *UNLINKABLE], ids=lambda code: errno.errorcode.get(code, code))
def hard_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A file system that has them, and those that say in their several ways that they have none."""
    if request.param != "links":

        def refused(*args: Any, **kwargs: Any) -> None:
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(os, "link", refused)
    return bool(request.param == "links")


@pytest.mark.usefixtures("hard_links")
@pytest.mark.parametrize("name", ["out.pth", "a/b/out.pth"])
def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    with FilePublication(target, needed_bytes=3) as out:
        write_file(out)
        assert not target.exists()
        assert leftovers(target) == [out.path]
        out.publish()
        assert target.read_text() == "new"
    assert contents(tmp_path) == {name: "new"}
    assert os.listdir(target.parent) == ["out.pth"]
    assert target.stat().st_nlink == 1

    def fails() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        make_file(FilePublication(tmp_path / "c" / "d.pth", needed_bytes=3), fails)
    with FilePublication(tmp_path / "never.pth", needed_bytes=3) as out:
        write_file(out)
    assert contents(tmp_path) == {name: "new"}
    assert not (tmp_path / "c").exists()


def test_a_file_has_the_mode_that_files_have_here(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        make_file(FilePublication(tmp_path / "out.pth", needed_bytes=3))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.pth").stat().st_mode) == 0o640


@pytest.mark.usefixtures("hard_links")
@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "dangling link"])
def test_what_came_where_the_file_goes_is_kept(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out.pth"
    make = {
        "file": lambda: target.write_text("theirs"),
        "folder": lambda: make_old(target),
        "empty folder": target.mkdir,
        "dangling link": lambda: target.symlink_to("nowhere"),
    }[kind]
    with pytest.raises(UsageError, match=r"out\.pth: was created by someone else in the meantime"):
        make_file(FilePublication(target, needed_bytes=3), make)
    assert os.listdir(tmp_path) == ["out.pth"]
    assert {"file": target.is_file, "folder": target.is_dir, "empty folder": target.is_dir,
            "dangling link": target.is_symlink}[kind]()  # fmt: skip
    if kind == "file":
        assert target.read_text() == "theirs"
    if kind == "folder":
        assert contents(target) == OLD


@pytest.mark.parametrize("runs", range(5))
def test_of_two_that_publish_one_file_at_once_one_wins_and_one_is_refused(tmp_path: Path, runs: int) -> None:
    start, results = threading.Barrier(4), []

    def one(text: str) -> None:
        with FilePublication(tmp_path / "out.pth", needed_bytes=1) as out:
            write_file(out, text)
            start.wait(10)
            try:
                out.publish()
                results.append(text)
            except UsageError:
                results.append("")

    threads = [threading.Thread(target=one, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = filter(None, results)
    assert len(results) == 4
    assert contents(tmp_path) == {"out.pth": winner}


@pytest.mark.usefixtures("hard_links")
def test_replacing_a_file_leaves_no_instant_without_one(tmp_path: Path) -> None:
    target = tmp_path / "out.pth"
    target.write_text("0" * 1000)
    seen, stop, gaps = set(), threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            try:
                seen.add(target.read_text())
            except OSError as error:
                gaps.append(error)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for n in range(1, 30):
            with FilePublication(target, needed_bytes=6, overwrite=True) as out:
                write_file(out, str(n % 10) * 1000)
                out.publish()
    finally:
        stop.set()
        watcher.join()
    assert gaps == []
    assert seen <= {digit * 1000 for digit in "0123456789"}
    assert len(seen) > 1
    assert contents(tmp_path) == {"out.pth": "9" * 1000}


def test_replacing_a_link_replaces_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "real.pth").write_text("old")
    (tmp_path / "link.pth").symlink_to("elsewhere/real.pth")
    make_file(FilePublication(tmp_path / "link.pth", needed_bytes=3, overwrite=True))
    assert (tmp_path / "link.pth").is_symlink()
    assert contents(tmp_path / "elsewhere") == {"real.pth": "new"}


def test_other_names_of_a_replaced_file_keep_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "out.pth").write_text("old")
    (tmp_path / "other.pth").hardlink_to(tmp_path / "out.pth")
    make_file(FilePublication(tmp_path / "out.pth", needed_bytes=3, overwrite=True))
    assert contents(tmp_path) == {"out.pth": "new", "other.pth": "old"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_file_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, code: int
) -> None:
    if overwrite:
        (tmp_path / "out.pth").write_text("old")

    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace" if overwrite else "link", broken)
    with pytest.raises(ConverterError, match=os.strerror(code)) as caught:
        make_file(FilePublication(tmp_path / "out.pth", needed_bytes=3, overwrite=overwrite))
    assert caught.value.exit_code == 5
    assert contents(tmp_path) == ({"out.pth": "old"} if overwrite else {})
    assert len(os.listdir(tmp_path)) == overwrite


def test_a_folder_that_came_where_a_file_is_to_be_replaced_is_kept(tmp_path: Path) -> None:
    out = FilePublication(tmp_path / "out.pth", needed_bytes=3, overwrite=True)
    with pytest.raises(UsageError, match=r"out\.pth: .*directory"):
        make_file(out, lambda: make_old(tmp_path / "out.pth"))
    assert contents(tmp_path / "out.pth") == OLD
    assert os.listdir(tmp_path) == ["out.pth"]


@pytest.mark.parametrize("call", ["link", "fsync", "mkdir"])
def test_an_interrupt_on_the_way_leaves_the_file_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A signal while the file takes its place waits until it has it, and is not lost."""
    real = getattr(os, call)

    def struck(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, struck)
    with pytest.raises(Interrupted), interruptible():
        make_file(FilePublication(tmp_path / "new" / "out.pth", needed_bytes=3))
    assert contents(tmp_path) == ({"new/out.pth": "new"} if call == "link" else {})
    assert [path.name for path in tmp_path.rglob("*")] == (["new", "out.pth"] if call == "link" else [])


def test_the_file_is_flushed_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[int] = []
    fsync, link = os.fsync, os.link

    def logged_fsync(fd: int) -> None:
        log.append(os.fstat(fd).st_ino)
        fsync(fd)

    def logged_link(one: Path, other: Path) -> None:
        log.append(0)
        link(one, other)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "link", logged_link)
    make_file(FilePublication(tmp_path / "out.pth", needed_bytes=3))
    cut = log.index(0)
    assert (tmp_path / "out.pth").stat().st_ino in log[:cut]
    assert tmp_path.stat().st_ino in log[cut + 1 :]


# What fails once the target is there.

AFTER = ("open", "fsync", "unlink", "rmdir", "rename")
CODES = (errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EINTR, errno.EPERM)


def then_fail(monkeypatch: pytest.MonkeyPatch, target: Path, call: str, code: int) -> None:
    """From the moment on at which the target is the new one, a system call fails."""
    real = getattr(os, call)

    def failing(*args: Any, **kwargs: Any) -> Any:
        new = target.read_text() if target.is_file() else contents(target).get("config.json")
        if new == "new":
            raise OSError(code, os.strerror(code), str(args[0]))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, failing)


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
        assert "is there, whole" in out.notes[0]
    if not deleted:
        assert "the old result" in out.notes[-1]
        assert "delete it" in out.notes[-1]
        assert leftovers(tmp_path / "out") == [tmp_path / left[0]]
        assert call != "unlink" or left[0].endswith(".replaced")


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", AFTER)
@pytest.mark.parametrize("old", [False, True])
def test_what_fails_after_a_file_has_its_name_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool, call: str, code: int
) -> None:
    if old:
        (tmp_path / "out.pth").write_text("old")
    out = FilePublication(tmp_path / "out.pth", needed_bytes=3, overwrite=old)
    with monkeypatch.context() as patch:
        make_file(out, lambda: then_fail(patch, tmp_path / "out.pth", call, code))
    assert out.published
    assert (tmp_path / "out.pth").read_text() == "new"
    assert bool(out.notes) == (call != "rename" and (call != "unlink" or not old))
    assert not any("old result" in note for note in out.notes)


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


# Signals and kills.

DRIVER = (
    f"""
from __future__ import annotations
import os, random, signal, sys, time
from pathlib import Path
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
    publish._exchange = lambda one, other: False
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
