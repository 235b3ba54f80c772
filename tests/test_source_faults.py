"""A source that the system will not show: exit 3 in one line, wherever it is asked; never an internal error."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import HEADS, Result, convert, pixart, save

import converter
from converter.errors import InputError, UsageError

Cli = Callable[..., Result]
LINE = re.compile(r"pixart: error: .+\n")
CALLS = ("stat", "lstat", "fstat", "listdir", "scandir", "open", "preadv")
CODES = (errno.EACCES, errno.ELOOP, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG)
TO_FILE = "convert --orig_ckpt_path {i}/conv/transformer --dump_path {o}/back.pth --to original"
COMMANDS = {
    "a file": f"convert --orig_ckpt_path {{i}}/a.pth --dump_path {{o}}/out --num_attention_heads {HEADS}",
    "a folder": "convert --orig_ckpt_path {i}/conv --dump_path {o}/out --dtype float16",
    "a null caption": f"{TO_FILE} --null_caption {{i}}/null.pth",
    "a folder of files": (
        f"convert --orig_ckpt_path {{i}}/many --dump_path {{o}}/{{{{stem}}}} --num_attention_heads {HEADS}"
    ),
    "revert": "revert --converted_path {i}/conv --dump_path {o}/back.pth",
    "inspect": "inspect {i}/conv",
    "diff": "diff {i}/a.pth {i}/conv",
    "new-family": "new-family mine {i}/a.pth --target {i}/conv --out {o}/mine.py",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("inputs")
    state = pixart()
    path = save(state, place / "a.pth")
    save({"y_embedder.y_embedding": state["y_embedder.y_embedding"]}, place / "null.pth")
    convert(path, place / "conv")
    (place / "many").mkdir()
    shutil.copy(path, place / "many" / "b.pth")
    return place


class Fault:
    """Lets one call on a path of the input fail, the n-th; `hit` says whether it came to that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, inside: Path, call: str, number: int, code: int) -> None:
        self.hit = False
        real, links, seen = getattr(os, call), os.readlink, [0]

        def failing(*args: Any, **kwargs: Any) -> Any:
            path = args[0] if args else "."
            if isinstance(path, int):
                path = links(f"/proc/self/fd/{path}")
            if os.fsdecode(path).startswith(str(inside)):
                seen[0] += 1
                if seen[0] == number:
                    self.hit = True
                    raise OSError(code, os.strerror(code), *([path] if call not in ("fstat", "preadv") else []))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, call, failing)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="what a descriptor is of is asked of /proc")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_call_on_a_source_may_fail(
    command: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    tried = refused = 0
    for position, call in enumerate(CALLS):
        for number in (1, 2, 3, 5, 8, 11, 15, 20, 26, 33):
            out = tmp_path / f"{call}{number}"
            out.mkdir()
            words = COMMANDS[command].format(i=inputs, o=out).split()
            with monkeypatch.context() as patch:
                fault = Fault(patch, inputs, call, number, CODES[(number + position) % len(CODES)])
                result = cli("pixart", *words)
            if not fault.hit:
                assert result.returncode == 0
                break
            tried += 1
            refused += result.returncode == 3
            # 0: it was asked for nothing that matters, or by another call as well.
            assert result.returncode in (0, 3), (call, number, result.stderr)
            assert result.returncode == 0 or LINE.fullmatch(result.stderr)
            assert "internal" not in result.stderr
            assert result.returncode == 0 or os.listdir(out) == []
    assert tried > refused > 5


@pytest.mark.parametrize("name", ["conversion.json", "original_extras.safetensors", "transformer/config.json"])
def test_what_lies_beside_the_weights_is_never_missed_in_silence(
    name: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, it was taken for absent."""
    for call in ("stat", "lstat"):
        real = getattr(os, call)

        def failing(path: Any, *args: Any, real: Any = real, **kwargs: Any) -> Any:
            if os.fsdecode(path).endswith(name):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, call, failing)
    with pytest.raises(InputError, match=f"{re.escape(name)}: Permission denied"):
        converter.convert(inputs / "conv", tmp_path / "back.pth", to="original")


def test_a_nul_in_a_path(inputs: Path, tmp_path: Path) -> None:
    for path in ("a\0b.pth", str(inputs / "a.pth\0")):
        for call in (
            lambda path=path: converter.convert(path, tmp_path / "out"),
            lambda path=path: converter.inspect(path),
            lambda path=path: converter.diff(path, path),
            lambda path=path: converter.open_checkpoint(path),
            lambda path=path: converter.convert(inputs / "conv", tmp_path / "b.pth", to="original", null_caption=path),
        ):
            with pytest.raises(InputError, match=r"\\x00.*: not a path: it contains a null character"):
                call()
    with pytest.raises(UsageError, match="a null character"):
        converter.convert(inputs / "a.pth", str(tmp_path / "a\0b"))


def test_a_glob_in_a_folder_that_cannot_be_read(inputs: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    def failing(path: Any = ".") -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "scandir", failing)
    monkeypatch.setattr(os, "listdir", failing)
    result = cli("convert-pixart", "--orig_ckpt_path", inputs / "*.pth", "--dump_path", "{stem}")
    assert result.returncode == 3
    assert result.stderr == f"convert-pixart: error: {inputs}: Permission denied\n"
