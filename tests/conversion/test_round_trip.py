"""Original to diffusers and back: every tensor bit for bit, whatever it lay in, judged by torch and safetensors."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import (
    GOLDEN,
    HEADS,
    State,
    convert,
    diffusers_keyed,
    folder,
    other,
    pixart,
    prefixed,
    raw_bytes,
    save,
    training,
)
from safetensors.torch import load_file, save_file

import converter
from converter.filenames import RECORD, SIDECAR

CAPTION, POSITIONS = "y_embedder.y_embedding", "pos_embed"


def read(path: Path) -> State:
    """What a written file holds, by torch's own reader, as the original code would load it."""
    if path.suffix == ".safetensors":
        return load_file(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # every CRC
    content = torch.load(path, mmap=True, weights_only=True)
    assert list(content) == ["state_dict"]
    for tensor in content["state_dict"].values():
        assert tensor.untyped_storage().data_ptr() % 64 == 0
    return dict(content["state_dict"])


def same(one: State, other: State, *, ordered: bool = True) -> None:
    assert (list(one) == list(other)) if ordered else (set(one) == set(other))
    for key, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[key].dtype, other[key].shape), key
        assert raw_bytes(tensor) == raw_bytes(other[key]), key


def there_and_back(source: Path, tmp: Path, name: str = "back.pth", **said: Any) -> State:
    convert(source, tmp / "out", **said)
    done = converter.convert(tmp / "out", tmp / name, to="original")
    assert any("are what conversion.json says was converted" in note for note in done.notes)
    return read(tmp / name)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("name", ["alpha-ms.pth", "alpha-fixed.pth", "sigma-ms.pth", "dit.pt"])
def test_golden(name: str, suffix: str, tmp_path: Path) -> None:
    source = torch.load(GOLDEN / name, weights_only=True)
    wanted = source.get("state_dict", source)
    same(there_and_back(GOLDEN / name, tmp_path, f"back{suffix}"), wanted, ordered=suffix != ".safetensors")
    if "state_dict_ema" in source:
        (tmp_path / "ema").mkdir()
        same(there_and_back(GOLDEN / name, tmp_path / "ema", weights="ema"), source["state_dict_ema"])


@pytest.mark.parametrize("kind", ["the table alone in half", "blocks in half"])
def test_by_way_of_several_conversions(kind: str, tmp_path: Path) -> None:
    """What the first one knew travels along: order, dtype of the buffers, digests."""
    state = dict(reversed(pixart(**KINDS[kind]).items()))
    convert(save(state, tmp_path / "a.pth"), tmp_path / "first")
    converter.convert(tmp_path / "first", tmp_path / "second", max_shard_size="20KB")
    same(there_and_back(tmp_path / "second", tmp_path), state)


def test_a_later_cast_is_as_good_as_one_at_once(tmp_path: Path) -> None:
    """The bytes, what is said of them, and the proof that they are what was written."""
    source = save(pixart(), tmp_path / "a.pth")
    convert(source, tmp_path / "exact")
    converter.convert(tmp_path / "exact", tmp_path / "later", dtype="float16")
    converter.convert(tmp_path / "later", tmp_path / "resharded", max_shard_size="20KB")
    converter.convert(tmp_path / "later", tmp_path / "widened", dtype="float32")
    convert(source, tmp_path / "at once", dtype="float16")
    for name in ("later", "resharded", "widened", "at once"):
        casts = "float16 and then to float32" if name == "widened" else "float16"
        assert converter.convert(tmp_path / name, tmp_path / f"{name}.pth", to="original").notes == [
            f"its weights were rounded to {casts} when it was converted: bits are lost",
            "all 57 tensors are what conversion.json says was converted",
        ]
    for name in ("later", "resharded"):
        assert (tmp_path / f"{name}.pth").read_bytes() == (tmp_path / "at once.pth").read_bytes()
    same(read(tmp_path / "widened.pth"), {key: value.float() for key, value in read(tmp_path / "later.pth").items()})


def test_what_was_trained_after_a_later_cast_is_noticed(converted: Path) -> None:
    half = converter.convert(converted, converted.parent / "half", dtype="float16").path
    weights = half / "transformer/diffusion_pytorch_model.safetensors"
    save_file(load_file(weights) | {"proj_out.bias": torch.ones(32, dtype=torch.float16)}, weights, {"format": "pt"})
    for source in (half, converter.convert(half, converted.parent / "again", max_shard_size="20KB").path):
        done = converter.convert(source, converted.parent / "back.pth", to="original", overwrite=True)
        assert "1 of 57 tensors are not what conversion.json says was converted (trained since?)" in done.notes


