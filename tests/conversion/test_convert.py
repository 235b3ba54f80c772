"""Containers, prefixes, dtypes, sizes, sidecar, record: the same tensors become the same bytes, and none is lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import (
    CONTAINERS,
    HEADS,
    PREFIXES,
    ROOT,
    State,
    convert,
    diffusers_keyed,
    digest,
    expected_weights,
    folder,
    inventories,
    pixart,
    prefixed,
    raw_bytes,
    save,
    sincos,
    tree,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import converter
from converter.conversion.analysis import analyse

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CONFIG = "transformer/config.json"
SIDECAR = "original_extras.safetensors"
RECORD = "conversion.json"


def transformer(out: Path) -> dict[str, bytes]:
    return tree(out / "transformer")


@pytest.fixture(scope="module")
def state() -> State:
    return pixart()


@pytest.fixture(scope="module")
def reference(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the bare checkpoint of `state` becomes."""
    place = tmp_path_factory.mktemp("reference")
    done = convert(save(state, place / "bare.pth"), place / "out")
    assert (done.path / WEIGHTS).read_bytes() == expected_weights(state, place / "by-safetensors")
    return done.path


@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda prefix: prefix or "none")
@pytest.mark.parametrize("container", [*CONTAINERS, "safetensors"])
def test_every_container_and_prefix(container: str, prefix: str, state: State, reference: Path, tmp_path: Path) -> None:
    held = prefixed(state, prefix)
    if container == "safetensors":
        save_file(held, tmp_path / "made")
    else:
        save(CONTAINERS[container](held), tmp_path / "made")
    done = convert(tmp_path / "made", tmp_path / "out")
    assert transformer(done.path) == transformer(reference)
    assert (done.path / SIDECAR).read_bytes() == (reference / SIDECAR).read_bytes()
    assert done.record["source"]["prefix"] == prefix
    assert done.record["source"]["weights"] == ("ema" if container == "ema" else "raw")
    assert done.record["layout"] == "original"


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("wrapper", ["bare", "state_dict"])
def test_diffusers_keyed_bin_with_a_stray_embedding(
    wrapper: str, prefix: str, state: State, reference: Path, tmp_path: Path
) -> None:
    keyed = diffusers_keyed(state) | {"caption_projection.y_embedding": state["y_embedder.y_embedding"]}
    path = save(CONTAINERS[wrapper](prefixed(keyed, prefix)), tmp_path / "pytorch_model.bin")
    done = convert(path, tmp_path / "out", image_size=128, interpolation_scale=1.0)
    assert transformer(done.path) == transformer(reference)
    # The stray goes where an original file's embedding goes, under the original's name.
    assert (done.path / SIDECAR).read_bytes() == (reference / SIDECAR).read_bytes()
    assert done.record["layout"] == "diffusers"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 2, 7])
@pytest.mark.parametrize("whole_pipeline", [False, True], ids=["model", "pipeline"])
def test_diffusers_folders(
    whole_pipeline: bool, shards: int, suffix: str, state: State, reference: Path, tmp_path: Path
) -> None:
    config = json.loads((reference / CONFIG).read_text())
    place = tmp_path / "source" / ("transformer" if whole_pipeline else "")
    folder(diffusers_keyed(state), place, config, shards=shards, suffix=suffix)
    done = converter.convert(tmp_path / "source", tmp_path / "out")  # the heads are in the config
    assert transformer(done.path) == transformer(reference)
    assert not (done.path / SIDECAR).exists()  # there was no embedding to keep
    assert done.record["hyper_parameters"]["num_attention_heads"]["evidence"] == "config.json"


@pytest.mark.parametrize("part", ["", "transformer"])
def test_a_conversion_converts_to_itself_with_its_sidecar(part: str, reference: Path, tmp_path: Path) -> None:
    converter.convert(reference / part, tmp_path / "second")
    assert transformer(tmp_path / "second") == transformer(reference)
    assert (tmp_path / "second" / SIDECAR).read_bytes() == (reference / SIDECAR).read_bytes()


def test_an_old_diffusers_folder_with_a_stray(state: State, reference: Path, tmp_path: Path) -> None:
    config = {"sample_size": 16, "num_attention_heads": HEADS, "interpolation_scale": None}
    keyed = diffusers_keyed(state) | {"caption_projection.y_embedding": state["y_embedder.y_embedding"]}
    done = converter.convert(folder(keyed, tmp_path / "old", config, suffix="bin"), tmp_path / "out")
    assert transformer(done.path) == transformer(reference)
    assert (done.path / SIDECAR).read_bytes() == (reference / SIDECAR).read_bytes()
    assert done.record["hyper_parameters"]["interpolation_scale"]["source"] == "assumed"


