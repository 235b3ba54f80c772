"""A single file appears whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from publications import (
    AFTER,
    CODES,
    OLD,
    contents,
    make_old,
    then_fail,
)

from converter.checkpoint.write.interrupt import Interrupted, interruptible
from converter.checkpoint.write.publish import FilePublication, Publication
from converter.checkpoint.write.target import leftovers
from converter.errors import ConverterError, UsageError


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