def test_casts_are_remembered_though_the_first_conversion_is_not(converted: Path, tmp_path: Path) -> None:
    config = json.loads((converted / "transformer/config.json").read_text())
    found = folder(diffusers_keyed(pixart()), tmp_path / "found", config)
    converter.convert(found, tmp_path / "half", dtype="float16")
    converter.convert(tmp_path / "half", tmp_path / "again")
    done = converter.convert(tmp_path / "again", tmp_path / "back.pth", to="original")
    assert "its weights were rounded to float16 when it was converted: bits are lost" in done.notes


@pytest.mark.parametrize(
    ("name", "words"), [("dit.pt", "run this on what from_pretrained loads"), ("alpha-ms.pth", "PixArtAlphaMSPipeline")]
)
def test_what_stock_diffusers_does_is_said_of_what_is_made_for_it(name: str, words: str, tmp_path: Path) -> None:
    there = convert(GOLDEN / name, tmp_path / "out", stock=True)
    back = converter.convert(there.path, tmp_path / "back.pth", to="original")
    for notes, said in ((there.notes, True), (there.record["notes"], True), (back.notes, False)):
        assert any(words in note for note in notes) == said
    noted = any(words in note for note in converter.inspect(tmp_path / "back.pth")["notes"])
    assert noted == (name != "dit.pt")  # whose own class has what diffusers' lacks


KINDS: dict[str, Any] = {
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
    "the table alone in half": {"dtype": lambda key: torch.float16 if key == POSITIONS else torch.float32},
    "blocks in half": {"dtype": lambda key: torch.bfloat16 if key.startswith("blocks") else torch.float32},
    "scale 2": {"scale": 2.0},
    "patch 4": {"patch_size": 4},
    "no table": {"pos_embed": False},
    "a table of another kind": {},
    "views": {},
}
SAID: dict[str, dict[str, Any]] = {
    "no table": {"image_size": 128, "interpolation_scale": 1.0},
    "a table of another kind": {"multi_scale_train": True, "interpolation_scale": 1.0},
}


@pytest.mark.parametrize("kind", KINDS)
@given(
    depth=st.integers(1, 3),
    hidden=st.sampled_from([24, 48, 60]),
    tokens=st.integers(1, 9),
    channels=st.integers(1, 3),
    micro=st.booleans(),
    seed=st.integers(0, 1 << 20),
    prefix=st.sampled_from(["", "module.", "model.diffusion_model.", "module._orig_mod."]),
)
@settings(max_examples=4)
def test_any_model(
    kind: str,
    tmp_path_factory: pytest.TempPathFactory,
    depth: int,
    hidden: int,
    tokens: int,
    channels: int,
    micro: bool,
    seed: int,
    prefix: str,
) -> None:
    tmp = tmp_path_factory.mktemp("any")
    sizes = {"depth": depth, "hidden_size": hidden, "tokens": tokens, "in_channels": channels}
    state = pixart(seed=seed, micro_conditions=micro, **sizes, **KINDS[kind])
    if kind == "a table of another kind":
        state[POSITIONS] = torch.randn_like(state[POSITIONS])
    elif kind == "views":
        state = {key: tensor.mT.contiguous().mT if tensor.dim() == 2 else tensor for key, tensor in state.items()}
    same(there_and_back(save(prefixed(state, prefix), tmp / "a.pth"), tmp, **SAID.get(kind, {})), state)


# What lies beside a model, or does not.


def bare(tmp: Path, state: State, **more: torch.Tensor) -> Path:
    """A diffusers folder as another tool leaves it: no record, no sidecar."""
    return folder(diffusers_keyed(state) | more, tmp / "theirs", CONFIG)


def test_without_a_sidecar_the_null_caption_is_left_out_and_said_so(tmp_path: Path) -> None:
    state = pixart()
    done = converter.convert(bare(tmp_path, state), tmp_path / "back.pth", to="original")
    said = next(note for note in done.notes if note.startswith(f"left out: {CAPTION}"))
    assert "--null_caption FILE gives it" in said
    assert "guidance" in said
    same(read(tmp_path / "back.pth"), {key: state[key] for key in state if key != CAPTION}, ordered=False)


