"""What the tests of publishing share: an old folder, a new one, and a disk that fails."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from converter import system
from converter.checkpoint.write.publish import Publication
from converter.errors import ConverterError

NAMES = ("config.json", "vae/config.json", "weights.safetensors.index.json")
STALE = "weights-00001-of-00002.safetensors"  # only the old folder has it


def allowed(folder: Path) -> dict[str, str]:
    return dict.fromkeys((*NAMES, STALE), "")


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


def exchanges(folder: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=folder) as one, tempfile.TemporaryDirectory(dir=folder) as other:
        return system.exchange(Path(one), Path(other))


@contextmanager
def faulty(words: str) -> Iterator[None]:
    """The block ends in the one error of a full or broken disk: neither the call's fault nor the input's."""
    with pytest.raises(ConverterError, match=words) as caught:
        yield
    assert type(caught.value) is ConverterError
    assert caught.value.exit_code == 5


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