def test_views_shared_storages_and_parameters(state: State, reference: Path, tmp_path: Path) -> None:
    """What torch may do with memory does not show in the result."""
    odd: dict[str, torch.Tensor] = dict(state)
    key = "blocks.0.attn.proj.weight"
    odd[key] = state[key].t().contiguous().t()  # column-major
    big = torch.cat([torch.zeros(5), state["x_embedder.proj.bias"], torch.zeros(9)])
    odd["x_embedder.proj.bias"] = big[5:29]  # the middle of a storage
    odd["final_layer.linear.bias"] = torch.nn.Parameter(state["final_layer.linear.bias"])
    one = torch.cat([state["blocks.1.mlp.fc1.bias"], state["blocks.1.mlp.fc2.bias"]])
    odd["blocks.1.mlp.fc1.bias"], odd["blocks.1.mlp.fc2.bias"] = one[:96], one[96:]
    done = convert(save(odd, tmp_path / "odd.pth"), tmp_path / "out")
    assert transformer(done.path) == transformer(reference)
    assert (done.path / SIDECAR).read_bytes() == (reference / SIDECAR).read_bytes()


@pytest.mark.parametrize(("one", "other", "noted"), [
    (slice(0, 96), slice(96, 192), []),
    (slice(0, 96), slice(95, 191), [1]),
    (slice(50, 146), slice(0, 96), [0]),  # whichever starts later
    (slice(0, 96), slice(0, 96), [1]),
])  # fmt: skip
def test_storages_that_overlap_in_part_are_noted_too(
    one: slice, other: slice, noted: list[int], tmp_path: Path
) -> None:
    state, whole = pixart(), torch.randn(192)
    keys = ["blocks.0.mlp.fc1.bias", "blocks.1.mlp.fc1.bias"]
    state |= {keys[0]: whole[one], keys[1]: whole[other]}
    done = convert(save(state, tmp_path / "made.pth"), tmp_path / "out")
    (note,) = [note for note in done.record["notes"] if "own copy" in note] or [""]
    assert [i for i, key in enumerate(keys) if key in note] == noted
    written = load_file(done.path / WEIGHTS)
    for i, key in enumerate(keys):
        assert torch.equal(written[f"transformer_blocks.{i}.ff.net.0.proj.bias"], state[key])


def test_storages_inside_another_are_noted_each(tmp_path: Path) -> None:
    state, whole = pixart(), torch.randn(96)
    inside = ["blocks.0.attn.proj.bias", "blocks.1.mlp.fc2.bias"]
    state |= {"blocks.0.mlp.fc1.bias": whole, inside[0]: whole[:24], inside[1]: whole[50:74]}
    done = convert(save(state, tmp_path / "made.pth"), tmp_path / "out")
    (note,) = [note for note in done.record["notes"] if "own copy" in note]
    # The first of them in the file is the one that the others share with.
    assert "blocks.0.mlp.fc1.bias" in note
    assert inside[1] in note
    assert inside[0] not in note


# Dtypes and sizes.

DTYPES: dict[str, torch.dtype | Callable[[str], torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "mixed": lambda key: torch.float32 if "embed" in key else torch.float16 if len(key) % 2 else torch.bfloat16,
    "mixed, table in bfloat16": lambda key: torch.bfloat16 if key == "pos_embed" else torch.float32,
}


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 4.0, 2.02, 2.01])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_are_kept_and_the_table_is_recognised_in_each(dtype: str, scale: float, tmp_path: Path) -> None:
    state = pixart(dtype=DTYPES[dtype], scale=scale)
    done = convert(save(state, tmp_path / "made.pth"), tmp_path / "out")
    assert (done.path / WEIGHTS).read_bytes() == expected_weights(state, tmp_path / "by-safetensors")
    assert done.record["hyper_parameters"]["interpolation_scale"]["value"] == scale
    assert json.loads((done.path / CONFIG).read_text())["interpolation_scale"] == scale
    (row,) = [row for row in done.record["plan"] if row["source"] == "pos_embed"]
    assert row["reproduced"] is True
    assert list(load_file(done.path / SIDECAR)) == ["y_embedder.y_embedding"]


