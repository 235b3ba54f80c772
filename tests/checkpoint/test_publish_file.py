"""A single file that appears whole or not at all, and never over what it may not replace."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.checkpoint.write.interrupt import Interrupted, interruptible
from converter.checkpoint.write.publish import FilePublication
from converter.checkpoint.write.target import check_file
from converter.errors import ConverterError, UsageError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.pth"
    path.write_text("input")
    return path


def publish(target: Path, text: str = "new", *, overwrite: bool = False, meanwhile: Callable[[], object] = int) -> None:
    with FilePublication(target, needed_bytes=3, overwrite=overwrite) as out:
        out.write_text(target.name, text)
        assert not target.exists() or target.read_text() != text
        meanwhile()
        out.publish()


def test_it_appears_whole_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "b.pth"
    publish(target)
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["b.pth"]
    assert target.stat().st_nlink == 1


def test_leaving_without_publish_removes_everything(tmp_path: Path) -> None:
    with FilePublication(tmp_path / "new" / "b.pth", needed_bytes=1) as out:
        out.write_text("b.pth", "half")
        assert len(os.listdir(tmp_path / "new")) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_what_came_in_the_meantime_is_kept(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        refuse(monkeypatch, "link", errno.EPERM)
    target = tmp_path / "b.pth"
    with pytest.raises(UsageError, match="was created by someone else in the meantime"):
        publish(target, meanwhile=lambda: target.write_text("theirs"))
    assert target.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["b.pth"]


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    def fails(*arguments: object, **named: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fails)


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "link", errno.EOPNOTSUPP)
    publish(tmp_path / "b.pth")
    assert (tmp_path / "b.pth").read_text() == "new"
    assert os.listdir(tmp_path) == ["b.pth"]


@pytest.mark.parametrize(("call", "overwrite"), [("link", False), ("replace", True)])
def test_a_disk_that_fails_leaves_what_was_there(
    call: str, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "b.pth"
    if overwrite:
        target.write_text("old")
    refuse(monkeypatch, call, errno.EIO)
    with pytest.raises(ConverterError, match="cannot be written"):
        publish(target, overwrite=overwrite)
    assert os.listdir(tmp_path) == (["b.pth"] if overwrite else [])
    assert not overwrite or target.read_text() == "old"


def test_the_old_file_gives_way_at_once(tmp_path: Path) -> None:
    target = tmp_path / "b.pth"
    target.write_text("old")
    publish(target, overwrite=True, meanwhile=lambda: pytest.fail("gone") if target.read_text() != "old" else None)
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["b.pth"]


def test_a_link_is_followed_and_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real.pth").write_text("old")
    (tmp_path / "link.pth").symlink_to("real.pth")
    target = check_file(tmp_path / "link.pth", tmp_path / "x", overwrite=True)
    publish(target, overwrite=True)
    assert (tmp_path / "link.pth").is_symlink()
    assert (tmp_path / "real.pth").read_text() == "new"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_removes_the_partial(signum: signal.Signals, tmp_path: Path) -> None:
    def interrupted() -> None:
        with interruptible(), FilePublication(tmp_path / "b.pth", needed_bytes=1) as out:
            out.write_text("b.pth", "half")
            signal.raise_signal(signum)

    with pytest.raises(Interrupted):
        interrupted()
    assert os.listdir(tmp_path) == []


def refused(target: Path, source: Path, words: str, *, overwrite: bool = True) -> None:
    with pytest.raises(UsageError, match=words):
        check_file(target, source, overwrite=overwrite)


def test_what_may_not_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "again.pth").hardlink_to(source)
    (tmp_path / "named.pth").symlink_to(source)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "there.pth").write_text("old")
    refused(tmp_path / "folder", source, "is a folder")
    refused(tmp_path / "nowhere", source, "dangling")
    refused(tmp_path / "nowhere" / "b.pth", source, "dangling")
    refused(tmp_path / "fifo", source, "no regular file")
    refused(tmp_path / "there.pth" / "b.pth", source, "not a folder")
    refused(tmp_path / "there.pth", source, "use --overwrite", overwrite=False)
    for same in ("a.pth", "again.pth", "named.pth", "folder/../a.pth"):
        refused(tmp_path / same, source, "is the input")
    assert check_file(tmp_path / "there.pth", source, overwrite=True) == tmp_path / "there.pth"
    assert check_file(tmp_path / "new" / "b.pth", source, overwrite=False) == tmp_path / "new" / "b.pth"


def test_what_the_input_is_made_of(tmp_path: Path) -> None:
    """A folder whose weights are a link, as in a cache: the file behind it is the input too."""
    (tmp_path / "blob").write_text("weights")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.safetensors").symlink_to("../blob")
    refused(tmp_path / "blob", tmp_path / "model", "is what the input's .* links to")
    refused(tmp_path / "model" / "b.pth", tmp_path / "model", "lies inside it")
