"""Where a folder may be written or replaced: refused before anything is read, and nothing that is there is touched."""

from __future__ import annotations

import os
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from publications import (
    NAMES,
    NEW,
    OLD,
    STALE,
    allowed,
    contents,
    convert,
    make_old,
)

from converter.checkpoint.write.publish import Publication
from converter.checkpoint.write.target import check_target
from converter.errors import UsageError


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


def test_refuses_a_file(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").write_text("precious")
    assert refused(tmp_path / "out", source) == f"{tmp_path}/out: exists and is not a folder"


def test_refuses_a_fifo_without_blocking(tmp_path: Path, source: Path) -> None:
    os.mkfifo(tmp_path / "out")
    assert "not a folder" in refused(tmp_path / "out", source)


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
    assert "`overwrite`" in refused(tmp_path / "out", source, overwrite=False)
    check_target(tmp_path / "out", source, overwrite=True, allowed=allowed)
    # The flag is not advised where it would be refused in its turn.
    (tmp_path / "out" / "notes.txt").write_text("precious")
    line = refused(tmp_path / "out", source, overwrite=False)
    assert line == refused(tmp_path / "out", source, overwrite=True)
    assert "notes.txt" in line
    assert "`overwrite`" not in line


def test_what_may_be_deleted_is_asked_of_the_folder_where_it_is_by_now(tmp_path: Path, both_ways: str) -> None:
    asked: list[Path] = []

    def by_record(folder: Path) -> dict[str, str]:
        asked.append(folder)
        return dict.fromkeys((folder / "config.json").read_text().split(), "")

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
