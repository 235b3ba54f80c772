"""The header says where every byte belongs, or the file is refused."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import HEADS, pixart, within
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from zip_builder import assert_refused, read_all, refused, safetensors_file, save

from converter.checkpoint import open_checkpoint
from converter.checkpoint.dtypes import BY_NAME
from converter.checkpoint.file import InputFile
from converter.checkpoint.safetensors_reader import HEADER_LIMIT, read_header
from converter.conversion.convert import convert
from converter.errors import InputError

SIX = struct.pack("<6f", *range(6))
GOOD = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def entry(**changes: Any) -> bytes:
    return safetensors_file({"w": GOOD["w"] | changes}, SIX)


def two(first: list[int], second: list[int], size: int = 24) -> bytes:
    """Two tensors of bytes with these offsets, in a file with `size` bytes of data."""
    return safetensors_file(
        {
            "a": {"dtype": "U8", "shape": [first[1] - first[0]], "data_offsets": first},
            "b": {"dtype": "U8", "shape": [second[1] - second[0]], "data_offsets": second},
        },
        bytes(size),
    )


def text(body: str) -> bytes:
    return safetensors_file(body.encode("utf-8", "surrogatepass"), SIX)


ENTRY = "not an entry of dtype, shape and data_offsets"
ONE = json.dumps(GOOD["w"])
REFUSED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    # Bounds of the header
    "header beyond the file": (safetensors_file(GOOD, SIX, 1000), ("header length", "1000 bytes in a file of")),
    "header beyond the limit": (safetensors_file(GOOD, SIX, HEADER_LIMIT + 1), ("header length", "truncated, or not")),
    "header of a terabyte": (safetensors_file(GOOD, SIX, (1 << 40) - 1), ("header length",)),
    "header of 2^63": (safetensors_file(GOOD, SIX, 1 << 63), ("neither a torch archive nor a safetensors file",)),
    "header too short": (safetensors_file(GOOD, SIX, 30), ("header", "not valid JSON")),
    "header too long": (safetensors_file(GOOD, SIX, len(json.dumps(GOOD)) + 1), ("not valid JSON",)),
    "empty header": ((0).to_bytes(8, "little") + b"{", ("header", "not valid JSON")),
    "only a length": ((2).to_bytes(8, "little"), ("neither",)),
    "no tensors": (safetensors_file({}), ("holds no tensors",)),
    # JSON
    "duplicate keys": (text(f'{{"w":{ONE},"w":{ONE}}}'), ("header", "a duplicate key")),
    "duplicate keys, spelled differently": (text(f'{{"w":{ONE},"\\u0077":{ONE}}}'), ("a duplicate key",)),
    "duplicate fields": (text(f'{{"w":{ONE[:-1]},"shape":[6]}}}}'), ("a duplicate key",)),
    "NaN": (entry(shape=[float("nan")]), ("NaN is not JSON",)),
    "Infinity": (entry(shape=[float("inf")]), ("Infinity is not JSON",)),
    "not UTF-8": (safetensors_file(b'{"\xff": 1}'), ("not valid JSON", "utf-8")),
    "half a character": (text('{"\ud800": 1}'), ("not valid JSON",)),
    "half an escaped character": (text(f'{{"\\ud800":{ONE}}}'), ("not valid JSON: an unpaired surrogate",)),
    "a number beyond any": (text('{"w":{"shape":[1e999],"data_offsets":[0,24]}}'), ("1e999 is not JSON",)),
    "bytes after the object": (text(f'{{"w":{ONE}}} x'), ("not valid JSON: Extra data",)),
    "a control character": (text('{"\n": 1}'), (r"not valid JSON: Invalid control character",)),
    "nested lists": (text('{"w":' + "[" * 200_000), ("header", "nested too deeply")),
    "nested objects": (text('{"w":' * 200_000), ("nested too deeply",)),
    "a huge integer": (text('{"w":{"shape":[' + "9" * 100_000 + "]}}"), ("header", "digits")),
    "a large integer": (entry(shape=[10**4000]), (ENTRY,)),
    "a hostile key": (text('{"\\u001b[2J\\n":1}'), (r"\x1b[2J\n",)),
    "a long key": (text('{"' + "k" * 100_000 + '":1}'), ("(100000 characters)",)),
    # Entries
    "a number": (safetensors_file({"w": 3}), ("w", ENTRY)),
    "a list": (safetensors_file({"w": []}), (ENTRY,)),
    "text": (safetensors_file({"w": "dtype shape data_offsets"}), (ENTRY,)),
    "null": (safetensors_file({"w": None}), (ENTRY,)),
    "no shape": (safetensors_file({"w": {"dtype": "F32", "data_offsets": [0, 24]}}), (ENTRY,)),
    "a further field": (entry(strides=[3, 1]), (ENTRY,)),
    "one offset": (entry(data_offsets=[0]), (ENTRY,)),
    "three offsets": (entry(data_offsets=[0, 12, 24]), (ENTRY,)),
    "text offsets": (entry(data_offsets="02"), (ENTRY,)),
    "float offsets": (entry(data_offsets=[0, 24.0]), (ENTRY,)),
    "bool offsets": (entry(data_offsets=[False, 24]), (ENTRY,)),
    "null offsets": (entry(data_offsets=None), (ENTRY,)),
    "negative offset": (entry(data_offsets=[-24, 0]), (ENTRY,)),
    "backward offsets": (entry(data_offsets=[24, 0]), ("w", "-24 bytes, where float32 [2, 3] takes 24")),
    "offsets of 2^64": (entry(data_offsets=[1 << 64, (1 << 64) + 24]), (ENTRY,)),
    "negative size": (entry(shape=[-2, -3]), (ENTRY,)),
    "float size": (entry(shape=[2.0, 3]), (ENTRY,)),
    "bool size": (entry(shape=[True, 6]), (ENTRY,)),
    "text shape": (entry(shape="23"), (ENTRY,)),
    "empty text shape": (entry(shape=""), (ENTRY,)),
    "object shape": (entry(shape={}), (ENTRY,)),
    "nested shape": (entry(shape=[[2], 3]), (ENTRY,)),
    "nine axes": (entry(shape=[1] * 9), (ENTRY,)),
    "overflowing shape": (entry(shape=[1 << 32, 1 << 32, 6]), ("24 bytes, where float32",)),
    "huge empty": (entry(shape=[0, 1 << 47, 1 << 47], data_offsets=[0, 0]), ("that is negative or too large",)),
    "another size": (entry(shape=[2, 2]), ("24 bytes, where float32 [2, 2] takes 16",)),
    "unknown dtype": (entry(dtype="F8_E4M3"), ("dtype F8_E4M3 is not accepted",)),
    "complex": (entry(dtype="C64"), ("dtype C64 is not accepted",)),
    "a list for a dtype": (entry(dtype=["F32"]), ("is not accepted",)),
    "a hostile dtype": (entry(dtype="\x1b[2J" * 99), (r"\x1b[2J",)),
    "empty key": (safetensors_file({"": GOOD["w"]}, SIX), ("a key that is not plain text: ''",)),
    "metadata that is no map": (safetensors_file({"__metadata__": [], **GOOD}, SIX), ("__metadata__", "not a map")),
    "metadata of numbers": (safetensors_file({"__metadata__": {"a": 1}} | GOOD, SIX), ("not a map from text to text",)),
    "metadata of null": (safetensors_file({"__metadata__": None, **GOOD}, SIX), ("__metadata__", "not a map")),
    # Where the data lies
    "a hole": (two([0, 8], [16, 24]), ("b", "starts at 16, where 8 was expected (a hole or an overlap)")),
    "a hole in front": (two([8, 16], [16, 24]), ("a", "starts at 8, where 0 was expected")),
    "an overlap": (two([0, 16], [8, 24]), ("b", "starts at 8, where 16 was expected")),
    "the same bytes": (two([0, 24], [0, 24]), ("b", "starts at 0, where 24 was expected")),
    "an empty one inside another": (two([0, 24], [8, 8]), ("b", "starts at 8, where 24 was expected")),
    "bytes at the end": (
        two([0, 8], [8, 16]),
        ("data", "24 bytes, where the header describes 16 (truncated or extended)"),
    ),
    "bytes missing": (two([0, 16], [16, 32]), ("data", "24 bytes, where the header describes 32")),
    "a petabyte": (two([0, 8], [8, 1 << 50]), ("that is negative or too large",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_malformed_files_are_refused(tmp_path: Path, name: str) -> None:
    data, fragments = REFUSED[name]
    assert_refused(save(tmp_path, data, "hostile.safetensors"), *fragments)


ACCEPTED: dict[str, bytes] = {
    "plain": safetensors_file(GOOD, SIX),
    "padded": safetensors_file(json.dumps(GOOD).encode() + b"  \n ", SIX),
    "metadata": safetensors_file({"__metadata__": {"format": "pt", "\u202e": "\x1b"}, **GOOD}, SIX),
    "an empty tensor at the same place": safetensors_file(
        {"e": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, **GOOD}, SIX),
    "an empty tensor at the end": safetensors_file(
        {"e": {"dtype": "F32", "shape": [3, 0], "data_offsets": [24, 24]}, **GOOD}, SIX),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_valid_files_are_read(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, ACCEPTED[name], "good.safetensors")
    assert read_all(path)["w"] == ("float32", (2, 3), SIX)
    assert load_file(path)["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_order_is_that_of_the_header(tmp_path: Path) -> None:
    data = safetensors_file({"b": {"dtype": "U8", "shape": [12], "data_offsets": [12, 24]},
                             "a": {"dtype": "U8", "shape": [12], "data_offsets": [0, 12]}}, SIX)  # fmt: skip
    with InputFile(save(tmp_path, data)) as file:
        tensors, metadata = read_header(file)
        assert list(tensors) == ["b", "a"]
        assert metadata == {}
        assert tensors["b"].read() == SIX[12:]


@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N", "P"]), min_size=1).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from([getattr(torch, name) for name in BY_NAME]), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
    )
)
@settings(max_examples=100)
def test_what_safetensors_writes_is_what_it_reads(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    tensors = {key: torch.randint(0, 2, shape).to(dtype) for key, (dtype, shape) in made.items()}
    save_file(tensors, path)
    with open_checkpoint(path) as checkpoint:
        prefix = checkpoint.prefix
        assert {prefix + key for key in checkpoint} == set(tensors)
        for key, value in checkpoint.items():
            wanted = tensors[prefix + key]
            assert value.torch().dtype == wanted.dtype
            assert torch.equal(value.torch(), wanted)


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path, safetensors_file(GOOD, SIX, HEADER_LIMIT + 1))
    os.truncate(path, 2 * HEADER_LIMIT)
    assert_refused(path, "header length")


def test_a_header_of_brackets_takes_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = save(tmp_path, safetensors_file(b'{"w":[' + b"[]," * 1_000_000 + b"[]]}"))
    tracemalloc.start()
    try:
        assert_refused(path, "header")
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_truncation_at_every_byte_and_every_flip_in_the_header(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}
    path = tmp_path / "small.safetensors"
    save_file(tensors, path, {"format": "pt"})
    data, truth = path.read_bytes(), read_all(path)
    end = 8 + int.from_bytes(data[:8], "little")

    def attempt() -> Any:
        try:
            return read_all(path)
        except InputError as error:
            line = str(error)
        assert line.isprintable()
        return None

    with within(60), path.open("r+b", buffering=0) as file:
        refusals = 0
        for at in range(end):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([data[at] ^ (1 << bit)]), at)
                found = attempt()
                refusals += found is None
                # No checksum: another key, or another dtype of the same size, is another valid file; never other bytes.
                assert found is None or [v[2] for v in found.values()] == [v[2] for v in truth.values()]
            os.pwrite(file.fileno(), data[at : at + 1], at)
        assert refusals > 6 * end
        for size in reversed(range(len(data))):
            os.truncate(path, size)
            assert attempt() is None, size


@given(st.binary(max_size=120))
@settings(max_examples=150)
def test_random_headers(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    path = save(tmp_path_factory.getbasetemp(), safetensors_file(b"{" + body, SIX), "random.safetensors")
    with refused(path):
        read_all(path)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 65) | st.floats() | st.text(max_size=3) | st.just("F32"),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


@given(JSONS, JSONS, JSONS)
@settings(max_examples=300)
def test_random_entries(tmp_path_factory: pytest.TempPathFactory, dtype: Any, shape: Any, offsets: Any) -> None:
    body = {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
    path = save(tmp_path_factory.getbasetemp(), safetensors_file(body, SIX), "random.safetensors")
    with refused(path):
        read_all(path)


# ---------------------------------------------------------------- tied weights


def tree(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A module with these parameters, at their dotted paths; tensors that are one object are one parameter."""
    root, made = torch.nn.Module(), dict[int, torch.nn.Parameter]()
    for key, value in state.items():
        *path, name = key.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, torch.nn.Module())
            place = place.get_submodule(part)
        place.register_parameter(name, made.setdefault(id(value), torch.nn.Parameter(value)))
    return root


