"""Full disks, damaged components and interrupts while a pipeline is written: the target is whole or absent."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from makers import Result, tree
from parts import TEXT_ENCODER, TOKENIZER, assemble, flags

Cli = Callable[..., Result]
COPY = ("--components", "copy", "--text_encoder", TEXT_ENCODER, "--tokenizer", TOKENIZER)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(params=["absent", "overwrite"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A target that after the test, which makes the assembly fail, must be as it was: absent, or the old one."""
    place = tmp_path / "work"
    place.mkdir()
    if request.param == "overwrite":
        assemble("sigma-ms", place / "out")
        before = tree(place / "out")
    yield place / "out"
    if request.param == "overwrite":
        assert os.listdir(place) == ["out"]
        assert tree(place / "out") == before
    else:
        assert os.listdir(place) == []


def in_copies(real: Callable[..., Any], after: int, act: Callable[[int], object]) -> Callable[..., Any]:
    """A system call that acts from the so-many-th time on that it is for a component in the making."""
    calls = itertools.count()

    def call(fd: int, *rest: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{fd}")
        part = Path(path).parent.name if ".partial/" in path else ""
        if part in ("vae", "text_encoder", "tokenizer") and next(calls) >= after:
            act(fd)
        return real(fd, *rest)

    return call


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fills_up_or_fails(
    code: int, after: int, target: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    def fail(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", in_copies(os.pwrite, after, fail))
    result = cli("convert-pixart", *flags("alpha-ms", target, "--overwrite", *COPY))
    assert result.returncode == 5
    assert result.stderr == f"convert-pixart: error: {target}: cannot be written: {os.strerror(code)}\n"


def test_a_file_system_without_links(target: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    def refused(*places: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refused)
    result = cli("convert-pixart", *flags("alpha-ms", target, "--overwrite"))
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert (
        "vae/config.json: Operation not permitted: no link can be made there; --components copy makes" in result.stderr
    )


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_components_are_copied(
    number: signal.Signals, after: int, target: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.setattr(os, "pwrite", in_copies(os.pwrite, after, lambda fd: signal.raise_signal(number)))
    result = cli("convert-pixart", *flags("alpha-ms", target, "--overwrite", *COPY))
    assert result.returncode == 128 + number
    assert result.stderr.count("\n") == 1


def test_what_is_read_back_is_not_what_was_written(target: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    real = os.pwrite

    def damaged(fd: int, data: Any, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(f"vae/{WEIGHTS}"):
            data = bytes(data[:-1]) + bytes([data[-1] ^ 1])
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", damaged)
    result = cli("convert-pixart", *flags("alpha-ms", target, "--overwrite", *COPY))
    assert result.returncode == 5
    assert f"{target}/vae/{WEIGHTS}: what is read back is not what was written" in result.stderr


@pytest.mark.parametrize("kind", ["shrinks", "cannot be read"])
def test_a_component_that_fails_while_it_is_copied(
    kind: str, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    (large := Path(shutil.copytree(TOKENIZER, tmp_path / "words")) / "words.txt").write_bytes(b"0" * (3 << 20))
    real, calls = os.preadv, itertools.count()

    def reads(fd: int, buffers: Any, offset: int) -> int:
        if os.path.samestat(os.fstat(fd), large.stat()) and next(calls) == 1:
            if kind == "cannot be read":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            os.truncate(large, offset)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", reads)
    result = cli("convert-pixart", *flags("alpha-ms", target, "--overwrite", *COPY, "--tokenizer", large.parent))
    assert result.returncode == 3
    assert result.stderr.startswith(f"convert-pixart: error: {large}: ")
    assert ("shrank while it was read" if kind == "shrinks" else os.strerror(errno.EIO)) in result.stderr


def test_copies_need_room_and_links_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """1.75 MB are there: enough for the transformer with its record, and not for the components' megabyte too."""
    monkeypatch.setattr(
        os, "statvfs", lambda _: SimpleNamespace(f_bavail=1750, f_bfree=1750, f_frsize=1000, f_blocks=10**6)
    )
    result = cli("convert-pixart", *flags("alpha-ms", tmp_path / "out", *COPY))
    assert result.returncode == 2
    assert "not enough space on the disk: 2.63 MB needed, 1.75 MB free" in result.stderr
    assert os.listdir(tmp_path) == []
    result = cli("convert-pixart", *flags("alpha-ms", tmp_path / "out", *COPY, "--components", "link"))
    assert result.returncode == 0, result.stderr
