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
    diffusers_keyed,
    folder,
    other,
    pixart,
    prefixed,
    raw_bytes,
    save,
    stated,
    training,
)
from safetensors import safe_open
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
    converter.convert(source, tmp / "out", **stated(**{"num_attention_heads": HEADS} | said))
    done = converter.convert(tmp / "out", tmp / name, to="original")
    assert any("are what conversion.json says was converted" in note for note in done.notes)
    return read(tmp / name)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("name", ["alpha-ms", "alpha-fixed", "sigma-ms"])
def test_golden(name: str, suffix: str, tmp_path: Path) -> None:
    source = torch.load(GOLDEN / f"{name}.pth", weights_only=True)
    wanted = source.get("state_dict", source)
    same(there_and_back(GOLDEN / f"{name}.pth", tmp_path, f"back{suffix}"), wanted, ordered=suffix != ".safetensors")


def test_dit(tmp_path: Path) -> None:
    same(there_and_back(GOLDEN / "dit.pt", tmp_path), torch.load(GOLDEN / "dit.pt", weights_only=True))


@pytest.mark.parametrize("kind", ["the table alone in half", "blocks in half"])
def test_by_way_of_several_conversions(kind: str, tmp_path: Path) -> None:
    """What the first one knew travels along: order, dtype of the buffers, digests."""
    state = dict(reversed(pixart(**KINDS[kind]).items()))
    converter.convert(
        save(state, tmp_path / "a.pth"), tmp_path / "first", hyper_parameters={"num_attention_heads": HEADS}
    )
    converter.convert(tmp_path / "first", tmp_path / "second", max_shard_size="20KB")
    same(there_and_back(tmp_path / "second", tmp_path), state)


def test_a_null_caption_given_on_the_way_is_what_comes_back(converted: Path) -> None:
    wanted = pixart()
    wanted[CAPTION] += 1
    save_file({CAPTION: wanted[CAPTION]}, caption := converted.parent / "null.safetensors")
    converter.convert(converted, converted.parent / "again", null_caption=caption)
    done = converter.convert(converted.parent / "again", converted.parent / "back.pth", to="original")
    assert "all 57 tensors are what conversion.json says was converted" in done.notes
    same(read(done.path), wanted)


def test_a_later_cast_is_as_good_as_one_at_once(tmp_path: Path) -> None:
    """The bytes, what is said of them, and the proof that they are what was written."""
    source, said = save(pixart(), tmp_path / "a.pth"), {"num_attention_heads": HEADS}
    converter.convert(source, tmp_path / "exact", **stated(**said))
    converter.convert(tmp_path / "exact", tmp_path / "later", dtype="float16")
    converter.convert(tmp_path / "later", tmp_path / "resharded", max_shard_size="20KB")
    converter.convert(tmp_path / "later", tmp_path / "widened", dtype="float32")
    converter.convert(source, tmp_path / "at once", **stated(dtype="float16", **said))
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


@pytest.mark.parametrize(("name", "words"), [("dit.pt", "this is run on it"), ("alpha-ms.pth", "added_cond_kwargs")])
def test_what_stock_diffusers_does_is_said_of_what_is_made_for_it(name: str, words: str, tmp_path: Path) -> None:
    there = converter.convert(GOLDEN / name, tmp_path / "out", hyper_parameters={"num_attention_heads": HEADS})
    back = converter.convert(there.path, tmp_path / "back.pth", to="original")
    for notes, said in ((there.notes, True), (there.record["notes"], True), (back.notes, False)):
        assert any(words in note for note in notes) == said
    assert any(words in note for note in converter.inspect(tmp_path / "back.pth")["notes"])


def test_ema_is_what_comes_back_if_it_went_out(tmp_path: Path) -> None:
    wanted = torch.load(GOLDEN / "alpha-ms.pth", weights_only=True)["state_dict_ema"]
    same(there_and_back(GOLDEN / "alpha-ms.pth", tmp_path, weights="ema"), wanted)


@pytest.mark.parametrize("prefix", ["module.", "model.diffusion_model.", "module._orig_mod."])
def test_prefixes_are_containers_and_stay_away(prefix: str, tmp_path: Path) -> None:
    state = pixart()
    same(there_and_back(save(prefixed(state, prefix), tmp_path / "a.pth"), tmp_path), state)


