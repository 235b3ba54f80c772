"""Files written out of lazy tensors: as their own libraries read them, proven, and with an account of what was met."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import State, raw_bytes, save, sincos
from makers import digest as digest_of
from safetensors.torch import load_file, save_file

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.checkpoint.dtypes import BF16, F16, F32, DType
from converter.checkpoint.write.layout import lay_out_safetensors, lay_out_torch
from converter.checkpoint.write.publish import Publication
from converter.conversion import write as writing
from converter.conversion.buffers import computed
from converter.conversion.write import TensorFile, TensorWrite, Written, counted, write_files
from converter.errors import ConverterError
from converter.families.sincos import SinCosTable
from converter.system import write_at

INF, NAN = float("inf"), float("nan")


@pytest.fixture
def opened() -> Iterator[Callable[[Path], Checkpoint]]:
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(open_checkpoint(path))


def write(
    folder: Path, files: Mapping[str, list[TensorWrite]], digests: Mapping[str, str] | None = None
) -> tuple[Written, list[int]]:
    """Files named by their suffix, in a folder that is published; what was found, and the progress that was told."""
    made = []
    for name, parts in files.items():
        lay_out = lay_out_safetensors if name.endswith(".safetensors") else lay_out_torch
        made.append(TensorFile(name, lay_out([entry for part in parts for entry in part.entries])))
    told: list[int] = []
    with Publication(folder, needed_bytes=0) as out:
        parts = [part for parts in files.values() for part in parts]
        written = write_files(out, made, parts, step=told.append, digests=digests or {})
        out.publish()
    return written, told


def load(path: Path) -> State:
    if path.suffix == ".safetensors":
        return load_file(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    state: State = torch.load(path, mmap=True, weights_only=True)["state_dict"]
    return state


def same(one: State, other: State) -> bool:
    return {k: (v.dtype, v.shape, raw_bytes(v)) for k, v in one.items()} == {
        k: (v.dtype, v.shape, raw_bytes(v)) for k, v in other.items()
    }


def digest(tensor: torch.Tensor) -> str:
    return digest_of(raw_bytes(tensor))


@pytest.fixture
def state() -> State:
    random = torch.Generator().manual_seed(0)
    return {
        "qkv": torch.randn(6, 5, generator=random),
        "q": torch.randn(2, 5, generator=random),
        "k": torch.randn(3, 5, generator=random).T.contiguous().T,
        "v": torch.randn(1, 5, generator=random),
        "b": torch.randn((), generator=random).bfloat16(),
        "n": torch.arange(7),
        "none": torch.empty(0, 3),
    }


@pytest.fixture(params=["pth", "safetensors"])
def source(request: pytest.FixtureRequest, state: State, tmp_path: Path) -> Path:
    path = tmp_path / f"source.{request.param}"
    if request.param == "pth":
        return save(state, path)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path


def test_several_files_of_both_kinds_at_once(
    source: Path, state: State, tmp_path: Path, opened: Callable[[Path], Checkpoint]
) -> None:
    """Renamed, split, put together, cast, computed, written twice; read by whoever the format belongs to."""
    given = opened(source)
    table = computed("pos", SinCosTable(16, 6, 1.0), BF16)
    files = {
        "a/one.safetensors": [
            TensorWrite((given["qkv"],), ("to_q", "to_k", "to_v"), F32),
            TensorWrite((given["qkv"],), ("half.q", "half.k"), F16),
            TensorWrite((given["q"], given["k"], given["v"]), ("joined",), F32),
        ],
        "a/two.pth": [
            TensorWrite((given["q"], given["k"], given["v"]), ("joined.half",), F16),
            TensorWrite((given["n"],), ("größe",), given["n"].dtype),
            TensorWrite((given["none"],), ("none",), F32),
        ],
        "three.safetensors": [TensorWrite((given["b"],), ("b",), F32), TensorWrite((table,), ("pos_embed",), BF16)],
    }
    written, told = write(tmp_path / "out", files)
    joined = torch.cat([state["q"], state["k"], state["v"]])
    expected: dict[str, State] = {
        "a/one.safetensors": dict(zip(["to_q", "to_k", "to_v"], state["qkv"].chunk(3), strict=True))
        | dict(zip(["half.q", "half.k"], state["qkv"].half().chunk(2), strict=True))
        | {"joined": joined},
        "a/two.pth": {"joined.half": joined.half(), "größe": state["n"], "none": state["none"]},
        "three.safetensors": {"b": state["b"].float(), "pos_embed": sincos(16, 6, 1.0).bfloat16()},
    }
    for name, tensors in expected.items():
        assert same(load(tmp_path / "out" / name), tensors)
    assert sum(told) == sum(tensor.nbytes for tensors in expected.values() for tensor in tensors.values())
    # The account: per file its size, per source what each of its runs of bytes became.
    assert {name: file["size"] for name, file in written.files.items()} == {
        name: (tmp_path / "out" / name).stat().st_size for name in files
    }
    everything = {key: tensor for tensors in expected.values() for key, tensor in tensors.items()}
    runs = ("to_q", "to_k", "to_v", "half.q", "half.k")
    assert written.digests["qkv"] == {key: digest(everything[key]) for key in runs}
    assert written.digests["k"] == {"joined": digest(state["k"]), "joined.half": digest(state["k"].half())}
    assert written.digests["pos"] == {"pos_embed": digest(everything["pos_embed"])}
    assert (written.nonfinite, written.overflowed) == ({}, {})


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_the_digest_of_the_frame_is_that_of_all_that_is_no_tensor(
    source: Path, state: State, tmp_path: Path, opened: Callable[[Path], Checkpoint], name: str
) -> None:
    given = opened(source)
    written, _ = write(tmp_path / "out", {name: [TensorWrite((given[key],), (key,), F32) for key in ("q", "k")]})
    content = bytearray((tmp_path / "out" / name).read_bytes())
    for key in ("q", "k"):
        raw = raw_bytes(state[key])
        assert content.count(raw) == 1
        at = content.index(raw)
        del content[at : at + len(raw)]
    assert written.files[name]["header_sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("dtype", "overflows"), [(F32, 0), (F16, 6), (BF16, 1)], ids=str)
def test_nan_and_infinity_are_counted_where_they_come_from_and_what_a_cast_makes_infinite_apart(
    tmp_path: Path, opened: Callable[[Path], Checkpoint], dtype: DType, overflows: int
) -> None:
    values = {
        "fused": torch.tensor([[7e4, NAN], [INF, -INF], [3.4e38, 2]]),
        "q": torch.tensor([[NAN, 7e4]]),
        "k": torch.tensor([[7e4, -7e4], [INF, NAN]]),
        "bad": torch.tensor([NAN, NAN, NAN, 7e4, INF]),
        "sound": torch.tensor([1.0]),
    }
    given = opened(save(values, tmp_path / "a.pth"))
    parts = [
        TensorWrite((given["fused"],), ("a", "b", "c"), dtype),
        TensorWrite((given["q"], given["k"]), ("joined",), dtype),
        TensorWrite((given["bad"],), ("bad.copy",), dtype),
        TensorWrite((given["sound"],), ("well",), dtype),
    ]
    written, _ = write(tmp_path / "out", {"a.safetensors": parts})
    rounded = {key: tensor.to(getattr(torch, dtype.name)) for key, tensor in values.items()}
    over = {key: int((torch.isfinite(values[key]) & torch.isinf(made)).sum()) for key, made in rounded.items()}
    assert written.overflowed == {key: count for key, count in over.items() if count}
    assert sum(over.values()) == overflows
    # Of the source's own, all of them and each once, by the name that they have there.
    assert sum(written.nonfinite.values()) == sum(int((~torch.isfinite(tensor)).sum()) for tensor in values.values())
    if dtype == F32:
        assert written.nonfinite == {"fused": 3, "q": 1, "k": 2, "bad": 4}


@pytest.mark.parametrize(("bad", "text"), [
    ({"a": 1}, "1 element is lost, in a"), ({"a": 2}, "2 elements are lost, in a"),
    ({f"k{c}": 1 for c in "abcdefgh"}, "8 elements are lost, in ka, kb, kc, kd, ke, kf and 2 more"),
    ({f"blocks.{n}.w": 1 for n in range(30)}, "30 elements are lost, in blocks.{0..29}.w"),
])  # fmt: skip
def test_counts_in_words(bad: dict[str, int], text: str) -> None:
    assert counted(bad, "lost") == text


def test_a_part_that_is_cut_along_its_rows(source: Path, opened: Callable[[Path], Checkpoint]) -> None:
    given = opened(source)
    shapes = [[entry.shape for entry in part.entries] for part in (
        TensorWrite((given["qkv"],), ("a", "b", "c"), F16),
        TensorWrite((given["q"], given["k"], given["v"]), ("w",), F16),
        TensorWrite((given["b"],), ("b",), F16), TensorWrite((given["none"],), ("none",), F16))]  # fmt: skip
    assert shapes == [[(2, 5)] * 3, [(6, 5)], [()], [(0, 3)]]
    assert TensorWrite((given["qkv"],), ("a", "b"), F16).nbytes == 60


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_header_that_arrives_changed_is_found(
    source: Path, tmp_path: Path, opened: Callable[[Path], Checkpoint], monkeypatch: pytest.MonkeyPatch,
    name: str, where: str,
) -> None:  # fmt: skip
    """At once, or (of an archive, whose checksums come last) when the tensors are all there."""
    given, calls = opened(source), []

    def wrong(fd: int, data: bytes | memoryview, offset: int) -> None:
        calls.append(offset)
        again = calls.count(offset) > 1
        write_at(fd, bytes(data[:-1]) + bytes([data[-1] ^ 1]) if again == (where == "after") else data, offset)

    monkeypatch.setattr(writing, "write_at", wrong)
    parts = [TensorWrite((given[key],), (key,), F32) for key in ("q", "k")]
    if name == "a.safetensors" and where == "after":
        write(tmp_path / "out", {name: parts})  # written once, since it has no checksums
        assert calls == [0]
        return
    with pytest.raises(ConverterError, match="the header that was read back is not the one that was written") as caught:
        write(tmp_path / "out", {name: parts})
    assert type(caught.value) is ConverterError
    assert caught.value.exit_code == 5
    assert sorted(os.listdir(tmp_path)) == [source.name]


@pytest.mark.parametrize("at", ["local header", "central directory", "end"])
def test_any_part_of_an_archives_frame_that_arrives_changed_is_no_fault_of_the_input(
    source: Path, tmp_path: Path, opened: Callable[[Path], Checkpoint], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Also what a reader looks at only when it comes to a tensor."""
    part = TensorWrite((opened(source)["q"],), ("q",), F32)
    layout = lay_out_torch(part.entries)
    magic = {"local header": b"PK\3\4", "central directory": b"PK\1\2", "end": b"PK\5\6"}[at]
    name = b"" if at == "end" else b"data/0"
    piece = [offset for offset, data in layout.frame({}) if magic in data and name in data][-1]

    def wrong(fd: int, data: bytes | memoryview, offset: int) -> None:
        changed = bytearray(data)
        if offset == piece:
            changed[changed.rindex(magic)] ^= 1
        write_at(fd, changed, offset)

    monkeypatch.setattr(writing, "write_at", wrong)
    words = pytest.raises(ConverterError, match="the header that was read back is not the one")
    with Publication(tmp_path / "out", needed_bytes=0) as out, words as caught:
        write_files(out, [TensorFile("a.pth", layout)], [part], step=lambda count: None, digests={})
    assert caught.value.exit_code == 5


