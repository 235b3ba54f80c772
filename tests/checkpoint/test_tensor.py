"""Lazy tensors: extents, views, and how often their bytes are read."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import within
from zip_builder import (
    SIX,
    Watched,
    assert_refused,
    parts,
    pickled,
    refused,
    save,
    storage,
    tensor,
    torch_file,
    zip_file,
)

from converter.checkpoint import open_checkpoint
from converter.checkpoint.cast import round_to
from converter.checkpoint.dtypes import BY_CODE, F32
from converter.checkpoint.file import InputFile
from converter.checkpoint.tensor import CHUNK, LazyTensor, Storage, checked, row_major
from converter.errors import InputError


@given(st.lists(st.integers(0, 4), max_size=4), st.lists(st.integers(0, 9), max_size=4), st.integers(0, 9))
@settings(max_examples=400)
def test_a_view_is_accepted_only_inside_its_storage_and_without_repeats(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], strides: list[int], offset: int
) -> None:
    strides = (strides + [1] * 4)[: len(shape)]
    raw = np.arange(24, dtype="<f4")
    path = save(tmp_path_factory.getbasetemp(), raw.tobytes(), "view")
    places = [offset + sum(i * s for i, s in zip(index, strides, strict=True)) for index in product(*map(range, shape))]
    sound = len(set(places)) == len(places) and max(places, default=0) < 24
    with InputFile(path) as file:
        made = LazyTensor("w", F32, tuple(shape), Storage(file, "s", 96), tuple(strides), offset)
        rule = ""
        try:
            checked(made)
        except InputError as error:
            rule = str(error)
        if rule:
            # Refused although sound: only interleavings that torch's own views never make.
            assert not sound or "overlaps itself" in rule
            return
        assert sound
        assert made.read() == b"".join(raw[place].tobytes() for place in places)
        assert made.numpy().shape == tuple(shape)
        assert b"".join(bytes(part) for _, part in made.chunks()) == made.read()


@pytest.mark.parametrize("code", BY_CODE)
def test_every_dtype_reads_as_numpy(tmp_path: Path, code: str) -> None:
    dtype = BY_CODE[code]
    kind = {"BF16": "<u2"}.get(code, dtype.name)
    values = np.array([0, 1, 1, 0, 1, 0]).astype(kind)
    path = save(
        tmp_path, torch_file({"w": tensor((3, 2), (1, 3), source=storage(kind=dtype.storage))}, {"0": values.tobytes()})
    )
    with open_checkpoint(path) as checkpoint:
        lazy = checkpoint["w"]
        assert (lazy.dtype, lazy.nbytes, lazy.contiguous) == (dtype, 6 * dtype.itemsize, False)
        wanted = values.reshape(2, 3).T
        assert lazy.read() == wanted.tobytes()
        if code == "BF16":
            wanted = np.ascontiguousarray(wanted.astype("<u4") << 16).view("<f4")
        assert (lazy.numpy() == wanted).all()


@pytest.mark.parametrize("code", BY_CODE)
def test_single_elements_are_read_in_place(tmp_path: Path, code: str) -> None:
    dtype = BY_CODE[code]
    values = np.array([0.5, -1, 2, 0, np.inf, 3.25, 9, 9], np.float32)
    raw = round_to(values, dtype) if dtype.floating else bytes(8 * dtype.itemsize)
    view = tensor((3, 2), (1, 3), 1, source=storage(kind=dtype.storage, count=8))
    with open_checkpoint(save(tmp_path, torch_file({"w": view}, {"0": raw}))) as checkpoint:
        lazy = checkpoint["w"]
        seen = lazy.peek(*range(6))
        if dtype.floating:
            assert seen == tuple(lazy.numpy().reshape(-1).tolist()) == (-1, np.inf, 2, 3.25, 0, 9)
        else:
            assert all(map(math.isnan, seen))
        assert all(map(math.isnan, lazy.peek(6, -1, 1 << 70)))
        assert lazy.peek() == ()


def test_peeking_reads_single_elements_only_and_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CRC stays unproven, so that a later reading still finds the damage."""
    data = zip_file(parts(pickled({"w": tensor()}), SIX))
    at = data.index(SIX["0"]) + 20
    path = save(tmp_path, data[:at] + b"\1" + data[at + 1 :])
    with open_checkpoint(path) as checkpoint:
        lazy = checkpoint["w"]
        read = []
        preadv = os.preadv
        lazy.peek(0)  # finds where the member lies
        monkeypatch.setattr(os, "preadv", lambda fd, views, at: read.append(len(views[0])) or preadv(fd, views, at))
        assert lazy.peek(1, 4) == (1.0, 4.0)
        assert read == [4, 4]
        with refused(path, "CRC-32 mismatch"):
            lazy.read()


ROWS = st.one_of(st.none(), st.integers(-7, 7))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=3), st.booleans(), ROWS, ROWS, ROWS, ROWS)
@settings(max_examples=200)
def test_a_run_of_rows_is_what_numpy_says(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], turned: bool, a: Any, b: Any, c: Any, d: Any
) -> None:
    raw = np.arange(math.prod(shape), dtype="<f4").reshape(shape)
    strides = row_major(tuple(shape))
    if turned:
        raw, strides = raw.T, strides[::-1]
    path = save(tmp_path_factory.getbasetemp(), np.ascontiguousarray(raw.T if turned else raw).tobytes() + b"....", "r")
    with InputFile(path) as file:
        whole = checked(LazyTensor("w", F32, raw.shape, Storage(file, "s", raw.nbytes), strides))
        for lazy, wanted in ((whole[a:b], raw[a:b]), (whole[a:b][c:d], raw[a:b][c:d])):
            assert checked(lazy) is lazy
            assert (lazy.key, lazy.shape) == ("w", wanted.shape)
            assert np.array_equal(lazy.numpy(), wanted)
            assert b"".join(bytes(part) for _, part in lazy.chunks()) == wanted.tobytes()