SIZES: dict[str, dict[str, Any]] = {
    "depth 1": {"depth": 1},
    "depth 12, two-digit blocks": {"depth": 12},
    "width 72: the heads follow": {"hidden_size": 72},
    "patch 1": {"patch_size": 1},
    "16 channels": {"in_channels": 16},
    "no sigma, patch 4, 8 channels": {"pred_sigma": False, "patch_size": 4, "in_channels": 8},
    "micro-conditions": {"micro_conditions": True},
    "alpha's captions": {"tokens": 120},
    "sigma's captions, wide": {"tokens": 300, "caption_channels": 64},
    "another side and width": {"input_size": 20, "hidden_size": 48},
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_read_off_the_file(name: str, tmp_path: Path) -> None:
    from diffusers import PixArtTransformer2DModel

    sizes = {"depth": 2, "hidden_size": 24, "caption_channels": 16, "input_size": 16, "in_channels": 4} | SIZES[name]
    state, heads = pixart(**SIZES[name]), 1 if sizes["hidden_size"] == 72 else HEADS
    given = {} if heads == 1 else {"num_attention_heads": heads}
    done = converter.convert(save(state, tmp_path / "made.pth"), tmp_path / "out", hyper_parameters=given)
    assert (done.path / WEIGHTS).read_bytes() == expected_weights(state, tmp_path / "by-safetensors")
    config = json.loads((done.path / CONFIG).read_text())
    wanted = {
        "num_layers": sizes["depth"],
        "cross_attention_dim": sizes["hidden_size"],
        "num_attention_heads": heads,
        "attention_head_dim": sizes["hidden_size"] // heads,
        "patch_size": sizes.get("patch_size", 2),
        "in_channels": sizes["in_channels"],
        "out_channels": sizes["in_channels"] * (2 if sizes.get("pred_sigma", True) else 1),
        "caption_channels": sizes["caption_channels"],
        "sample_size": sizes["input_size"],
        "use_additional_conditions": sizes.get("micro_conditions", False),
    }
    assert {key: config[key] for key in wanted} == wanted
    version = {120: "alpha", 300: "sigma"}.get(sizes.get("tokens", 12))
    version = "alpha" if sizes.get("micro_conditions") else version
    assert done.record["hyper_parameters"]["version"]["value"] == version
    # Stock diffusers builds exactly this model out of the config.
    model, info = PixArtTransformer2DModel.from_pretrained(
        done.path, subfolder="transformer", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert torch.equal(model.pos_embed.pos_embed, state["pos_embed"])


@pytest.mark.parametrize("table", [False, True])
def test_flags_are_asked_for_by_the_names_that_they_have(table: bool, tmp_path: Path) -> None:
    """A message that asks for flags names all that are needed: with them the conversion goes through."""
    path = save(pixart(tokens=300, pos_embed=table), tmp_path / "made.pth")
    answers = {"num_attention_heads": 4, "image_size": 256, "interpolation_scale": 0.5}
    with pytest.raises(converter.UsageError) as raised:
        converter.convert(path, tmp_path / "out")
    flags = {flag: answer for flag, answer in answers.items() if f"`{flag}` is needed" in str(raised.value)}
    done = converter.convert(path, tmp_path / "out", hyper_parameters=flags)
    # sigma at 256 px is a released model: its scale is known once its size is.
    assert set(flags) == {"num_attention_heads", *([] if table else ["image_size"])}
    assert done.record["hyper_parameters"]["interpolation_scale"]["value"] == (1.0 if table else 0.5)


# What a user says against what the file shows.

BARE: dict[str, Any] = {"pos_embed": False}
CONTRADICTIONS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"image_size": 256}, "`image_size` 256 contradicts the file, which says 128"),
    ({}, {"interpolation_scale": 2.0}, "`interpolation_scale` 2.0 contradicts the file, which says 1.0"),
    ({}, {"micro_condition": True}, "`micro_condition` True contradicts the file, which says False"),
    ({"micro_conditions": True}, {"micro_condition": False}, "False contradicts the file, which says True"),
    ({"micro_conditions": True}, {"multi_scale_train": False}, "False contradicts the file, which says True"),
    ({}, {"qk_norm": True}, "`qk_norm` True contradicts the file, which says False"),
    ({"tokens": 300}, {"version": "alpha"}, "`version` alpha contradicts the file, which says sigma"),
    ({}, {"kv_compress": True}, "`kv_compress` True: say how it compresses, as in sampling=uniform,factor=2"),
    (
        {},
        {"kv_compress": "sampling=conv,factor=2,blocks=1"},
        "`kv_compress` conv: it has weights, and",
    ),
    ({}, {"kv_compress": "sampling=ave,factor=2,blocks=1-2"}, "`kv_compress`: blocks 1-2: the"),
    (
        {"kv_compress": (1,)},
        {"kv_compress": False},
        "`kv_compress` False contradicts the file, which says sampling=conv",
    ),
    ({}, {"num_attention_heads": 5}, "`num_attention_heads` 5: the hidden size 24 is not a multiple of it"),
    *((BARE, {"image_size": size, "interpolation_scale": 1.0}, f"`image_size` {size}") for size in (9, 20, 24, 250)),
]