@pytest.mark.parametrize("kind", ["original", "sidecar", "alone", "stray"])
def test_the_null_caption_may_be_given(kind: str, tmp_path: Path) -> None:
    """And a stray key of old conversions is one."""
    state = pixart()
    convert(save(state, tmp_path / "a.pth"), tmp_path / "out")
    files = {
        "original": tmp_path / "a.pth",
        "sidecar": tmp_path / "out" / SIDECAR,
        "alone": save({"anything": state[CAPTION]}, tmp_path / "caption.pt"),
    }
    source = bare(tmp_path, state, **({"caption_projection.y_embedding": state[CAPTION]} if kind == "stray" else {}))
    converter.convert(source, tmp_path / "back.pth", to="original", null_caption=files.get(kind))
    same(read(tmp_path / "back.pth"), state, ordered=False)
    done = converter.convert(source, tmp_path / "again", null_caption=files.get(kind))
    assert load_file(done.path / SIDECAR).keys() == {CAPTION}


def test_a_null_caption_of_another_model_is_refused(tmp_path: Path) -> None:
    state = pixart()
    source = bare(tmp_path, state)
    wrong = {
        "is not the y_embedder.y_embedding of this model": {"a": torch.zeros(12, 17)},
        "no floats": {"a": torch.zeros(12, 16, dtype=torch.int64)},
        "which one is meant": {"a": torch.zeros(12, 16), "b": torch.zeros(12, 16)},
    }
    for words, content in wrong.items():
        path = save(content, tmp_path / "wrong.pt")
        with pytest.raises(converter.InputError, match=words):
            converter.convert(source, tmp_path / "back.pth", to="original", null_caption=path)
        assert not (tmp_path / "back.pth").exists()


# What somebody changed in between.


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    convert(save(pixart(), tmp_path / "a.pth"), tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("options", [{"to": "original"}, {"max_shard_size": "20KB"}])
@pytest.mark.parametrize("change", ["another scale", "no config"])
def test_another_config(change: str, options: dict[str, Any], converted: Path) -> None:
    """From diffusers to diffusers too: what the original held is known, and the result would be another model."""
    path, said = converted / "transformer/config.json", dict[str, Any]()
    target = converted.parent / ("back.pth" if "to" in options else "shards")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"interpolation_scale": 2}))
    if change == "no config":
        path.unlink()
        said = {"image_size": 128, "interpolation_scale": 2.0}
    with pytest.raises(converter.InputError, match=r"pos_embed: is not what conversion\.json says that the original"):
        convert(converted, target, **options, **said)
    assert sorted(os.listdir(converted.parent)) == ["a.pth", "out"]
    if said:
        done = convert(converted, target, **options, **said | {"interpolation_scale": 1.0})
        assert "the folder holds no config.json: its values are given or assumed" in done.notes


def test_a_foreign_tensor_in_the_sidecar(converted: Path) -> None:
    save_file(load_file(converted / SIDECAR) | {"lora": torch.zeros(2)}, converted / SIDECAR)
    with pytest.raises(converter.InputError, match="lora: nothing that a PixArt keeps"):
        converter.convert(converted, converted.parent / "back.pth", to="original")
    assert sorted(os.listdir(converted.parent)) == ["a.pth", "out"]


def test_a_null_caption_that_takes_the_place_of_the_sidecars_is_said(converted: Path) -> None:
    """And it is what comes back, also by way of another conversion."""
    wanted, place = pixart(), converted.parent
    wanted[CAPTION] += 1
    save_file({CAPTION: wanted[CAPTION]}, caption := place / "null.safetensors")
    done = converter.convert(converted, place / "back.pth", to="original", null_caption=caption)
    assert f"{CAPTION}: the one given by the user replaces that in {SIDECAR}" in done.notes
    same(read(done.path), wanted)
    converter.convert(converted, place / "again", null_caption=caption)
    done = converter.convert(place / "again", place / "later.pth", to="original")
    assert "all 57 tensors are what conversion.json says was converted" in done.notes
    same(read(done.path), wanted)


def with_row(**row: Any) -> Any:
    """The record whose row of the table says so."""

    def change(record: dict[str, Any]) -> dict[str, Any]:
        next(old for old in record["plan"] if old["source"] == POSITIONS).update(row)
        return record

    return change