def test_a_slice_of_a_damaged_storage_is_found_out(tmp_path: Path) -> None:
    data = zip_file(parts(pickled({"w": tensor()}), SIX))
    at = data.index(SIX["0"]) + 20
    path = save(tmp_path, data[:at] + b"\1" + data[at + 1 :])
    with open_checkpoint(path) as checkpoint, refused(path, "CRC-32 mismatch"):
        checkpoint["w"][:1].read()


def test_other_ways_to_index_are_refused_in_words(tmp_path: Path) -> None:
    path = save(tmp_path, torch_file({"w": tensor(), "s": tensor((), ())}, SIX))
    with open_checkpoint(path) as checkpoint:
        lazy: Any = checkpoint["w"]
        for index in (0, (slice(1), slice(1)), ..., None, "w"):
            with pytest.raises(TypeError, match=r"w \[2, 3\]: a lazy tensor takes a slice of its axis 0; see numpy"):
                lazy[index]
        with pytest.raises(ValueError, match="in steps of 1"):
            lazy[::2]
        with pytest.raises(TypeError, match=r"s \[\]"):
            checkpoint["s"][:1]


def test_row_major() -> None:
    assert row_major((2, 3, 4)) == (12, 4, 1)
    assert row_major(()) == ()


def big_file(folder: Path, views: dict[str, Any], count: int) -> Path:
    data = np.arange(count, dtype="<f4").tobytes()
    return save(folder, torch_file(views, {"0": data}), "big.pth")


def test_the_crc_is_verified_even_where_little_is_wanted(tmp_path: Path) -> None:
    """The damage lies in a part of the storage that no tensor shows."""
    made = parts(pickled({"w": tensor((1,), (1,))}), SIX)
    data = zip_file(made)
    at = data.index(SIX["0"]) + 20
    assert_refused(save(tmp_path, data[:at] + b"\1" + data[at + 1 :]), "data/0", "CRC-32 mismatch: the file is damaged")


def test_a_failed_crc_stays_a_failure(tmp_path: Path) -> None:
    data = zip_file(parts(pickled({"w": tensor((1,), (1,))}), SIX))
    at = data.index(SIX["0"]) + 20
    path = save(tmp_path, data[:at] + b"\1" + data[at + 1 :])
    with open_checkpoint(path) as checkpoint:
        for _ in range(3):
            with refused(path, "CRC-32 mismatch"):
                checkpoint["w"].read()


def test_many_small_views_do_not_read_their_storage_over_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, many = 1 << 20, 300
    one = storage(count=count)
    path = big_file(tmp_path, {f"w{n}": tensor((8,), (1,), n * 1000, source=one) for n in range(many)}, count)
    watched = Watched(monkeypatch, path)
    with within(20), open_checkpoint(path) as checkpoint:
        for n in range(many):
            assert checkpoint[f"w{n}"].numpy()[0] == n * 1000
    assert watched.read < 2 * path.stat().st_size


def test_reading_takes_the_memory_of_the_tensor_not_of_the_storage(tmp_path: Path) -> None:
    count = 32 << 20  # 128 MB
    path = tmp_path / "big.pth"
    path.write_bytes(
        torch_file({"w": tensor((8,), (1,), count - 8, source=storage(count=count))}, {"0": bytes(4 * count)})
    )
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from converter.checkpoint import open_checkpoint
with open_checkpoint({str(path)!r}) as checkpoint:
    assert len(checkpoint["w"].read()) == 32
    assert list(checkpoint["w"].chunks())
print(open("/proc/self/status").read())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", done.stdout)[1])
    assert peak < 40_000


def test_chunks_of_a_large_tensor_are_its_bytes_in_order(tmp_path: Path) -> None:
    count = 3 * CHUNK // 4 + 77
    path = big_file(tmp_path, {"w": tensor((count - 3,), (1,), 2, source=storage(count=count))}, count)
    with open_checkpoint(path) as checkpoint:
        for _ in range(2):  # before and after the CRC is known
            position, whole = 0, b""
            for offset, part in checkpoint["w"].chunks():
                assert offset == position
                position += len(part)
                whole += bytes(part)
            assert whole == np.arange(2, count - 1, dtype="<f4").tobytes() == checkpoint["w"].read()


def test_many_tensors_open_in_linear_time(tmp_path: Path) -> None:
    many = 20_000
    memo = storage().emit() + b"q\x090"
    views = b"".join(
        pickled(f"w{n}")[2:-1] + b"ctorch._utils\n_rebuild_tensor_v2\n(h\x09K\x00K\x01\x85K\x01\x85\x89Nt" + b"R"
        for n in range(many)
    )
    path = save(tmp_path, torch_file(b"\x80\x02" + memo + b"}(" + views + b"u.", SIX))
    with within(30), open_checkpoint(path) as checkpoint:
        assert len(checkpoint) == many
        assert checkpoint["w7"].read() == SIX["0"][:4]