@pytest.mark.parametrize(("sizes", "flags", "message"), CONTRADICTIONS, ids=str)
def test_a_flag_that_contradicts_the_file(
    sizes: dict[str, Any], flags: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(converter.UsageError) as raised:
        convert(save(pixart(**sizes), tmp_path / "made.pth"), tmp_path / "out", **flags)
    assert message in str(raised.value)
    assert "num_attention_heads" in flags or len(str(raised.value)) > len(message) + 10  # the evidence follows
    assert not (tmp_path / "out").exists()


def test_flags_that_agree_change_nothing_and_those_that_add_are_recorded(tmp_path: Path, reference: Path) -> None:
    path = save(pixart(), tmp_path / "made.pth")
    agreeing = {"image_size": 128, "interpolation_scale": 1.0, "micro_condition": False, "qk_norm": False}
    done = convert(path, tmp_path / "out", **agreeing, version="sigma", multi_scale_train=True)
    assert transformer(done.path) == transformer(reference)
    sources = {name: finding["source"] for name, finding in done.record["hyper_parameters"].items()}
    assert {name: sources[name] for name in agreeing} == dict.fromkeys(agreeing, "file")
    for name in ("version", "multi_scale_train", "num_attention_heads"):
        assert sources[name] == "given"


def test_the_embedding_is_kept_bit_for_bit(tmp_path: Path) -> None:
    state = pixart(dtype=torch.float16)
    bits = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 161  # any finite bits, subnormal ones too
    state["y_embedder.y_embedding"] = torch.from_numpy(bits.view(np.float16))
    done = convert(save(state, tmp_path / "made.pth"), tmp_path / "out")
    with safe_open(done.path / SIDECAR, "pt") as file:
        kept = file.get_tensor("y_embedder.y_embedding")
        assert file.metadata() is None
    assert raw_bytes(kept) == bits.tobytes()
    save_file({"y_embedder.y_embedding": kept}, tmp_path / "by-safetensors")
    assert (done.path / SIDECAR).read_bytes() == (tmp_path / "by-safetensors").read_bytes()


def test_no_embedding_no_sidecar(tmp_path: Path, reference: Path) -> None:
    state = pixart()
    del state["y_embedder.y_embedding"]
    done = convert(save(state, tmp_path / "made.pth"), tmp_path / "out")
    assert set(tree(done.path)) == {WEIGHTS, CONFIG, RECORD}
    assert transformer(done.path) == transformer(reference)


def with_table(table: torch.Tensor, **sizes: Any) -> State:
    return pixart(**sizes) | {"pos_embed": table}


def one_bit_off() -> torch.Tensor:
    table = sincos(24, 8, 1.0)
    bits = table.numpy().view(np.uint32)
    bits[0, 37, 5] ^= 1
    return torch.from_numpy(bits.view(np.float32))


@pytest.mark.parametrize("tokens", [120, 300])
def test_a_table_one_bit_off_is_kept_with_a_note(tokens: int, tmp_path: Path) -> None:
    """For the fixed-size class (alpha, 120 tokens) too: a last bit makes no other model."""
    table = one_bit_off()
    done = convert(save(with_table(table, tokens=tokens), tmp_path / "made.pth"), tmp_path / "out")
    kept = load_file(done.path / SIDECAR)
    assert set(kept) == {"pos_embed", "y_embedder.y_embedding"}
    assert raw_bytes(kept["pos_embed"]) == raw_bytes(table)
    assert any("pos_embed" in note and "up to rounding" in note for note in done.notes)
    (row,) = [row for row in done.record["plan"] if row["source"] == "pos_embed"]
    assert (row["reproduced"], row["sidecar"]) == (False, "pos_embed")


def random_table() -> torch.Tensor:
    return torch.randn(1, 64, 24, generator=torch.Generator().manual_seed(5))


def test_a_table_that_is_no_table(tmp_path: Path) -> None:
    """The fixed-size class uses the buffer: converting would make another model. The multi-scale class never does."""
    path = save(with_table(random_table(), tokens=120), tmp_path / "fixed.pth")
    for flags in ({}, {"multi_scale_train": False}):
        with pytest.raises(converter.InputError, match=r"pos_embed.*fixed-size class uses it"):
            convert(path, tmp_path / "out", interpolation_scale=1.0, **flags)
    assert not (tmp_path / "out").exists()
    for name, source, flags in (
        ("told", path, {"multi_scale_train": True}),
        ("sigma", save(with_table(random_table(), tokens=300), tmp_path / "sigma.pth"), {}),
    ):
        done = convert(source, tmp_path / name, interpolation_scale=1.0, **flags)
        assert raw_bytes(load_file(done.path / SIDECAR)["pos_embed"]) == raw_bytes(random_table())
        assert any("pos_embed" in note and "kept in" in note for note in done.notes)


def test_a_table_that_only_begins_like_one(tmp_path: Path) -> None:
    """Its first elements promise a scale; the rest is compared as well."""
    table = sincos(24, 8, 1.0)
    table[0, 40:] = random_table()[0, 40:]
    path = save(with_table(table, tokens=120), tmp_path / "fixed.pth")
    with pytest.raises(converter.UsageError, match=r"`interpolation_scale` is needed: .* no sin-cos table"):
        convert(path, tmp_path / "out")
    with pytest.raises(converter.InputError, match="fixed-size class uses it"):
        convert(path, tmp_path / "out", interpolation_scale=1.0)


def test_a_table_that_is_not_square_or_absent_needs_a_size(tmp_path: Path) -> None:
    for name, state in (
        ("oblong", with_table(torch.zeros(1, 50, 24), tokens=300)),
        ("absent", pixart(pos_embed=False, tokens=300)),
    ):
        path = save(state, tmp_path / f"{name}.pth")
        with pytest.raises(converter.UsageError, match="`image_size` is needed"):
            convert(path, tmp_path / name)
        done = convert(path, tmp_path / name, image_size=256)
        assert json.loads((done.path / CONFIG).read_text())["sample_size"] == 32
        assert ("pos_embed" in load_file(done.path / SIDECAR)) == (name == "oblong")


def test_the_table_that_one_trainer_writes_into_every_file(tmp_path: Path) -> None:
    """A 128-side table of scale 1 contradicts every released 1024 px model: not believed, not used, but kept."""
    path = save(pixart(input_size=128, tokens=300), tmp_path / "made.pth")
    with pytest.raises(converter.UsageError, match="OneTrainer"):
        convert(path, tmp_path / "out")
    done = convert(path, tmp_path / "out", image_size=1024)
    assert json.loads((done.path / CONFIG).read_text())["interpolation_scale"] == 2
    assert "pos_embed" in load_file(done.path / SIDECAR)
    assert any("OneTrainer" in note for note in done.notes)


@pytest.fixture
def kept_table(tmp_path: Path) -> tuple[Path, State]:
    """A training file of mixed dtypes whose table has to be kept, so that every kind of row occurs."""
    state = with_table(one_bit_off(), tokens=300, dtype=DTYPES["mixed"])
    return save(CONTAINERS["training-alpha"](state), tmp_path / "made.pth"), state


def test_every_digest_can_be_verified(kept_table: tuple[Path, State], tmp_path: Path) -> None:
    path, state = kept_table
    done = convert(path, tmp_path / "out")
    record = json.loads((done.path / RECORD).read_text())
    assert record == done.record
    assert [row["source"] for row in record["plan"]] == list(state)
    files = {**load_file(done.path / WEIGHTS), **load_file(done.path / SIDECAR)}
    accounted = set()
    for row in record["plan"]:
        tensor = state[row["source"]]
        assert row["dtype"] == str(tensor.dtype).removeprefix("torch.")
        assert row["shape"] == list(tensor.shape)
        targets = row.get("targets", [row["sidecar"]] if "sidecar" in row else [])
        names = list(inventories.diffusers_names(row["source"])) or targets
        assert targets == names
        parts = tensor.chunk(len(targets)) if targets else (tensor,)
        digests = row["digests"]
        assert list(digests) == (targets or [row["source"]])
        for key, part in zip(digests, parts, strict=True):
            assert digests[key] == digest(raw_bytes(part))
            if key in targets:
                assert digests[key] == digest(raw_bytes(files[key]))
                accounted.add(key)
        # Out of the two files and the record alone the source can be put together again.
        whole = torch.cat([files[key] for key in targets]) if len(targets) > 1 else files[targets[0]]
        assert raw_bytes(whole) == raw_bytes(tensor)
    assert accounted == set(files)  # nothing in the output that no row explains
    operations = {row["operation"] for row in record["plan"]}
    assert operations == {"rename", "split", "sidecar", "recompute"}
    for name, entry in record["written"].items():
        data = (done.path / name).read_bytes()
        assert entry["size"] == len(data)
        if "sha256" in entry:
            assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        else:
            header = data[: 8 + int.from_bytes(data[:8], "little")]
            assert entry["header_sha256"] == hashlib.sha256(header).hexdigest()
    assert set(record["written"]) == set(tree(done.path)) - {RECORD}


def test_findings_carry_their_evidence(reference: Path) -> None:
    record = json.loads((reference / RECORD).read_text())
    found = record["hyper_parameters"]
    for name, finding in found.items():
        assert finding["source"] in ("file", "given", "assumed", "unknown"), name
        assert finding["evidence"], name
        assert (finding["value"] is None) == (finding["source"] == "unknown"), name
    assert found["hidden_size"]["evidence"] == "x_embedder.proj.weight [24, 4, 2, 2]"
    assert "8 x 8 positions" in found["sample_size"]["evidence"]
    assert found["num_attention_heads"] == {"value": HEADS, "source": "given", "evidence": "--num_attention_heads"}
    assert record["tool"] == {"name": "convert-pixart", "version": converter.__version__}
    assert (record["source"]["name"], record["sources"]) == ("bare.pth", {})  # nothing lies beside a file


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("below", ["", "transformer/"])
def test_the_record_has_digests_of_what_was_believed_beside_the_weights(
    below: str, shards: int, tmp_path: Path
) -> None:
    config = {"sample_size": 16, "num_attention_heads": HEADS}
    source = tmp_path / "source"
    folder(diffusers_keyed(pixart()), source / below, config, shards=shards)
    done = converter.convert(source, tmp_path / "out")
    names = [f"{below}config.json"]
    names += [f"{below}diffusion_pytorch_model.safetensors.index.json"] if shards > 1 else []
    contents = {name: (source / name).read_bytes() for name in names}
    assert json.loads((done.path / RECORD).read_text())["sources"] == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
    }
    assert converter.convert(source, tmp_path / "dry", dry_run=True).record["sources"] == done.record["sources"]


