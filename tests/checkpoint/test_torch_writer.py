"""An archive laid out without torch is one that torch, `zipfile` and the strict reader read alike."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import zipfile
import zlib
from collections import OrderedDict
from functools import reduce
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from forge import read_all, refused
from hypothesis import example, given, settings
from hypothesis import strategies as st
from makers import State, raw_bytes

from converter.checkpoint import open_checkpoint
from converter.checkpoint.crc import combine
from converter.checkpoint.dtypes import BY_CODE, BY_NAME, F32, DType
from converter.checkpoint.layout import Entry, Layout
from converter.checkpoint.torch_writer import lay_out_torch, pickled

DTYPES = sorted(BY_NAME)
SHAPES = st.lists(st.integers(0, 4), max_size=5).map(tuple)
# What the strict reader takes for a key; prefixes that it would strip from all of them do not occur without a dot.
KEYS = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="."), min_size=1, max_size=20)
FIRST = 4  # data.pkl, .format_version, .storage_alignment, byteorder


def made_of(key: str, name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Any bits, NaN included; of bool 0 and 1, which are all that it has."""
    dtype: torch.dtype = getattr(torch, name)
    raw = torch.randint(0, 2 if name == "bool" else 256, (prod(shape) * dtype.itemsize,),
                        generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)  # fmt: skip
    return raw.view(dtype).reshape(shape)


def entries_of(tensors: State) -> list[Entry]:
    return [Entry(key, BY_NAME[str(t.dtype).removeprefix("torch.")], tuple(t.shape)) for key, t in tensors.items()]


def places(layout: Layout) -> list[int]:
    """Where the bytes of each tensor go."""
    frame = layout.frame({})
    return [offset + len(header) for offset, header in frame[FIRST : FIRST + len(layout.entries)]]


def write(tensors: State, path: Path) -> Layout:
    layout = lay_out_torch(entries_of(tensors))
    data = {key: raw_bytes(tensor) for key, tensor in tensors.items()}
    with open(path, "wb") as file:
        for start, raw in zip(places(layout), data.values(), strict=True):
            file.seek(start)
            file.write(raw)
        for offset, raw in layout.frame({key: zlib.crc32(raw) for key, raw in data.items()}):
            file.seek(offset)
            file.write(raw)
    assert path.stat().st_size == layout.size  # with nothing truncated or added
    return layout


def same(found: Any, wanted: State) -> None:
    assert list(found) == list(wanted)
    for key, tensor in wanted.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        assert found[key].is_contiguous()
        assert raw_bytes(found[key]) == raw_bytes(tensor)


def check(tensors: State, path: Path) -> None:
    layout = write(tensors, path)
    for mmap in (False, True):
        loaded = torch.load(path, mmap=mmap, weights_only=True)
        assert list(loaded) == ["state_dict"]
        same(loaded["state_dict"], tensors)
        assert all(not tensor.requires_grad for tensor in loaded["state_dict"].values())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == len(set(archive.namelist())) == len(tensors) + FIRST + 1
        for i, tensor in enumerate(tensors.values()):
            assert archive.read(f"archive/data/{i}") == raw_bytes(tensor)
    assert all(place % 64 == 0 for place in places(layout))
    if tensors:
        name = {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in tensors.items()}
        assert read_all(path) == {k: (name[k], tuple(t.shape), raw_bytes(t)) for k, t in tensors.items()}


@given(st.dictionaries(KEYS, st.tuples(st.sampled_from(DTYPES), SHAPES, st.integers(0, 1 << 30)), max_size=8))
@example({})
@example({"größe/重み\U0001f600'\"\\": ("float32", (2, 3), 0), "k" * 1024: ("bfloat16", (), 1)})
@example({"empty": ("float32", (0,), 0), "none": ("int64", (3, 0, 2), 0), "after": ("bool", (5,), 3)})
@example({"flat": ("float16", (1, 1, 1, 1, 1, 1, 1, 1), 5)})
@settings(max_examples=150, deadline=None)
def test_any_state_dict(tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any]) -> None:
    tensors = {key: made_of(key, *what) for key, what in drawn.items()}
    check(tensors, tmp_path_factory.getbasetemp() / "any.pth")


