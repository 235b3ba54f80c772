"""One descriptor on a regular file: what is none is named, nothing blocks, nothing is read twice."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import socket
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import within
from zip_builder import SIX, assert_refused, pickled, read_all, refused, save, tensor, torch_file

from converter.checkpoint import open_checkpoint
from converter.checkpoint.file import InputFile


def written(write: Any) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def tar_of(stream: io.BytesIO, form: int) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())


LEGACY = written(lambda s: torch.save({"w": torch.ones(3)}, s, _use_new_zipfile_serialization=False))
FOREIGN = {
    "empty": (b"", "empty"),
    "Git-LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "HTML page": (b"\xef\xbb\xbf \n<!DOCTYPE html><html>404</html>", "HTML"),
    "XML page": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "XML"),
    "JSON": (b'\n {"error": "not found"}', "JSON"),
    "JSON list": (b'["error"]', "JSON"),
    "legacy torch": (LEGACY, "re-save it with a current torch: torch.save("),
    "bare pickle": (pickle.dumps({"w": 1}, protocol=4), "bare pickle"),
    "old tar": (
        written(lambda s: tar_of(s, tarfile.USTAR_FORMAT)),
        "tar archive: if torch before 0.4 wrote it, re-save",
    ),
    "GNU tar": (written(lambda s: tar_of(s, tarfile.GNU_FORMAT)), "tar archive"),
    "gzip": (gzip.compress(LEGACY), "gzip"),
    "bzip2": (bz2.compress(LEGACY), "bzip2"),
    "xz": (lzma.compress(LEGACY), "xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd"),
    "RAR": (b"Rar!\x1a\x07\x01\0", "a RAR archive: unpack it first"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "an empty zip archive"),
    "part of a split zip": (b"PK\x07\x08PK\x03\x04", "one part of a split zip archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    "npy": (written(lambda s: np.save(s, np.ones(3))), "NumPy array"),
    "npz": (written(lambda s: np.savez(s, a=np.ones(3))), "NumPy .npz"),
    "compressed npz": (written(lambda s: np.savez_compressed(s, a=np.ones(3))), "NumPy .npz"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "GGUF": (b"GGUF\x03\0\0\0", "GGUF"),
    "PNG": (b"\x89PNG\r\n\x1a\n", "PNG"),
    "PDF": (b"%PDF-1.7", "PDF"),
    "WebP": (b"RIFF\0\0\0\0WEBP", "RIFF"),
    "zeros": (bytes(4096), "zeros (an unfinished download?)"),
    "noise": (b"\xfe\xdc\xba\x98" * 99, "fe dc ba 98"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
def test_another_format_is_named_whatever_its_suffix(tmp_path: Path, name: str, suffix: str) -> None:
    data, fragment = FOREIGN[name]
    assert_refused(save(tmp_path, data, f"file{suffix}"), fragment)


def test_the_bytes_and_not_the_suffix_say_what_a_file_is(tmp_path: Path) -> None:
    good = torch_file({"w": tensor()}, SIX)
    assert read_all(save(tmp_path, good, "model.safetensors")) == read_all(save(tmp_path, good, "model.pth"))


def special(kind: str, folder: Path) -> Path:
    path = folder / "special"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "a device":
        path = Path("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a FIFO behind a link":
        os.mkfifo(folder / "pipe")
        path.symlink_to("pipe")
    return path


KINDS = ["a FIFO", "a socket", "a device", "a folder", "a FIFO behind a link"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = special(kind, tmp_path)
    with within(5), refused(path, f"not a regular file but {kind.partition(' behind')[0]}"):
        InputFile(path)
    if kind != "a folder":
        assert_refused(path, "not a regular file")


def test_a_fifo_that_takes_the_place_of_the_file_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = special("a FIFO", tmp_path), save(tmp_path, b"x", "real")
    status = os.stat(real)
    monkeypatch.setattr(os, "stat", lambda *a, **k: status)
    with within(5), refused(path, "a FIFO"):
        InputFile(path)


@pytest.mark.parametrize(("name", "fragment"), [
    ("missing", "No such file"), ("dangling", "No such file"), ("loop", "symbolic links"),
    ("a\0b", "null"), ("n" * 300, "File name too long"),
])  # fmt: skip
def test_a_path_that_cannot_be_opened_is_one_line(tmp_path: Path, name: str, fragment: str) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with within(5), pytest.raises(Exception, match=fragment) as caught:
        open_checkpoint(tmp_path / name)
    assert getattr(caught.value, "exit_code", None) == 3
    assert str(caught.value).isprintable()


def test_a_hostile_file_name_is_made_printable(tmp_path: Path) -> None:
    path = save(tmp_path, b"", "a\nb\x1b[31m\u202e.pth")
    with refused(tmp_path, r"a\nb\x1b[31m\u202e.pth"):
        open_checkpoint(path)


def test_a_refused_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for data, _ in FOREIGN.values():
        assert_refused(save(tmp_path, data))
    for broken in (pickled({}), torch_file(b"\x80\x02.")):
        assert_refused(save(tmp_path, broken))
    assert len(os.listdir("/proc/self/fd")) == before


def test_reads_outside_the_file_are_refused_before_they_are_made(tmp_path: Path) -> None:
    with InputFile(save(tmp_path, b"0123456789")) as file:
        assert file.read(2, 3) == b"234"
        assert file.read(10, 0) == b""
        for offset, count in ((-1, 2), (0, 11), (10, 1), (0, -1), (1 << 70, 1), (0, 1 << 70)):
            with refused(file.path, "outside the file of 10 bytes"):
                file.read(offset, count)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path, torch_file({"w": tensor()}, SIX))
    with open_checkpoint(path) as checkpoint:
        lazy = checkpoint["w"]
        assert len(lazy.read()) == 24
        os.truncate(path, lazy.storage.start + 7)
        with refused(path, "data/0", f"ends at offset {lazy.storage.start + 7}, it shrank"):
            lazy.read()


def test_a_file_that_is_replaced_stays_the_one_that_was_opened(tmp_path: Path) -> None:
    path = save(tmp_path, torch_file({"w": tensor()}, SIX))
    with open_checkpoint(path) as checkpoint:
        os.replace(save(tmp_path, b"something else", "other"), path)
        assert checkpoint["w"].read() == SIX["0"]


def test_an_error_of_the_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, b"0123456789")

    def broken(*args: Any) -> int:
        raise OSError(5, "Input/output error")

    with InputFile(path) as file:
        monkeypatch.setattr(os, "preadv", broken)
        with refused(path, "tensor w: offset 4: Input/output error"):
            file.read(4, 2, "tensor w")


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: whole(fd, [views[0][:3]], at))
    with InputFile(save(tmp_path, bytes(range(100)))) as file:
        assert file.read(1, 98) == bytes(range(1, 99))