def test_of_a_config_that_changes_under_our_eyes_what_was_read_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest must be that of what was believed."""
    config = {"sample_size": 16, "num_attention_heads": HEADS}
    source = folder(diffusers_keyed(pixart()), tmp_path / "source", config)
    before = (source / "config.json").read_bytes()

    def meanwhile(*arguments: Any, **named: Any) -> Any:
        looked = analyse(*arguments, **named)
        (source / "config.json").write_text(json.dumps(config | {"sample_size": 32}))
        return looked

    monkeypatch.setattr("converter.conversion.plan.analyse_with_record", meanwhile)
    done = converter.convert(source, tmp_path / "out")
    assert done.record["sources"]["config.json"]["sha256"] == hashlib.sha256(before).hexdigest()
    assert json.loads((done.path / "transformer" / "config.json").read_text())["sample_size"] == 16


def test_the_digest_of_a_kept_table_is_that_of_what_was_written(tmp_path: Path) -> None:
    """Also where it has changed, unseen for lack of a checksum, since it was compared."""
    state = with_table(one_bit_off(), tokens=300)
    path = tmp_path / "made.safetensors"
    save_file(state, path)
    with converter.open_checkpoint(path) as opened:
        start, size = opened["pos_embed"].storage.start, opened["pos_embed"].nbytes

    def progress(total: int) -> Callable[[int], None]:
        with open(path, "r+b") as file:
            file.seek(start + size - 4)
            file.write(np.float32(0.5).tobytes())
        return lambda count: None

    done = convert(path, tmp_path / "out", progress=progress)
    (row,) = [row for row in done.record["plan"] if row["source"] == "pos_embed"]
    kept = raw_bytes(load_file(done.path / SIDECAR)["pos_embed"])
    assert kept[-4:] == np.float32(0.5).tobytes()
    assert row["digests"] == {"pos_embed": digest(kept)}


def test_the_same_input_gives_the_same_bytes(kept_table: tuple[Path, State], tmp_path: Path) -> None:
    """In another folder, at another time, over an old result, and beside what a killed run left."""
    path, _ = kept_table
    elsewhere = tmp_path / "else" / "where"
    elsewhere.mkdir(parents=True)
    copy = elsewhere / path.name
    copy.write_bytes(path.read_bytes())
    (elsewhere / ".out.0123456789abcdef.partial").mkdir()
    first = tree(convert(path, tmp_path / "out").path)
    assert tree(convert(copy, elsewhere / "out").path) == first
    assert tree(convert(copy, elsewhere / "out", overwrite=True).path) == first
    for data in first.values():
        for word in (str(tmp_path), str(Path.cwd()), str(ROOT), "partial"):
            assert word.encode() not in data


def test_an_old_result_that_resists_is_named_now_and_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(pixart(), tmp_path / "made.pth")
    convert(path, tmp_path / "out")
    unlink = os.unlink

    def protected(name: Any, *args: Any, **kwargs: Any) -> None:
        if str(name).endswith(".safetensors"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        unlink(name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", protected)
        done = convert(path, tmp_path / "out", overwrite=True)
    (left,) = tmp_path.glob(".out.*.replaced")
    notes = [note for note in done.notes if str(left) in note]
    assert len(notes) == 1
    assert "the old result, and could not be deleted" in notes[0]
    assert not any(left.name in note for note in done.record["notes"])
    again = convert(path, tmp_path / "out", overwrite=True)
    wanted = f"{left} is left over from a replaced earlier result: delete it"
    assert [note for note in again.notes if str(left) in note] == [wanted]
    assert left.is_dir()


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """A file's name may be any bytes; the record is UTF-8 all the same."""
    path = Path(str(tmp_path), "\udcff\x1b[31m.pth")
    save(pixart(), tmp_path / "made.pth").rename(path)
    done = convert(path, tmp_path / "out")
    text = (done.path / RECORD).read_bytes().decode()
    assert json.loads(text)["source"]["name"] == r"\udcff\x1b[31m.pth"