UNBELIEVED = [
    *(with_row(dtype=dtype) for dtype in ("int64", "\x1b[2J", ["float32"])),
    *(with_row(shape=shape) for shape in (3, [1, "16", 24])),
    *(with_row(digests=digests) for digests in ("ff", {POSITIONS: 1}, {POSITIONS: "md5:ff"}, {POSITIONS: ["ff"]})),
    *(with_row(digests=None, sha256=digests) for digests in ("ff", {POSITIONS: 1})),
    *(lambda record, changed=changed: record | {"changed": changed} for changed in (["ff"], {POSITIONS: 1})),
    with_row(source=1),
    *(lambda record, cast=cast: record | {"cast": cast} for cast in ("\x1b[2J", ["float16"], 16)),
    lambda record: record | {"tool": {"name": "coovert-pixart"}},  # one flipped bit
    lambda record: [],
]


@pytest.mark.parametrize("change", UNBELIEVED)
def test_a_record_that_is_odd_in_one_place_is_not_believed(change: Any, converted: Path) -> None:
    """And said not to be: what it promises is then not held against the folder."""
    (converted / RECORD).write_text(json.dumps(change(json.loads((converted / RECORD).read_text()))))
    done = converter.convert(converted, converted.parent / "back.pth", to="original")
    assert any(f"{RECORD} is not a valid conversion record" in note and "is ignored" in note for note in done.notes)
    assert not any("rounded" in note for note in done.notes)
    same(read(done.path), pixart(), ordered=False)


