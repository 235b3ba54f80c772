"""The whole tool on the portable ways: macOS' and Windows' calls alone give what Linux' give, byte for byte.

Tried on Linux, with the calls taken away; of Windows also how it treats what is open, and names that are taken.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
from fresh_memory import fresh_memory
from makers import GOLDEN, HEADS, ROOT, Result, convert, pixart, save, tree
from platforms import take_away

from converter import system
from converter.conversion.watch import watch
from converter.errors import UsageError
from converter.hub.names import hub_path
from converter.pipelines.memory import INTERVAL, available, peak, resident

Cli = Callable[..., Result]
SIGMA, ALPHA = GOLDEN / "sigma-ms.pth", GOLDEN / "alpha-ms.pth"
WAYS: dict[str, tuple[Path, dict[str, Any]]] = {
    "as it is": (SIGMA, {}),
    "cast": (SIGMA, {"dtype": "float16"}),
    "in shards": (ALPHA, {"max_shard_size": 4000}),
    "another layout": (GOLDEN / "dit.pt", {}),
}


@pytest.fixture(params=["darwin", "win32"])
def portable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The calls of another system."""
    take_away(monkeypatch, request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What Linux' calls make of each, and back."""
    place, made = tmp_path_factory.mktemp("linux"), dict[str, dict[str, bytes]]()
    for way, (source, options) in WAYS.items():
        made[way] = tree(convert(source, place / way, **options).path)
        made[f"{way}, back"] = {"": convert(place / way, place / f"{way}.pth", to="original").path.read_bytes()}
    return made


@pytest.mark.parametrize("way", WAYS)
def test_conversions_and_the_way_back(
    way: str, portable: str, tmp_path: Path, wanted: dict[str, dict[str, bytes]]
) -> None:
    source, options = WAYS[way]
    assert tree(convert(source, tmp_path / "out", **options).path) == wanted[way]
    assert {"": convert(tmp_path / "out", tmp_path / "b.pth", to="original").path.read_bytes()} == wanted[
        f"{way}, back"
    ]
    assert sorted(os.listdir(tmp_path)) == ["b.pth", "out"]


def test_folders_and_files_are_replaced(portable: str, tmp_path: Path, wanted: dict[str, dict[str, bytes]]) -> None:
    (tmp_path / "out").mkdir()  # an empty one needs no leave
    convert(ALPHA, tmp_path / "out")
    (tmp_path / "out" / "desktop.ini").write_bytes(b"[.ShellClassInfo]\r\n")  # which Windows puts in any folder
    convert(SIGMA, tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out") == wanted["as it is"]
    convert(ALPHA, tmp_path / "alpha")
    convert(tmp_path / "alpha", tmp_path / "b.pth", to="original")
    convert(tmp_path / "out", tmp_path / "b.pth", to="original", overwrite=True)
    assert (tmp_path / "b.pth").read_bytes() == wanted["as it is, back"][""]
    assert sorted(os.listdir(tmp_path)) == ["alpha", "b.pth", "out"]
    with pytest.raises(UsageError, match="use `overwrite`"):
        convert(SIGMA, tmp_path / "b.pth", to="original")


def test_a_failure_between_the_two_renames_puts_the_old_folder_back(
    portable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, dict[str, bytes]]
) -> None:
    convert(SIGMA, tmp_path / "out")
    rename = system.os.rename

    def fails(one: Path, other: Path) -> None:
        if one.suffix == ".partial" and not other.exists():
            assert [path.suffix for path in tmp_path.iterdir() if path != one] == [".old"]
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(one, other)

    monkeypatch.setattr(system.os, "rename", fails)
    with pytest.raises(Exception, match="out: cannot be written: Input/output error"):
        convert(ALPHA, tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out") == wanted["as it is"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_another_program_has_open_on_windows_stays(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, dict[str, bytes]]
) -> None:
    take_away(monkeypatch, "win32")
    convert(SIGMA, tmp_path / "out")
    convert(tmp_path / "out", tmp_path / "out.pth", to="original")
    convert(ALPHA, tmp_path / "alpha")
    used, call = {
        "folder": (tmp_path / "out" / "conversion.json", (ALPHA, tmp_path / "out")),
        "file": (tmp_path / "out.pth", (tmp_path / "alpha", tmp_path / "out.pth")),
    }[kind]
    with used.open(), pytest.raises(UsageError, match=r"out(\.pth)?: .* \(is it open in another program\?\)"):
        convert(*call, to="original" if kind == "file" else "diffusers", overwrite=True)
    assert tree(tmp_path / "out") == wanted["as it is"]
    assert (tmp_path / "out.pth").read_bytes() == wanted["as it is, back"][""]
    assert sorted(os.listdir(tmp_path)) == ["alpha", "out", "out.pth"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [0, 5, 40])
def test_an_interrupt_leaves_the_old_folder(
    after: int, number: signal.Signals, portable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    convert(ALPHA, tmp_path / "out")
    before, writes, call = tree(tmp_path / "out"), [0], "write" if portable == "win32" else "pwrite"
    real = getattr(system.os, call)

    def struck(*args: Any) -> Any:
        writes[0] += 1
        if writes[0] == after + 1:
            signal.raise_signal(number)
        return real(*args)

    monkeypatch.setattr(system.os, call, struck)
    words = ("--orig_ckpt_path", SIGMA, "--dump_path", tmp_path / "out", "--num_attention_heads", HEADS, "--overwrite")
    result = cli("convert-pixart", *words)
    assert writes[0] > after
    assert result.returncode == 128 + number
    assert result.stderr.count("\n") == 1
    assert tree(tmp_path / "out") == before
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("way", ["link", "copy"])
def test_a_pipeline_replaces_its_own(way: str, portable: str, tmp_path: Path, cli: Cli) -> None:
    """Links, too: that they lead where the record says is read of them."""
    parts = ROOT / "fixtures" / "pipeline"
    words = ["--orig_ckpt_path", parts / "sigma-ms.pth", "--num_attention_heads", HEADS, "--only_transformer=False",
             "--vae", parts / "vae", "--components", way]  # fmt: skip
    for more in ([], ["--overwrite", "--scheduler", "dpm-solver"]):
        result = cli("convert-pixart", *words, "--dump_path", tmp_path / "out", *more)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "vae" / "config.json").is_symlink() == (way == "link")
    assert os.listdir(tmp_path) == ["out"]


def test_comparisons_and_reports(portable: str, tmp_path: Path, cli: Cli) -> None:
    convert(SIGMA, tmp_path / "out")
    result = cli("pixart", "diff", SIGMA, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    words = ("--orig_ckpt_path", SIGMA, "--converted_path", tmp_path / "out", "--num_attention_heads", HEADS)
    reports = [tmp_path / f"report.{suffix}" for suffix in ("json", "xml", "md")]
    more = [word for report in reports for word in ("--report", report)]
    for again in ("", "unchanged since"):
        result = cli("pixart", "parity", *words, "--cache", tmp_path / "cache.json", *more)
        assert result.returncode == 0, result.stderr
        assert again in result.stdout
    for path in (*reports, tmp_path / "cache.json"):
        assert b"\r" not in path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["cache.json", "out", "report.json", "report.md", "report.xml"]


def test_a_watched_folder(portable: str, tmp_path: Path) -> None:
    save(pixart(), tmp_path / "epoch_1.pth")
    (pair,) = watch(tmp_path, "{stem}", settle=0.0, idle=0.0, sleep=lambda seconds: None)
    assert pair.converted == "epoch_1"


def test_memory_where_linux_files_tell_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known, free = resident(), available()
    monkeypatch.setattr("converter.pipelines.memory.RESET", tmp_path / "none" / "clear_refs")
    monkeypatch.setattr("converter.pipelines.memory.STATUS", tmp_path / "none")
    assert abs(resident() - known) < known / 10
    assert free / 2 < available(root=tmp_path) < free * 4  # the machine's alone, whatever the control groups leave
    with peak() as stage, fresh_memory(50_000_000):
        time.sleep(20 * INTERVAL)
    assert stage.rss_bytes > known + 40_000_000


# Paths.


@pytest.mark.parametrize("path", [r"C:\models\a.pth", "C:/models/a.pth", r"\\server\share\a.pth", r"runs\epoch_5"])
def test_a_windows_path_is_no_place_on_the_hub(path: str) -> None:
    assert hub_path(path) is None


def test_a_place_on_the_hub_survives_windows_paths() -> None:
    text = "hf://owner/name@v1/folder/epoch_5.pth"
    place, wanted = hub_path(str(PureWindowsPath(text))), hub_path(text)
    assert place
    assert wanted
    assert (place.repo, place.revision, place.path) == (wanted.repo, wanted.revision, wanted.path)
    with pytest.raises(UsageError, match="not a place on the hub"):
        hub_path(r"hf:\\owner\name\..\..\x")


# What is not there at all.


def test_nothing_asks_for_modules_that_windows_lacks(tmp_path: Path) -> None:
    """Imports, the list of commands and a conversion without them, in a process of its own."""
    script = f"""
import os, signal, sys
for name in ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "_posixsubprocess"):
    sys.modules[name] = None
del signal.SIGHUP, os.preadv, os.pwrite, os.pread, os.pwritev, os.sendfile, os.sysconf, os.fork
del os.O_CLOEXEC, os.getuid, os.mkfifo
import converter
from converter.cli.main import convert, pixart, run
assert run(pixart, "pixart", ["--help"]) == 0
sys.exit(run(convert, "convert-pixart", ["--orig_ckpt_path", {str(SIGMA)!r}, "--dump_path", {str(tmp_path / "out")!r},
    "--num_attention_heads", "{HEADS}"]))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Commands:" in result.stdout
    assert tree(tmp_path / "out") == tree(convert(SIGMA, tmp_path / "again").path)