def poisoned(dtype: torch.dtype) -> State:
    state = pixart(dtype=dtype)
    state["blocks.0.attn.qkv.weight"][30, 3] = float("nan")  # in the keys' part
    state["blocks.0.attn.qkv.weight"][50, 0] = float("-inf")  # in the values'
    state["final_layer.linear.bias"][:2] = float("inf")
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_nan_and_infinity(dtype: torch.dtype, tmp_path: Path) -> None:
    state = poisoned(dtype)
    path = save(state, tmp_path / "made.pth")
    with pytest.raises(converter.InputError) as raised:
        convert(path, tmp_path / "out")
    message = str(raised.value)
    assert "4 elements are NaN or infinite" in message
    assert str(path) in message
    assert "in blocks.0.attn.qkv.weight, final_layer.linear.bias;" in message  # as the file calls them
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.pth"]
    done = convert(path, tmp_path / "out", allow_nonfinite=True)
    assert (done.path / WEIGHTS).read_bytes() == expected_weights(state, tmp_path / "by-safetensors")
    assert any("4 elements are NaN or infinite" in note for note in done.record["notes"])


def test_the_bits_of_a_nan_are_kept(tmp_path: Path) -> None:
    state = pixart()
    bits = np.array([0x7FC00001, 0xFFFFFFFF, 0x7F800001, 0x7F800000] + [0] * 28, np.uint32)
    state["final_layer.linear.bias"] = torch.from_numpy(bits.view(np.float32))
    done = convert(save(state, tmp_path / "made.pth"), tmp_path / "out", allow_nonfinite=True)
    assert raw_bytes(load_file(done.path / WEIGHTS)["proj_out.bias"]) == bits.tobytes()