ROW = {"source": POSITIONS, "dtype": "float32", "shape": [1, 256, 24]}
ORIGIN: dict[str, Any] = {"source": {"weights": "raw", "size": 1}, "hyper_parameters": {}, "plan": [ROW]}
HOSTILE: list[dict[str, Any]] = [
    {"origin": "plan"},
    *({"origin": {name: part for name, part in ORIGIN.items() if name != lost}} for lost in ORIGIN),
    *({"origin": ORIGIN | {"plan": plan}} for plan in ({}, "", [ROW | {"source": 1}], [ROW, ROW])),
    {"origin": ORIGIN | {"source": {"weights": "raw", "size": "1"}}},
    *(
        {"origin": ORIGIN | {"hyper_parameters": {"a": value}}}
        for value in ({"value": [], "source": "given"}, {"value": 1})
    ),
    *({"earlier_casts": casts} for casts in ("float16", {"float16": 1}, [16], ["int8"])),
    *({"more": value} for value in (12345, "\ud800")),  # infinity, and half a character
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_record_of_a_hostile_past_is_not_believed(hostile: dict[str, Any], converted: Path) -> None:
    """And nothing of it is passed on."""
    again = converter.convert(converted, converted.parent / "again").path
    record = json.loads((again / RECORD).read_text())
    assert record["origin"]["plan"]
    (again / RECORD).write_text(json.dumps(record | hostile).replace("12345", "1e999"))
    done = converter.convert(again, converted.parent / "back.pth", to="original")
    assert any("is ignored" in note for note in done.notes)
    same(read(done.path), pixart(), ordered=False)
    last = converter.convert(again, converted.parent / "last")
    assert any("is ignored" in note for note in last.notes)
    assert not {"origin", "earlier_casts"} & last.record.keys()


def test_weights_that_were_trained_since(converted: Path) -> None:
    path = converted / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for key in ("proj_out.weight", "transformer_blocks.1.attn1.to_k.bias"):
        tensors[key] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    done = converter.convert(converted, converted.parent / "back.pth", to="original")
    assert any(note.startswith("2 of 57 tensors are not what") for note in done.notes), done.notes
    wanted = pixart()
    wanted["final_layer.linear.weight"] += 1
    wanted["blocks.1.attn.qkv.bias"][24:48] += 1
    same(read(done.path), wanted)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_casts_are_torchs(name: str, tmp_path: Path) -> None:
    state, dtype = pixart(), getattr(torch, name)
    source = save(state, tmp_path / "a.pth")
    done = convert(source, tmp_path / "out", dtype=name)
    rounded = {key: tensor.to(dtype) for key, tensor in diffusers_keyed(state).items()}
    same(load_file(done.path / "transformer/diffusion_pytorch_model.safetensors"), rounded, ordered=False)
    assert done.record["cast"] == ("" if name == "float32" else name)
    assert raw_bytes(load_file(done.path / SIDECAR)[CAPTION]) == raw_bytes(state[CAPTION])  # kept as it is
    converter.convert(source, tmp_path / "b.pth", to="original", dtype=name)
    # The table is not a weight: it keeps its precision.
    wanted = {key: tensor if key == POSITIONS else tensor.to(dtype) for key, tensor in state.items()}
    same(read(tmp_path / "b.pth"), wanted)


def test_what_overflows_is_named_and_counted(tmp_path: Path) -> None:
    state = pixart()
    state["final_layer.linear.weight"][0, :3] = 1e6
    state["blocks.0.mlp.fc1.bias"][1] = -7e4
    source = save(state, tmp_path / "a.pth")
    said = {"dtype": "float16"}
    with pytest.raises(converter.InputError) as raised:
        convert(source, tmp_path / "out", **said)
    assert "4 elements are beyond float16" in str(raised.value)
    assert "blocks.0.mlp.fc1.bias" in str(raised.value)
    assert "final_layer.linear.weight" in str(raised.value)
    assert not (tmp_path / "out").exists()
    done = convert(source, tmp_path / "out", allow_overflow=True, **said)
    made = load_file(done.path / "transformer/diffusion_pytorch_model.safetensors")
    assert int(torch.isinf(made["proj_out.weight"]).sum()) == 3
    assert any("4 elements are beyond float16" in note for note in done.notes)
    convert(source, tmp_path / "b", dtype="bfloat16")  # its range is float32's


def test_a_cast_does_not_make_nan_an_overflow(tmp_path: Path) -> None:
    state = pixart()
    state["final_layer.linear.weight"][0, 0] = float("nan")
    source = save(state, tmp_path / "a.pth")
    said = {"dtype": "float16"}
    with pytest.raises(converter.InputError, match=r"1 element is NaN or infinite, in final_layer\.linear\.weight"):
        convert(source, tmp_path / "out", allow_overflow=True, **said)
    convert(source, tmp_path / "out", allow_nonfinite=True, **said)


CONFIG = {"sample_size": 16, "num_attention_heads": HEADS, "interpolation_scale": 1.0, "patch_size": 2}
SOURCES: dict[str, Any] = {
    "sharded": lambda s, t: folder(diffusers_keyed(s), t / "in", CONFIG, shards=3),
    "bin": lambda s, t: folder(diffusers_keyed(s), t / "in", CONFIG, suffix="bin"),
    "bin, sharded": lambda s, t: folder(diffusers_keyed(s), t / "in", CONFIG, suffix="bin", shards=2),
    "Transformer2DModel": lambda s, t: folder(
        diffusers_keyed(s), t / "in", CONFIG | {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"}
    ),
    "pipeline": lambda s, t: folder(diffusers_keyed(s), t / "in" / "transformer", CONFIG).parent,
    "FSDP": lambda s, t: save(diffusers_keyed(s), t / "in.bin"),
    "training file": lambda s, t: save(training(s, other(s)), t / "in.pth"),
    "safetensors": lambda s, t: save_file(s, t / "in.safetensors") or t / "in.safetensors",
    "prefixed": lambda s, t: save(prefixed(s, "module."), t / "in.pth"),
    "converted": lambda s, t: convert(save(s, t / "in.pth"), t / "in").path,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_any_source_to_any_layout(kind: str, tmp_path: Path) -> None:
    state = pixart()
    source = SOURCES[kind](state, tmp_path)
    said = {"image_size": 128, "interpolation_scale": 1.0} if kind == "FSDP" else {}
    # What diffusers' layout has no place for.
    theirs = kind in ("training file", "safetensors", "prefixed", "converted")
    wanted = {key: tensor for key, tensor in state.items() if theirs or key != CAPTION}
    made = convert(source, tmp_path / "a.pth", to="original", **said)
    same(read(made.path), wanted, ordered=False)
    for to, prefix in (("original", ""), ("comfyui", "model.diffusion_model.")):
        made = convert(source, tmp_path / f"{to}.safetensors", to=to, **said)
        save_file(prefixed(wanted, prefix), tmp_path / "by-safetensors", metadata={"format": "pt"})
        assert made.path.read_bytes() == (tmp_path / "by-safetensors").read_bytes()
    again = converter.convert(tmp_path / "comfyui.safetensors", tmp_path / "b.pth", to="original")
    same(read(again.path), wanted, ordered=False)
    made = convert(source, tmp_path / "out", **said)
    same(read(made.path / "transformer/diffusion_pytorch_model.safetensors"), diffusers_keyed(state), ordered=False)
