"""Torch archives that we lay out, as torch, zipfile and our own strict reader see them."""

from __future__ import annotations

import pickle
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from makers import raw_bytes

from converter.checkpoint import open_checkpoint
from converter.checkpoint.dtypes import BY_NAME, F32
from converter.checkpoint.file import InputFile
from converter.checkpoint.torch_file.archive import Archive
from converter.checkpoint.write.layout import ALIGNMENT, FileLayout, TensorEntry, lay_out_torch, pickled

TENSORS = st.tuples(st.sampled_from(sorted(BY_NAME)), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 1 << 30))
KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


def entries(tensors: dict[str, torch.Tensor]) -> list[TensorEntry]:
    return [TensorEntry(key, BY_NAME[str(t.dtype)[6:]], tuple(t.shape)) for key, t in tensors.items()]


def write(tensors: dict[str, torch.Tensor], path: Path) -> FileLayout:
    """The file, its tensors put where zipfile says that their members begin."""
    layout = lay_out_torch(entries(tensors))
    data = {key: raw_bytes(tensor) for key, tensor in tensors.items()}
    crcs = {key: zlib.crc32(content) for key, content in data.items()}
    with path.open("wb") as file:
        file.truncate(layout.size)
        for offset, content in layout.frame(crcs):
            file.seek(offset)
            file.write(content)
    starts = members(path)
    with path.open("r+b") as file:
        for i, content in enumerate(data.values()):
            file.seek(starts[f"archive/data/{i}"])
            file.write(content)
    return layout


def members(path: Path) -> dict[str, int]:
    """Where the data of each member begins."""
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            lengths = file.read(4)
            head = 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            found[info.filename] = info.header_offset + head
    return found


def random_tensors(made: dict[str, Any]) -> dict[str, torch.Tensor]:
    tensors = {}
    for key, (name, shape, seed) in made.items():
        values = torch.randint(0, 255, shape, generator=torch.Generator().manual_seed(seed))
        tensors[key] = values.to(getattr(torch, name))
    return tensors


@given(st.dictionaries(KEYS, TENSORS, max_size=8))
@example({})
@example({"a": ("float32", [], 0), "é/../x": ("bfloat16", [0, 3], 1), "\U0001f600": ("bool", [2], 2)})
@settings(max_examples=80)
def test_torch_and_zipfile_read_it(tmp_path_factory: pytest.TempPathFactory, made: dict[str, Any]) -> None:
    path, tensors = tmp_path_factory.getbasetemp() / "written.pth", random_tensors(made)
    write(tensors, path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert all(start % ALIGNMENT == 0 for start in members(path).values())
    for mmap in (False, True):
        content = torch.load(path, mmap=mmap, weights_only=True)
        assert list(content) == ["state_dict"]
        assert type(content["state_dict"]).__name__ == "OrderedDict"
        assert list(content["state_dict"]) == list(tensors)
        for key, tensor in content["state_dict"].items():
            assert (tensor.dtype, tensor.shape) == (tensors[key].dtype, tensors[key].shape)
            assert tensor.is_contiguous()
            assert not tensor.requires_grad
            assert raw_bytes(tensor) == raw_bytes(tensors[key])


def test_our_reader_reads_it(tmp_path: Path) -> None:
    tensors = {f"blocks.{i}.w": torch.randn(3, i % 5) for i in range(3000)}
    write(tensors, tmp_path / "a.pth")
    with open_checkpoint(tmp_path / "a.pth") as opened:
        assert list(opened) == list(tensors)
        for key in ("blocks.0.w", "blocks.2999.w", "blocks.1234.w"):
            assert opened[key].read() == raw_bytes(tensors[key])  # its CRC too
    assert len(torch.load(tmp_path / "a.pth", mmap=True, weights_only=True)["state_dict"]) == 3000


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    write({"a": torch.randn(100), "b": torch.randn(100)}, tmp_path / "a.pth")
    start = members(tmp_path / "a.pth")["archive/data/1"]
    data = bytearray((tmp_path / "a.pth").read_bytes())
    data[start + 7] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() == "archive/data/1"


def test_beyond_four_gigabytes(tmp_path: Path) -> None:
    """In a sparse file: nothing is written but the frame. Zeros are the data, so CRCs are not in question here."""
    path = tmp_path / "large.pth"
    sizes = {"small": (4,), "large": (1_100_000_000,), "last": (5, 2)}
    wanted = [TensorEntry(name, F32, shape) for name, shape in sizes.items()]
    layout = lay_out_torch(wanted)
    assert layout.size > 1 << 32
    with path.open("wb") as file:
        file.truncate(layout.size)
        for offset, content in layout.frame({}):
            file.seek(offset)
            file.write(content)
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    assert [sizes[f"archive/data/{i}"] for i in range(3)] == [16, 4_400_000_000, 40]
    with path.open("r+b") as file:
        file.seek(members(path)["archive/data/2"])
        file.write(torch.arange(10, dtype=torch.float32).numpy().tobytes())
    state = torch.load(path, mmap=True, weights_only=True)["state_dict"]
    assert state["last"].tolist() == torch.arange(10.0).reshape(5, 2).tolist()
    assert state["large"].shape == (1_100_000_000,)
    with open_checkpoint(path) as opened:
        assert opened["last"].peek(9) == (9.0,)
        assert opened["large"].nbytes == 4_400_000_000


@pytest.mark.slow
def test_more_members_than_sixteen_bits_count(tmp_path: Path) -> None:
    count, path = 1 << 16, tmp_path / "many.pth"
    layout = lay_out_torch(TensorEntry(f"k{i}", F32, (1,)) for i in range(count))
    data = bytearray(layout.size)
    for offset, content in layout.frame({}):
        data[offset : offset + len(content)] = content
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == count + 3
    file = InputFile(path)
    assert len(Archive(file).members) == count + 3
    file.close()


def test_the_frame_has_the_same_extents_whatever_the_checksums() -> None:
    layout = lay_out_torch([TensorEntry("a", F32, (2,)), TensorEntry("b", F32, (3,))])
    one, other = layout.frame({}), layout.frame({"a": 1, "b": 0xFFFFFFFF})
    assert [(offset, len(data)) for offset, data in one] == [(offset, len(data)) for offset, data in other]
    assert one != other


def test_offsets_that_torch_calculates_by_itself(tmp_path: Path) -> None:
    """It may do so for files that say that its own writer laid them out: ours must not say so."""
    config = getattr(torch.utils.serialization, "config", None)
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(40)}
    write(tensors, tmp_path / "a.pth")
    with config.patch("load.calculate_storage_offsets", True):
        state = torch.load(tmp_path / "a.pth", mmap=True, weights_only=True)["state_dict"]
    assert all(torch.equal(state[key], tensor) for key, tensor in tensors.items())


def test_the_pickle_names_only_what_torch_allows() -> None:
    data = pickled([TensorEntry("a", dtype, (2, 3)) for dtype in BY_NAME.values()])
    named = {str(argument) for op, argument, _ in pickletools.genops(data) if op.name == "GLOBAL"}
    storages = {f"torch {dtype.storage}" for dtype in BY_NAME.values()}
    assert named == {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", *storages}
    with pytest.raises(pickle.UnpicklingError):  # a persistent id: only torch's loader knows where the bytes are
        pickle.loads(data)