@pytest.mark.parametrize("key", ["y_embedder.y_embedding", "pos_embed"])
def test_nan_in_the_sidecar_is_found_too(key: str, tmp_path: Path) -> None:
    state = pixart(tokens=300)
    state[key].view(-1)[-1] = float("nan")
    path = save(state, tmp_path / "made.pth")
    with pytest.raises(converter.InputError, match=f"1 element is NaN or infinite, in {key}"):
        convert(path, tmp_path / "out")
    done = convert(path, tmp_path / "out", allow_nonfinite=True)
    assert raw_bytes(load_file(done.path / SIDECAR)[key]) == raw_bytes(state[key])


def test_overwriting_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    out = convert(save(pixart(), tmp_path / "one.pth"), tmp_path / "out").path
    with pytest.raises(converter.UsageError, match="use `overwrite`"):
        convert(tmp_path / "one.pth", out)
    state = pixart(seed=1)
    del state["y_embedder.y_embedding"]
    convert(save(state, tmp_path / "two.pth"), out, overwrite=True)
    assert set(tree(out)) == {WEIGHTS, CONFIG, RECORD}
    assert (out / WEIGHTS).read_bytes() == expected_weights(state, tmp_path / "by-safetensors")


LOOKALIKES: dict[str, Callable[[Path], Any]] = {
    "no record": lambda out: (out / RECORD).unlink(),
    "a record cut short": lambda out: (out / RECORD).write_text((out / RECORD).read_text()[:-5]),
    "another tool's": lambda out: edit(out, lambda record: record.update(tool={"name": "other"})),
    "a tool that is no object": lambda out: edit(out, lambda record: record.update(tool="convert-pixart")),
    "a list of what was written": lambda out: edit(out, lambda record: record.update(written=list(record["written"]))),
    "of a dry run": lambda out: edit(out, lambda record: record.pop("written")),
    "a list": lambda out: (out / RECORD).write_text("[]"),
    "duplicate keys": lambda out: (out / RECORD).write_text(
        (out / RECORD).read_text().replace('"written": {', '"written": {}, "written": {')
    ),
    "a link": lambda out: (out / RECORD).rename(out.parent / "kept.json") and (out / RECORD).symlink_to("../kept.json"),
    "a FIFO": lambda out: (out / RECORD).unlink() or os.mkfifo(out / RECORD),
    "a file more": lambda out: (out / "transformer" / "diffusion_pytorch_model.bin").write_text("mine"),
    "a folder more": lambda out: save_file({"w": torch.ones(2)}, made(out / "vae") / Path(WEIGHTS).name),
    "a file that the record leaves out": lambda out: edit(out, lambda record: record["written"].pop(SIDECAR)),
}