@given(st.data())
@settings(max_examples=60)
def test_what_save_model_left_out_is_what_load_model_gives(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever modules share whatever they have under the same name; beside any metadata of the user's own."""
    path = tmp_path_factory.getbasetemp() / "tied.safetensors"
    shapes = {"weight": (2, 3), "bias": (2,), "table": (4,)}
    pool = {name: [torch.randn(shape) for _ in range(3)] for name, shape in shapes.items()}
    state = {
        f"blocks.{i}.{name}": pool[name][data.draw(st.integers(0, 2))] for i in range(4) for name in sorted(shapes)
    } | {f"own.{name}": torch.randn(shape) for name, shape in shapes.items()}
    words = st.sampled_from(["format", "pt", "modelspec.title", '{"a": "own.bias"}', "own.bias", "own.table"])
    metadata = data.draw(st.dictionaries(words, words, max_size=3))
    save_model(tree(state), os.fspath(path), dict(metadata))
    into = tree(dict(zip(state, _same(state), strict=True)))
    load_model(into, path)
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint) == set(state)
        for key, value in into.state_dict().items():
            assert torch.equal(checkpoint[key].torch(), value)
            assert torch.equal(value, state[key])


def _same(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Tensors that are one object where those of `state` are."""
    made: dict[int, torch.Tensor] = {}
    return [made.setdefault(id(value), torch.zeros_like(value)) for value in state.values()]


KEYS = ["a.w", "b.w", "c.w", "a.b", "w", "pt", "format"]


@given(
    st.lists(st.sampled_from(KEYS), min_size=1, unique=True),
    st.dictionaries(st.sampled_from([*KEYS, "d.w", "x.pt", "modelspec.title"]), st.sampled_from([*KEYS, "", "d.w"])),
)
@settings(max_examples=100)
def test_any_metadata_adds_copies_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "metadata.safetensors"
    save_file({key: torch.tensor([float(i)]) for i, key in enumerate(keys)}, path, metadata)
    with open_checkpoint(path) as checkpoint:
        found = {key: tensor.torch().item() for key, tensor in checkpoint.items()}
    assert {key: found[key] for key in keys} == {key: float(i) for i, key in enumerate(keys)}
    for key in found.keys() - set(keys):
        assert key in metadata
        assert metadata[key] in keys  # and no other copy
        assert found[key] == found[metadata[key]]
        assert key.split(".")[-1] == metadata[key].split(".")[-1]
    innocent = {k for k, v in metadata.items() if v not in keys or k.split(".")[-1] != v.split(".")[-1]}
    assert not found.keys() & (innocent - set(keys))


def test_innocent_metadata_of_real_files_adds_nothing(tmp_path: Path) -> None:
    metadata = {
        "format": "pt",
        "modelspec.architecture": "pixart",
        "ss_network_args": '{"weight": "a.weight"}',
        "ss_tag_frequency": "{" + "x" * 100_000 + "}",
        "description": "a.weight",
        "a.weight": "b.weight",
    }
    state = {"a.weight": torch.ones(2), "b.weight": torch.zeros(2), "pt": torch.ones(1)}
    save_file(state, tmp_path / "a.safetensors", metadata)
    found = read_all(tmp_path / "a.safetensors")
    assert set(found) == {"a.weight", "b.weight", "pt"}
    assert found["a.weight"][2] == torch.ones(2).numpy().tobytes()


def test_copies_are_no_way_to_expand_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = {"a.w": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}

    def copies(count: int) -> Path:
        metadata = {f"{i}.w": "a.w" for i in range(count)}
        return save(tmp_path, safetensors_file({"__metadata__": metadata} | header, bytes(4000)), "a.safetensors")

    assert len(read_all(copies(3))) == 4
    assert_refused(copies(20), "its tensors add up to 84000 bytes", "shared storages are expanded")
    monkeypatch.setattr("converter.checkpoint.safetensors_reader.COPY_LIMIT", 2)
    assert_refused(copies(3), "__metadata__", "names more than 2 copies of tensors")


def test_a_model_with_tied_blocks_converts_as_its_state_dict_does(tmp_path: Path) -> None:
    state = pixart()
    tied = {key: state[key.replace("blocks.1.", "blocks.0.")] for key in state if key.startswith("blocks.1.mlp")}
    state |= tied | {"blocks.1.scale_shift_table": state["blocks.0.scale_shift_table"]}
    save_model(tree(state), os.fspath(tmp_path / "a.safetensors"))
    torch.save(state, tmp_path / "b.pth")
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint, safe_open(tmp_path / "a.safetensors", "pt") as held:
        assert len(checkpoint) == len(held.keys()) + 5
    made = {
        name: convert(tmp_path / name, tmp_path / f"{name}.out", hyper_parameters={"num_attention_heads": HEADS})
        for name in ("a.safetensors", "b.pth")
    }
    weights = [tmp_path / f"{name}.out/transformer/diffusion_pytorch_model.safetensors" for name in made]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    notes = made["a.safetensors"].notes
    assert any("blocks.1.mlp.fc1.weight" in note and "(tied weights, as its metadata says)" in note for note in notes)
    assert not any("metadata says" in note for note in made["b.pth"].notes)


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3"])
def test_few_bits_are_quantised_weights(code: str, tmp_path: Path) -> None:
    path = save(tmp_path, safetensors_file({"w": {"dtype": code, "shape": [8], "data_offsets": [0, 8]}}, bytes(8)))
    assert_refused(path, f"dtype {code} is not accepted (quantised weights): use the original weights")