def test_checksums_that_are_not_those_of_the_tensors_are_found(
    source: Path, tmp_path: Path, opened: Callable[[Path], Checkpoint]
) -> None:
    """Even where they arrive as they were written: the reader's word is taken, not the writer's."""
    part = TensorWrite((opened(source)["q"],), ("q",), F32)
    right = lay_out_torch(part.entries)
    wrong = replace(right, frame=lambda crcs: right.frame({key: crc ^ 1 for key, crc in crcs.items()}))
    with Publication(tmp_path / "out", needed_bytes=0) as out:
        with pytest.raises(ConverterError, match="the header that was read back is not the one that was written"):
            write_files(out, [TensorFile("a.pth", wrong)], [part], step=lambda count: None, digests={})
        write_files(out, [TensorFile("b.pth", right)], [part], step=lambda count: None, digests={})


@pytest.mark.parametrize("said", ["right", "wrong"])
def test_what_a_record_states_of_a_source_changes_nothing_of_the_result(
    source: Path, state: State, tmp_path: Path, opened: Callable[[Path], Checkpoint], said: str
) -> None:
    given = opened(source)
    digests: dict[str, Any] = {key: digest(state[key]) if said == "right" else "blake3:0" for key in state}
    parts = [
        TensorWrite((given["q"], given["k"], given["v"]), ("joined",), F32),
        TensorWrite((given["qkv"],), ("a", "b"), F32),
    ]
    written, _ = write(tmp_path / "out", {"a.pth": parts}, digests)
    joined = torch.cat([state["q"], state["k"], state["v"]])
    halves = dict(zip("ab", state["qkv"].chunk(2), strict=True))
    assert same(load(tmp_path / "out" / "a.pth"), {"joined": joined} | halves)
    assert written.digests["v"] == {"joined": digest(state["v"])}