KINDS: dict[str, Any] = {
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
    "the table alone in half": {"dtype": lambda key: torch.float16 if key == POSITIONS else torch.float32},
    "blocks in half": {"dtype": lambda key: torch.bfloat16 if key.startswith("blocks") else torch.float32},
    "scale 2": {"scale": 2.0},
    "patch 4": {"patch_size": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_scales_and_patches(kind: str, tmp_path: Path) -> None:
    state = pixart(**KINDS[kind])
    same(there_and_back(save(state, tmp_path / "a.pth"), tmp_path), state)


def test_an_original_without_a_table_comes_back_without(tmp_path: Path) -> None:
    state = pixart()
    del state[POSITIONS]
    source = save(state, tmp_path / "a.pth")
    same(there_and_back(source, tmp_path, image_size=128, interpolation_scale=1.0), state)


def test_a_table_of_another_kind_is_kept_and_comes_back(tmp_path: Path) -> None:
    state = pixart()
    state[POSITIONS] = torch.randn_like(state[POSITIONS])
    source = save(state, tmp_path / "a.pth")
    same(there_and_back(source, tmp_path, multi_scale_train=True, interpolation_scale=1.0), state)


def test_views_are_laid_out_anew(tmp_path: Path) -> None:
    state = {key: tensor.mT.contiguous().mT if tensor.dim() == 2 else tensor for key, tensor in pixart().items()}
    same(there_and_back(save(state, tmp_path / "a.pth"), tmp_path), state)


@given(
    depth=st.integers(1, 3),
    hidden=st.sampled_from([24, 48, 60]),
    tokens=st.integers(1, 9),
    channels=st.integers(1, 3),
    micro=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
@settings(max_examples=15)
def test_any_size(
    tmp_path_factory: pytest.TempPathFactory,
    depth: int,
    hidden: int,
    tokens: int,
    channels: int,
    micro: bool,
    seed: int,
) -> None:
    tmp = tmp_path_factory.mktemp("any")
    sizes = {"depth": depth, "hidden_size": hidden, "tokens": tokens, "in_channels": channels}
    state = pixart(seed=seed, micro_conditions=micro, **sizes)
    same(there_and_back(save(state, tmp / "a.pth"), tmp), state)


# What lies beside a model, or does not.


def bare(tmp: Path, state: State) -> Path:
    """A diffusers folder as another tool leaves it: no record, no sidecar."""
    config = {"sample_size": 16, "num_attention_heads": HEADS, "interpolation_scale": 1.0, "patch_size": 2}
    return folder(diffusers_keyed(state), tmp / "theirs", config)


def test_without_a_sidecar_the_null_caption_is_left_out_and_said_so(tmp_path: Path) -> None:
    state = pixart()
    done = converter.convert(bare(tmp_path, state), tmp_path / "back.pth", to="original")
    said = next(note for note in done.notes if note.startswith(f"left out: {CAPTION}"))
    assert "--null_caption FILE gives it" in said
    assert "guidance" in said
    same(read(tmp_path / "back.pth"), {key: state[key] for key in state if key != CAPTION}, ordered=False)


@pytest.mark.parametrize("kind", ["original", "sidecar", "alone"])
def test_the_null_caption_may_be_given(kind: str, tmp_path: Path) -> None:
    state = pixart()
    converter.convert(
        save(state, tmp_path / "a.pth"), tmp_path / "out", hyper_parameters={"num_attention_heads": HEADS}
    )
    files = {
        "original": tmp_path / "a.pth",
        "sidecar": tmp_path / "out" / SIDECAR,
        "alone": save({"anything": state[CAPTION]}, tmp_path / "caption.pt"),
    }
    source = bare(tmp_path, state)
    converter.convert(source, tmp_path / "back.pth", to="original", null_caption=files[kind])
    same(read(tmp_path / "back.pth"), state, ordered=False)
    done = converter.convert(source, tmp_path / "again", null_caption=files[kind])
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


def test_a_stray_key_of_old_conversions_is_the_null_caption(tmp_path: Path) -> None:
    state = pixart()
    config = {"sample_size": 16, "num_attention_heads": HEADS, "interpolation_scale": 1.0}
    keyed = diffusers_keyed(state) | {"caption_projection.y_embedding": state[CAPTION]}
    converter.convert(folder(keyed, tmp_path / "old", config), tmp_path / "back.pth", to="original")
    same(read(tmp_path / "back.pth"), state, ordered=False)


# What somebody changed in between.


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    converter.convert(
        save(pixart(), tmp_path / "a.pth"), tmp_path / "out", hyper_parameters={"num_attention_heads": HEADS}
    )
    return tmp_path / "out"


def refused(converted: Path, words: str) -> None:
    target = converted.parent / "back.pth"
    with pytest.raises(converter.InputError, match=words):
        converter.convert(converted, target, to="original")
    assert [path.name for path in converted.parent.iterdir() if path.name.startswith((".", "back"))] == []


def test_another_scale_in_the_config(converted: Path) -> None:
    config = json.loads((converted / "transformer/config.json").read_text())
    (converted / "transformer/config.json").write_text(json.dumps(config | {"interpolation_scale": 2}))
    refused(converted, "pos_embed: is not what conversion.json says that the original held")


@pytest.mark.parametrize("change", ["another scale", "no config"])
def test_another_config_on_the_way_to_shards(change: str, converted: Path) -> None:
    """From diffusers to diffusers too: what the original held is known, and the result would be another model."""
    path = converted / "transformer/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"interpolation_scale": 2}))
    said: dict[str, Any] = {}
    if change == "no config":
        path.unlink()
        said = {"num_attention_heads": HEADS, "image_size": 8 * config["sample_size"], "interpolation_scale": 2.0}
    with pytest.raises(converter.InputError, match=r"pos_embed: is not what conversion\.json says"):
        converter.convert(converted, converted.parent / "shards", **stated(max_shard_size="20KB", **said))
    assert sorted(os.listdir(converted.parent)) == ["a.pth", "out"]
    if said:
        done = converter.convert(
            converted, converted.parent / "shards", **stated(**said | {"interpolation_scale": 1.0})
        )
        assert "the folder holds no config.json: what it would say is given or assumed" in done.notes


def test_another_sidecar(converted: Path) -> None:
    tensors = load_file(converted / SIDECAR)
    tensors[CAPTION][0, 0] += 1
    save_file(tensors, converted / SIDECAR)
    refused(converted, "y_embedding: is not what conversion.json says that the original held")


def test_a_foreign_tensor_in_the_sidecar(converted: Path) -> None:
    save_file(load_file(converted / SIDECAR) | {"lora": torch.zeros(2)}, converted / SIDECAR)
    refused(converted, "lora: nothing that a PixArt keeps")


def test_another_sidecar_on_the_way_to_another_dtype(converted: Path) -> None:
    """From diffusers to diffusers too: it would travel on, and be believed there."""
    tensors = load_file(converted / SIDECAR)
    tensors[CAPTION][0, 0] += 1
    save_file(tensors, converted / SIDECAR)
    with pytest.raises(converter.InputError, match=r"y_embedding: is not what conversion\.json says"):
        converter.convert(converted, converted.parent / "half", dtype="float16")
    assert sorted(os.listdir(converted.parent)) == ["a.pth", "out"]


def test_a_null_caption_that_takes_the_place_of_the_sidecars_is_said(converted: Path) -> None:
    other = save_file({CAPTION: load_file(converted / SIDECAR)[CAPTION] + 1}, converted.parent / "null.safetensors")
    assert other is None
    caption = converted.parent / "null.safetensors"
    done = converter.convert(converted, converted.parent / "back.pth", to="original", null_caption=caption)
    assert f"{CAPTION}: the one that was given takes the place of that in {SIDECAR}" in done.notes
    wanted = pixart()
    wanted[CAPTION] += 1
    same(read(done.path), wanted)


@pytest.mark.parametrize(
    "row",
    [
        {"dtype": "int64"}, {"dtype": "\x1b[2J"}, {"dtype": ["float32"]}, {"shape": 3}, {"shape": [1, "16", 24]},
        {"sha256": "ff"}, {"sha256": {"pos_embed": 1}}, {"source": 1},
    ],
)  # fmt: skip
def test_a_record_with_a_hostile_row_is_not_believed(row: dict[str, object], converted: Path) -> None:
    record = json.loads((converted / RECORD).read_text())
    (place,) = (i for i, old in enumerate(record["plan"]) if old["source"] == "pos_embed")
    record["plan"][place] |= row
    (converted / RECORD).write_text(json.dumps(record))
    done = converter.convert(converted, converted.parent / "back.pth", to="original")
    assert any("is not believed" in note for note in done.notes)
    same(read(done.path), pixart(), ordered=False)


def test_a_record_of_another_tool_is_said_not_to_be_believed(converted: Path) -> None:
    """One flipped bit of the tool's name is enough: what the record promises is then not held against the folder."""
    path = converted / RECORD
    path.write_text(path.read_text().replace("convert-pixart", "coovert-pixart"))
    done = converter.convert(converted, converted.parent / "back.pth", to="original")
    assert any(f"{RECORD} cannot be read as a record" in note and "is not believed" in note for note in done.notes)


@pytest.mark.parametrize("cast", ["\x1b[2J", ["float16"], 16])
def test_a_record_with_a_hostile_cast_is_not_believed(cast: object, converted: Path) -> None:
    record = json.loads((converted / RECORD).read_text())
    (converted / RECORD).write_text(json.dumps(record | {"cast": cast}))
    done = converter.convert(converted, converted.parent / "back.pth", to="original")
    assert any("is not believed" in note for note in done.notes)
    assert not any("rounded" in note for note in done.notes)


ROW = {"source": POSITIONS, "dtype": "float32", "shape": [1, 256, 24]}
ORIGIN: dict[str, Any] = {"source": {"weights": "raw", "size": 1}, "hyper_parameters": {}, "plan": [ROW]}
HOSTILE: dict[str, dict[str, Any]] = {
    "no object": {"origin": "plan"},
    "no plan": {"origin": {"source": ORIGIN["source"], "hyper_parameters": {}}},
    "no source": {"origin": {"hyper_parameters": {}, "plan": [ROW]}},
    "no hyper-parameters": {"origin": {"source": ORIGIN["source"], "plan": [ROW]}},
    "a plan that is no list": {"origin": ORIGIN | {"plan": {}}},
    "a plan that is text": {"origin": ORIGIN | {"plan": ""}},
    "a row of another kind": {"origin": ORIGIN | {"plan": [ROW | {"source": 1}]}},
    "a row twice": {"origin": ORIGIN | {"plan": [ROW, ROW]}},
    "a size in words": {"origin": ORIGIN | {"source": {"weights": "raw", "size": "1"}}},
    "a hyper-parameter that is a list": {
        "origin": ORIGIN | {"hyper_parameters": {"a": {"value": [], "source": "given"}}}
    },
    "a hyper-parameter from nowhere": {"origin": ORIGIN | {"hyper_parameters": {"a": {"value": 1}}}},
    "casts that are text": {"earlier_casts": "float16"},
    "casts that are none": {"earlier_casts": {"float16": 1}},
    "a cast to a number": {"earlier_casts": [16]},
    "a cast to integers": {"earlier_casts": ["int8"]},
    "infinity": {"more": 12345},
    "half a character": {"more": "\ud800"},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_record_of_a_hostile_past_is_not_believed(kind: str, converted: Path) -> None:
    """And nothing of it is passed on."""
    again = converter.convert(converted, converted.parent / "again").path
    record = json.loads((again / RECORD).read_text())
    assert record["origin"]["plan"]
    (again / RECORD).write_text(json.dumps(record | HOSTILE[kind]).replace("12345", "1e999"))
    done = converter.convert(again, converted.parent / "back.pth", to="original")
    assert any("is not believed" in note for note in done.notes)
    same(read(done.path), pixart(), ordered=False)
    last = converter.convert(again, converted.parent / "last")
    assert any("is not believed" in note for note in last.notes)
    assert not {"origin", "earlier_casts"} & last.record.keys()


def test_a_record_that_is_none(converted: Path) -> None:
    (converted / RECORD).write_text("[]")
    done = converter.convert(converted, converted.parent / "back.pth", to="original")
    assert any("is not believed" in note for note in done.notes)
    same(read(done.path), pixart(), ordered=False)


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


# Other targets.


def test_comfyui(tmp_path: Path) -> None:
    state = pixart()
    source = save(state, tmp_path / "a.pth")
    converter.convert(source, tmp_path / "out", hyper_parameters={"num_attention_heads": HEADS})
    for i, path in enumerate((source, tmp_path / "out")):
        done = converter.convert(path, tmp_path / f"{i}.safetensors", to="comfyui")
        same(load_file(done.path), prefixed(state, "model.diffusion_model."), ordered=False)
        with safe_open(done.path, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    again = converter.convert(tmp_path / "0.safetensors", tmp_path / "1.pth", to="original")
    same(read(again.path), state, ordered=False)


def test_the_same_layout_in_another_container(tmp_path: Path) -> None:
    state = pixart()
    converter.convert(save(state, tmp_path / "a.pth"), tmp_path / "b.safetensors", to="original")
    save_file(state, tmp_path / "c.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    converter.convert(tmp_path / "b.safetensors", tmp_path / "d.pth", to="original")
    same(read(tmp_path / "d.pth"), state, ordered=False)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_casts_are_torchs(name: str, tmp_path: Path) -> None:
    state, dtype = pixart(), getattr(torch, name)
    source = save(state, tmp_path / "a.pth")
    done = converter.convert(source, tmp_path / "out", dtype=name, hyper_parameters={"num_attention_heads": HEADS})
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
    said = {"dtype": "float16", "num_attention_heads": HEADS}
    with pytest.raises(converter.InputError) as raised:
        converter.convert(source, tmp_path / "out", **stated(**said))
    assert "4 elements are beyond float16" in str(raised.value)
    assert "blocks.0.mlp.fc1.bias" in str(raised.value)
    assert "final_layer.linear.weight" in str(raised.value)
    assert not (tmp_path / "out").exists()
    done = converter.convert(source, tmp_path / "out", **stated(allow_overflow=True, **said))
    made = load_file(done.path / "transformer/diffusion_pytorch_model.safetensors")
    assert int(torch.isinf(made["proj_out.weight"]).sum()) == 3
    assert any("4 elements are beyond float16" in note for note in done.notes)
    converter.convert(
        source, tmp_path / "b", dtype="bfloat16", hyper_parameters={"num_attention_heads": HEADS}
    )  # its range is float32's


def test_a_cast_does_not_make_nan_an_overflow(tmp_path: Path) -> None:
    state = pixart()
    state["final_layer.linear.weight"][0, 0] = float("nan")
    source = save(state, tmp_path / "a.pth")
    said = {"dtype": "float16", "num_attention_heads": HEADS}
    with pytest.raises(converter.InputError, match=r"1 element is NaN or infinite, in proj_out\.weight"):
        converter.convert(source, tmp_path / "out", **stated(allow_overflow=True, **said))
    converter.convert(source, tmp_path / "out", **stated(allow_nonfinite=True, **said))


CONFIG = {"sample_size": 16, "num_attention_heads": HEADS, "interpolation_scale": 1.0}
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
}


@pytest.mark.parametrize("kind", SOURCES)
def test_any_source_to_any_layout(kind: str, tmp_path: Path) -> None:
    state = pixart()
    source = SOURCES[kind](state, tmp_path)
    said = {"image_size": 128, "interpolation_scale": 1.0} if kind == "FSDP" else {}
    theirs = kind in ("training file", "safetensors", "prefixed")  # what diffusers' layout has no place for
    wanted = {key: tensor for key, tensor in state.items() if theirs or key != CAPTION}
    for name in ("a.pth", "a.safetensors"):
        made = converter.convert(source, tmp_path / name, **stated(to="original", **said))
        same(read(made.path), wanted, ordered=False)
    made = converter.convert(source, tmp_path / "c.safetensors", **stated(to="comfyui", **said))
    same(read(made.path), prefixed(wanted, "model.diffusion_model."), ordered=False)
    made = converter.convert(source, tmp_path / "out", **stated(num_attention_heads=HEADS, **said))
    same(read(made.path / "transformer/diffusion_pytorch_model.safetensors"), diffusers_keyed(state), ordered=False)
