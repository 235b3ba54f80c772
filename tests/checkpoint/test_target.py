"""Where a file may be written, and what holds for a folder too: refused before anything is read or touched."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.checkpoint.write.target import check_target, nearest
from converter.errors import UsageError


def folder_check(target: Path, source: Path, *, overwrite: bool) -> Path:
    return check_target(target, source, overwrite=overwrite, allowed=lambda _: {})


Check = Callable[..., Path]
both = pytest.mark.parametrize("check", [check_target, folder_check])


def refused(target: Path, source: Path, *, overwrite: bool = True, check: Check = check_target) -> str:
    """The rule, without the path that stands before it."""
    with pytest.raises(UsageError) as caught:
        check(target, source, overwrite=overwrite)
    line = str(caught.value)
    assert caught.value.exit_code == 2
    assert line.isprintable()
    path, colon, rule = line.partition(": ")
    assert colon
    assert path
    return rule


def test_accepts_what_is_not_there_and_makes_nothing(tmp_path: Path, source: Path) -> None:
    (tmp_path / "link").symlink_to("in")
    before = sorted(tmp_path.rglob("*"))
    for name, real in (("out.pth", "out.pth"), ("a/b/out.pth", "a/b/out.pth"), ("link/out.pth", "in/out.pth"),
                       ("in/../out.pth", "out.pth"), ("in/other.pth", "in/other.pth")):  # fmt: skip
        for overwrite in (False, True):
            assert check_target(tmp_path / name, source, overwrite=overwrite) == Path(os.path.realpath(tmp_path)) / real
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_is_there_is_replaced_only_where_that_is_asked_for(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "out.pth"
    target.write_text("old")
    assert refused(target, source, overwrite=False) == "exists; use `overwrite` to replace it"
    assert check_target(target, source, overwrite=True).name == "out.pth"
    assert target.read_text() == "old"


def test_a_link_is_followed(tmp_path: Path, source: Path) -> None:
    (tmp_path / "real.pth").write_text("old")
    (tmp_path / "link.pth").symlink_to("real.pth")
    assert "`overwrite`" in refused(tmp_path / "link.pth", source, overwrite=False)
    assert check_target(tmp_path / "link.pth", source, overwrite=True).name == "real.pth"


@pytest.mark.parametrize("overwrite", [False, True])
def test_refuses_what_is_no_file(tmp_path: Path, source: Path, overwrite: bool) -> None:
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "link.pth").symlink_to("folder.pth")
    os.mkfifo(tmp_path / "fifo.pth")
    for name in ("folder.pth", "link.pth", "folder.pth/"):
        assert refused(tmp_path / name, source, overwrite=overwrite) == "is a folder; name the file to write"
    assert refused(tmp_path / "fifo.pth", source, overwrite=overwrite) == "exists and is no regular file"
    assert refused(Path("/dev/null"), source, overwrite=overwrite) == "exists and is no regular file"


def test_refuses_a_socket(
    source: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("s"))  # the name of a socket has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.pth")
        assert refused(Path("s.pth"), source) == "exists and is no regular file"


@both
@pytest.mark.parametrize("overwrite", [False, True])
def test_refuses_the_input_under_any_name(tmp_path: Path, source: Path, overwrite: bool, check: Check) -> None:
    (tmp_path / "link.pth").symlink_to(source)
    (tmp_path / "hard.pth").hardlink_to(source)
    (tmp_path / "alias").symlink_to("in")
    for path in (source, tmp_path / "link.pth", tmp_path / "hard.pth", tmp_path / "in/../in/model.pth",
                 tmp_path / "alias" / "model.pth"):  # fmt: skip
        assert refused(path, source, overwrite=overwrite, check=check).startswith("is the input")
        assert refused(path, tmp_path / "link.pth", overwrite=overwrite, check=check).startswith("is the input")


@both
def test_refuses_a_place_inside_the_input_folder(tmp_path: Path, source: Path, check: Check) -> None:
    (tmp_path / "alias").symlink_to("in")
    for path in (source, source.parent / "new.pth", tmp_path / "alias" / "new.pth", source.parent / "a" / "new.pth",
                 source.parent):  # fmt: skip
        assert "lies inside it" in refused(path, source.parent, check=check)
    assert "lies inside it" in refused(source / "new.pth", source, check=check)


def test_refuses_what_links_in_the_input_lead_to(tmp_path: Path, source: Path) -> None:
    """A snapshot in a cache is a folder of links; replacing what one leads to would change the input."""
    (tmp_path / "snapshot" / "transformer").mkdir(parents=True)
    (tmp_path / "blob.pth").write_text("weights")
    (tmp_path / "snapshot" / "transformer" / "weights.bin").symlink_to("../../blob.pth")
    rule = refused(tmp_path / "blob.pth", tmp_path / "snapshot")
    assert rule == f"is what the input's {tmp_path}/snapshot/transformer/weights.bin links to"
    (tmp_path / "hard.pth").hardlink_to(tmp_path / "blob.pth")
    assert "links to" in refused(tmp_path / "hard.pth", tmp_path / "snapshot")
    (tmp_path / "beside.pth").write_text("")
    check_target(tmp_path / "beside.pth", tmp_path / "snapshot", overwrite=True)


@both
@pytest.mark.parametrize("below", ["", "deep/out.pth"])
def test_refuses_a_dangling_link_also_among_the_parents(tmp_path: Path, source: Path, below: str, check: Check) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert refused(tmp_path / "link" / below, source, check=check) == "is a dangling symbolic link"
    (tmp_path / "loop").symlink_to("loop")
    assert refused(tmp_path / "loop" / below, source, check=check) == "is a dangling symbolic link"


@both
def test_refuses_a_parent_that_is_a_file_or_may_not_be_written(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, check: Check
) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused(tmp_path / "file" / "out.pth", source, check=check)
    assert "is not a folder" in refused(tmp_path / "file" / "deep" / "out.pth", source, check=check)
    (tmp_path / "locked").mkdir(mode=0o555)
    monkeypatch.setattr(os, "access", lambda path, mode, **_: not mode & os.W_OK)
    monkeypatch.setattr(os, "supports_effective_ids", {os.access})
    for path in (tmp_path / "locked" / "out.pth", tmp_path / "locked" / "deep" / "out.pth"):
        assert refused(path, source, check=check).endswith("locked is not writable")


@both
def test_refuses_a_name_that_is_too_long_before_anything_is_done(tmp_path: Path, source: Path, check: Check) -> None:
    assert refused(tmp_path / ("x" * 256), source, overwrite=False, check=check) == "File name too long"


def test_names_that_are_not_plain_text_are_shown_safely(tmp_path: Path, source: Path) -> None:
    (tmp_path / "a\x1b[31m\n.pth").write_text("")
    with pytest.raises(UsageError, match=r"a\\x1b\[31m\\n\.pth: exists; use `overwrite`") as caught:
        check_target(tmp_path / "a\x1b[31m\n.pth", source, overwrite=False)
    assert str(caught.value).isprintable()


def test_the_nearest_that_exists(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert nearest(tmp_path / "a" / "b") == tmp_path
    assert nearest(tmp_path / "link" / "b") == tmp_path / "link"
    assert nearest(Path("/nowhere/at/all")) == Path("/")
    assert nearest(Path("nowhere/at/all")) == Path()


# ---------------------------------------------------------------- what is no one's work

OURS = dict.fromkeys(["conversion.json", "transformer/config.json"], "")
NO_ONES = {
    ".DS_Store": b"\0\0\0\1Bud1",
    "transformer/.DS_Store": b"",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
    "desktop.ini": b"[.ShellClassInfo]",
    "transformer/._config.json": b"",
    "._transformer": b"",
    "._gone": b"\0\5\x16\7\0\2",
    ".cache/huggingface/.gitignore": b"*",
    ".cache/huggingface/CACHEDIR.TAG": b"Signature:",
    ".cache/huggingface/download/transformer/config.json.metadata": b"0\n",
    ".cache/huggingface/download/transformer/config.json.lock": b"",
}
SOMEONES = {
    "notes.txt": b"",
    "DS_Store": b"",
    "transformer/.DS_Store.bak": b"",
    ".gitattributes": b"",
    ".env": b"",
    "._mine": b"text",
    ".cache/notes": b"",
    ".cache/huggingface/token": b"",
    ".cache/huggingface/hub/model.safetensors": b"",
    "transformer/.cache/huggingface/.gitignore": b"",
    "thumbs/notes.db": b"",
}


def made(folder: Path, *names: str) -> Path:
    for name in (*OURS, *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((NO_ONES | SOMEONES).get(name, b"{}"))
    return folder


def test_what_systems_and_the_hub_leave_does_not_block_overwrite(tmp_path: Path, source: Path) -> None:
    out = made(tmp_path / "out", *NO_ONES)
    assert check_target(out, source, overwrite=True, allowed=lambda _: OURS) == out.resolve()
    with pytest.raises(UsageError, match="use `overwrite` to replace it"):
        check_target(out, source, overwrite=False, allowed=lambda _: OURS)


@pytest.mark.parametrize("name", SOMEONES)
def test_what_may_be_a_persons_work_still_does(tmp_path: Path, source: Path, name: str) -> None:
    out = made(tmp_path / "out", *NO_ONES, name)
    with pytest.raises(UsageError, match="is kept: ") as caught:
        check_target(out, source, overwrite=True, allowed=lambda _: OURS)
    assert str(caught.value).endswith(f"has no record of, {name}")


@pytest.mark.parametrize("kind", ["folder", "link", "fifo", "huge"])
def test_a_name_alone_makes_no_rubbish(tmp_path: Path, source: Path, kind: str) -> None:
    path = made(tmp_path / "out") / ".DS_Store"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(source)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.touch()
        os.truncate(path, 1 << 30)
    with pytest.raises(UsageError, match=r"is kept: .* \.DS_Store"):
        check_target(path.parent, source, overwrite=True, allowed=lambda _: OURS)