def edit(out: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads((out / RECORD).read_text())
    change(record)
    (out / RECORD).write_text(json.dumps(record))


def made(place: Path) -> Path:
    place.mkdir()
    return place


@pytest.mark.parametrize("name", LOOKALIKES)
def test_overwrite_deletes_only_what_our_record_lists(name: str, tmp_path: Path) -> None:
    path = save(pixart(), tmp_path / "made.pth")
    out = convert(path, tmp_path / "out").path
    LOOKALIKES[name](out)
    before = sorted(out.rglob("*"))
    for overwrite in (False, True):
        with pytest.raises(converter.UsageError, match="has no record of") as raised:
            convert(path, out, overwrite=overwrite)
        assert "`overwrite`" not in str(raised.value)
    assert sorted(out.rglob("*")) == before


def test_a_result_that_was_changed_may_be_overwritten(tmp_path: Path) -> None:
    path = save(pixart(), tmp_path / "made.pth")
    wanted = tree(convert(path, tmp_path / "out").path)
    (tmp_path / "out" / CONFIG).write_text("{}")
    (tmp_path / "out" / SIDECAR).unlink()
    assert tree(convert(path, tmp_path / "out", overwrite=True).path) == wanted


@pytest.mark.parametrize("exchange", [True, False])
def test_a_file_that_comes_while_we_write_is_kept(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr("converter.system.exchange", lambda one, other: False)
    path = save(pixart(), tmp_path / "made.pth")
    before = tree(convert(path, tmp_path / "out").path)

    def progress(total: int) -> Callable[[int], None]:
        (tmp_path / "out" / "transformer" / "mine.txt").write_text("precious")
        return lambda count: None

    with pytest.raises(converter.UsageError, match=r"has no record of, transformer/mine\.txt"):
        convert(path, tmp_path / "out", overwrite=True, progress=progress)
    assert tree(tmp_path / "out") == before | {"transformer/mine.txt": b"precious"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.pth", "out"]


# State dicts that fit no table, and configs from foreign_layouts.


def drop(word: str) -> Callable[[], State]:
    return lambda: {key: tensor for key, tensor in pixart().items() if word not in key}


MISFITS: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown key": (lambda: pixart() | {"blocks.0.attn.qkv2.weight": torch.ones(2)}, "unknown key blocks.0.attn.qkv2"),
    "missing key": (drop("final_layer.linear"), "missing final_layer.linear"),
    "missing block": (drop("blocks.0."), "missing blocks.{0}.attn.qkv"),
    "missing bias": (drop("blocks.1.attn.qkv.bias"), "missing blocks.1.attn.qkv.bias"),
    "half of the micro-conditions": (
        lambda: {k: t for k, t in pixart(micro_conditions=True).items() if not k.startswith("ar_")},
        "missing ar_embedder",
    ),
    "rows that do not split": (
        lambda: pixart() | {"blocks.1.attn.qkv.weight": torch.ones(71, 24)},
        "blocks.1.attn.qkv.weight has shape [71, 24]",
    ),
    "an empty weight": (
        lambda: pixart() | {"x_embedder.proj.weight": torch.ones(24, 4, 0, 0)},
        "x_embedder.proj.weight has shape [24, 4, 0, 0]",
    ),
    "no captions": (
        lambda: pixart() | {"y_embedder.y_embedding": torch.ones(0, 16)},
        "y_embedder.y_embedding has shape [0, 16]",
    ),
    "rows that are no patches": (
        lambda: {k: torch.ones(30, *t.shape[1:]) if "final_layer.linear" in k else t for k, t in pixart().items()},
        "final_layer.linear",
    ),
    "a flat table": (lambda: pixart() | {"pos_embed": torch.ones(64, 24)}, "pos_embed has shape [64, 24]"),
    "a hole of many blocks": (
        lambda: pixart() | {"blocks.123456789.attn.qkv.weight": torch.ones(72, 24)},
        "missing blocks.{2..123456788}.",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_said_and_refused(name: str, tmp_path: Path) -> None:
    make, words = MISFITS[name]
    path = save(make(), tmp_path / "made.pth")
    with pytest.raises(converter.InputError) as raised:
        convert(path, tmp_path / "out")
    assert words in str(raised.value)
    assert str(path) in str(raised.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.pth"]
    # A sound file that cannot be converted is described.
    assert any(words in problem for problem in converter.inspect(path)["problems"])


BAD_CONFIGS: list[tuple[str, Any]] = [
    *(("sample_size", value) for value in ("16", [16], 0, -16, True, 16.5, 1, 10**400)),
    *(("num_attention_heads", value) for value in ("4", 5, 0)),
    *(("interpolation_scale", value) for value in (0, -1.0, "1", float("inf"))),
]


@pytest.mark.parametrize(("name", "value"), BAD_CONFIGS, ids=lambda value: str(value)[:20])
def test_a_config_that_makes_no_sense_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    config = {"sample_size": 16, "num_attention_heads": HEADS, "interpolation_scale": 1, name: value}
    text = json.dumps(config).replace("Infinity", "1e999")
    source = folder(diffusers_keyed(pixart()), tmp_path / "source", {})
    (source / "config.json").write_text(text)
    before = tree(tmp_path)
    with pytest.raises(converter.InputError, match=r"config\.json"):
        converter.convert(source, tmp_path / "out")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("version", "micro"), [("alpha", False), ("alpha", True), ("sigma", False)])
def test_the_pipelines_accept_it(version: str, micro: bool, tmp_path: Path) -> None:
    from diffusers import (
        AutoencoderKL,
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    # The stock alpha pipeline passes micro-conditions at a latent side of 128 only.
    tokens = {"alpha": 120, "sigma": 300}[version]
    sizes = {"tokens": tokens, "micro_conditions": micro, "input_size": 128 if micro else 16}
    path = save(pixart(**sizes, scale=2.0 if micro else 1.0), tmp_path / "made.pth")
    done = convert(path, tmp_path / "out")
    kind = {"alpha": PixArtAlphaPipeline, "sigma": PixArtSigmaPipeline}[version]
    encoder = T5EncoderModel(
        T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu")
    ).eval()
    pipeline = kind(
        tokenizer=None,
        text_encoder=encoder,
        vae=AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        transformer=PixArtTransformer2DModel.from_pretrained(done.path, subfolder="transformer"),
        scheduler=DPMSolverMultistepScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    tokens = torch.arange(8)[None] % 32
    with torch.no_grad():
        embeds = encoder(tokens).last_hidden_state
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    seen: list[dict[str, Any]] = []
    pipeline.transformer.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named["added_cond_kwargs"]), with_kwargs=True
    )
    image = pipeline(
        prompt=None,
        negative_prompt=None,
        prompt_embeds=embeds,
        prompt_attention_mask=torch.ones(1, 8),
        negative_prompt_embeds=torch.zeros_like(embeds),
        negative_prompt_attention_mask=torch.ones(1, 8),
        latents=latents.clone(),
        height=128,
        width=128,
        num_inference_steps=2,
        use_resolution_binning=False,
        output_type="latent",
    ).images
    assert image.shape == latents.shape
    assert torch.isfinite(image).all()
    assert (image - latents).abs().max() > 1e-3
    assert len(seen) == 2
    assert all((given["resolution"] is not None) == micro for given in seen)
    # A pipeline saved with it holds the same weights again, and is a source itself.
    pipeline.save_pretrained(tmp_path / "pipeline")
    again = converter.convert(tmp_path / "pipeline", tmp_path / "again")
    assert transformer(again.path) == transformer(done.path)