def test_every_dtype_and_size_around_the_alignment(tmp_path: Path) -> None:
    tensors = {f"{name}.{n}": made_of("", name, (n,), n) for name in DTYPES for n in (0, 1, 7, 8, 9, 16, 63, 64, 65)}
    check(tensors, tmp_path / "all.pth")


def test_thousands_of_tensors(tmp_path: Path) -> None:
    check({f"w.{n}": torch.full((1 + n % 3,), float(n)) for n in range(4000)}, tmp_path / "many.pth")


def test_the_pickle_means_what_torch_saves() -> None:
    """The same globals and, loaded by Python itself, the same arguments for every tensor, in torch's order."""
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros((), dtype=torch.bfloat16), "c": torch.ones(0, 4).half()}
    theirs = io.BytesIO()
    torch.save({"state_dict": OrderedDict(tensors)}, theirs)

    class Shown(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            real = {"collections.OrderedDict": OrderedDict}
            return real.get(f"{module}.{name}", lambda *arguments: (f"{module}.{name}", arguments))

        def persistent_load(self, pid: Any) -> Any:
            kind, storage, *rest = pid
            return (kind, storage()[0], *rest)

    with zipfile.ZipFile(theirs) as archive:
        root = archive.namelist()[0].partition("/")[0]
        expected = Shown(io.BytesIO(archive.read(f"{root}/data.pkl"))).load()
    found = Shown(io.BytesIO(pickled(entries_of(tensors)))).load()
    assert found == expected
    assert [type(found["state_dict"]), list(found["state_dict"])] == [OrderedDict, ["a", "b", "c"]]


@pytest.mark.parametrize("dtype", BY_CODE.values(), ids=str)
def test_storages_of_every_count_in_the_pickle(dtype: DType) -> None:
    """Counts, sizes and strides at the edges of what one opcode holds."""
    edges = [0, 1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40]
    entries = [Entry(f"w{n}", dtype, (n, 1)) for n in edges] + [Entry(f"v{n}", dtype, (1, n)) for n in edges]
    numbers = [argument for _, argument, _ in pickletools.genops(pickled(entries)) if type(argument) is int]
    # Per tensor: the count, the offset, two sizes and two strides; before them the number of the protocol.
    rows = [numbers[1:][at : at + 6] for at in range(0, 12 * len(edges), 6)]
    assert rows[: len(edges)] == [[n, 0, n, 1, 1, 1] for n in edges]
    assert rows[len(edges) :] == [[n, 0, 1, n, n, 1] for n in edges]
    assert len(numbers) == 1 + 12 * len(edges)


def test_only_checksums_depend_on_the_data() -> None:
    layout = lay_out_torch([Entry("a", F32, (2, 3)), Entry("b", F32, ())])
    empty, full = layout.frame({}), layout.frame({"a": 0xFFFFFFFF, "b": 1})
    assert [(offset, len(data)) for offset, data in empty] == [(offset, len(data)) for offset, data in full]
    assert empty != full
    assert max(offset + len(data) for offset, data in empty) == layout.size
    # Nothing overlaps, and the gaps are the tensors.
    ends = sorted((offset, offset + len(data)) for offset, data in full)
    gaps = [after - stop for (_, stop), (after, _) in pairwise(ends)]
    assert sorted(gaps) == [0] * (len(gaps) - 2) + [4, 24]


def test_a_wrong_checksum_is_found_by_all_who_look(tmp_path: Path) -> None:
    path = tmp_path / "wrong.pth"
    layout = write({"a": torch.arange(6.0), "b": torch.ones(3)}, path)
    content = bytearray(path.read_bytes())
    content[places(layout)[1]] ^= 1
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() == "archive/data/1"
    with refused(path, "data/1", "CRC-32 mismatch"):
        read_all(path)


def crc_of_zeros(count: int) -> int:
    chunk = zlib.crc32(bytes(1 << 20))
    whole = reduce(lambda made, _: combine(made, chunk, 1 << 20), range(count >> 20), 0)
    return zlib.crc32(bytes(count % (1 << 20)), whole)  # zlib goes on where it is given


@pytest.mark.slow
def test_beyond_32_bits_and_16_bit_counts(tmp_path: Path) -> None:
    """More than 65,535 members behind a tensor of more than 4 GiB, on a disk where zeros take no room."""
    size, count = (1 << 32) + 100, 65_600
    entries = [Entry("huge", BY_CODE["U8"], (size,)), Entry("edge", BY_CODE["U8"], (1000,))]
    entries += [Entry(f"w{n}", F32, ()) for n in range(count)]
    layout, path = lay_out_torch(entries), tmp_path / "huge.pth"
    crc = crc_of_zeros(size)
    values = [torch.tensor(float(n)) for n in range(count)]
    data = {f"w{n}": raw_bytes(value) for n, value in enumerate(values)} | {"edge": b"\x07" * 1000}
    where = dict(zip([entry.key for entry in entries], places(layout), strict=True))
    with open(path, "wb") as file:
        os.truncate(path, layout.size)
        crcs = {"huge": crc} | {key: zlib.crc32(raw) for key, raw in data.items()}
        for offset, raw in (*layout.frame(crcs), *((where[key], raw) for key, raw in data.items())):
            file.seek(offset)
            file.write(raw)
    assert path.stat().st_size == layout.size > 1 << 32
    some = [0, 1, count // 2, count - 1]
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == len(entries) + FIRST + 1 > 0xFFFF
        huge = archive.getinfo("archive/data/0")
        assert (huge.file_size, huge.compress_size, huge.CRC) == (size, size, crc)
        assert archive.read("archive/data/1") == data["edge"]
        assert [archive.read(f"archive/data/{n + 2}") for n in some] == [data[f"w{n}"] for n in some]
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint) == len(entries)
        assert checkpoint["huge"].shape == (size,)
        assert checkpoint["edge"].read() == data["edge"]
        assert [checkpoint[f"w{n}"].read() for n in some] == [data[f"w{n}"] for n in some]
        assert checkpoint["huge"].storage.start == where["huge"]
        assert checkpoint["huge"].storage.crc == crc
    loaded = torch.load(path, mmap=True, weights_only=True)["state_dict"]
    assert list(loaded) == [entry.key for entry in entries]
    assert loaded["huge"].shape == (size,)
    assert (int(loaded["huge"][-1]), int(loaded["huge"][0])) == (0, 0)
    assert raw_bytes(loaded["edge"]) == data["edge"]
    assert torch.equal(torch.stack([loaded[f"w{n}"] for n in range(count)]), torch.arange(float(count)))


@pytest.mark.parametrize("size", [(1 << 32) - 2, (1 << 32) - 1, 1 << 32, (1 << 32) + 1])
def test_on_both_sides_of_the_32_bit_edge(tmp_path: Path, size: int) -> None:
    """0xFFFFFFFF is itself a mark in zip: it stands for "see the wide field"."""
    layout, path = lay_out_torch([Entry("huge", BY_CODE["I8"], (size,)), Entry("w", F32, (2,))]), tmp_path / "edge.pth"
    path.touch()
    os.truncate(path, layout.size)
    crcs = {"huge": crc_of_zeros(size), "w": zlib.crc32(bytes(8))}
    with open(path, "r+b") as file:
        for offset, raw in layout.frame(crcs):
            file.seek(offset)
            file.write(raw)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("archive/data/0").file_size == size
        assert archive.read("archive/data/1") == bytes(8)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint["huge"].shape == (size,)
        assert checkpoint["huge"].storage.start == places(layout)[0]
        assert checkpoint["w"].read() == bytes(8)
    loaded = torch.load(path, mmap=True, weights_only=True)["state_dict"]
    assert (loaded["huge"].shape, loaded["w"].tolist()) == ((size,), [0, 0])
