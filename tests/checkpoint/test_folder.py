"""Folders: every shard in its place, nothing outside, and the folders that only look like a model are named."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_model
from hypothesis import given
from hypothesis import strategies as st
from makers import within
from safetensors.torch import save_file
from zip_builder import SIX, Glob, assert_refused, call, read_all, refused, safetensors_file, save, tensor, torch_file

from converter.checkpoint import open_checkpoint
from converter.checkpoint.folder import model_folder, read_config, weight_files
from converter.checkpoint.weight_names import STEMS, variants, weights_among, with_variant
from converter.errors import InputError

STEM = "diffusion_pytorch_model.safetensors"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def shard(folder: Path, name: str, *keys: str, value: float = 1.0) -> None:
    save_file({key: torch.full((2,), value) for key in keys}, folder / name)


def index(folder: Path, weight_map: Any, stem: str = STEM) -> Path:
    path = folder / f"{stem}.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 16}, "weight_map": weight_map}))
    return path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    folder.mkdir()
    shard(folder, FIRST, "a", "b")
    shard(folder, SECOND, "c", value=2.0)
    index(folder, {"a": FIRST, "b": FIRST, "c": SECOND})
    return folder


@pytest.mark.parametrize("stem", [STEM, "diffusion_pytorch_model.bin", "model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("below", ["", "transformer"])
def test_a_model_or_a_pipeline(tmp_path: Path, stem: str, below: str) -> None:
    place = tmp_path / "folder" / below
    place.mkdir(parents=True)
    if stem.endswith(".bin"):
        save(place, torch_file({"w": tensor()}, SIX), stem)
    else:
        save_file({"w": torch.arange(6.0).reshape(2, 3)}, place / stem)
    (place / "config.json").write_text('{"num_layers": 2}')
    assert read_all(tmp_path / "folder") == {"w": ("float32", (2, 3), SIX["0"])}
    with open_checkpoint(tmp_path / "folder") as checkpoint:
        assert checkpoint.config == {"num_layers": 2}
        assert model_folder(tmp_path / "folder") == place


def test_shards_are_one_state_dict(sharded: Path) -> None:
    assert {key: value[2] for key, value in read_all(sharded).items()} == {
        key: torch.full((2,), number).numpy().tobytes() for key, number in (("a", 1.0), ("b", 1.0), ("c", 2.0))
    }
    with open_checkpoint(sharded) as checkpoint:
        assert checkpoint.container == "folder of safetensors, 2 shards"
        assert checkpoint.size == sum((sharded / name).stat().st_size for name in (FIRST, SECOND))


def test_many_equal_shards_are_no_expansion(tmp_path: Path) -> None:
    names = [f"model-{n}.safetensors" for n in range(9)]
    for n, name in enumerate(names):
        save_file({f"w{n}": torch.ones(4096)}, tmp_path / name)
    index(tmp_path, {f"w{n}": name for n, name in enumerate(names)})
    assert len(read_all(tmp_path)) == 9


def test_shards_may_be_links_as_the_hub_makes_them(sharded: Path) -> None:
    (sharded / FIRST).rename(sharded.parent / "blob")
    (sharded / FIRST).symlink_to("../blob")
    assert len(read_all(sharded)) == 3


@pytest.mark.parametrize("name", [
    "../model.safetensors", "/etc/passwd", "..", ".", "", "sub/model.safetensors", "sub\\model.safetensors", ".hidden",
    "model.safetensors\n", "model\0.safetensors", "C:model.safetensors", "\x1b[2J", "a b", "file:///etc/passwd",
])  # fmt: skip
def test_an_index_may_not_point_outside_its_folder(sharded: Path, name: str) -> None:
    save_file({"c": torch.ones(2)}, sharded.parent / "model.safetensors")
    path = index(sharded, {"a": FIRST, "b": FIRST, "c": name})
    with within(5), refused(path, "weight_map", "an index may not point outside its folder"):
        read_all(sharded)


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("missing.safetensors", "the shard missing.safetensors is missing"),
        ("x" * 300, "is missing"),
        ("dangling.safetensors", "the shard dangling.safetensors is missing"),
        ("loop.safetensors", "loop.safetensors is missing"),
    ],
)
def test_a_missing_shard(sharded: Path, name: str, fragment: str) -> None:
    (sharded / "dangling.safetensors").symlink_to("nowhere")
    (sharded / "loop.safetensors").symlink_to("loop.safetensors")
    with refused(index(sharded, {"a": FIRST, "c": name}), "weight_map", fragment):
        read_all(sharded)


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_a_shard_that_is_no_file(sharded: Path, kind: str) -> None:
    (sharded / SECOND).unlink()
    os.mkfifo(sharded / SECOND) if kind == "fifo" else (sharded / SECOND).mkdir()
    assert_refused(sharded, SECOND, "not a regular file")


@pytest.mark.parametrize(("weight_map", "fragments"), [
    ({"a": FIRST, "b": SECOND, "c": SECOND}, (FIRST, "holds b, which the index does not place there")),
    ({"a": FIRST, "c": SECOND}, (FIRST, "holds b, which the index does not place there")),
    ({"a": FIRST, "b": FIRST, "c": SECOND, "d": SECOND}, (f"index: places d in {SECOND}, which does not hold it",)),
    ({"a": FIRST, "b": FIRST, "c": SECOND, "\x1b": SECOND}, (r"places \x1b in",)),
    ({}, ("weight_map", "missing, empty, or not a map")), ([FIRST], ("missing, empty, or not a map",)),
    (None, ("missing, empty, or not a map",)), ({"a": 3}, ("not a map from keys to file names",)),
    ({"a": [FIRST]}, ("not a map from keys to file names",)), (FIRST, ("not a map from keys to file names",)),
])  # fmt: skip
def test_the_index_says_exactly_what_the_shards_hold(
    sharded: Path, weight_map: Any, fragments: tuple[str, ...]
) -> None:
    index(sharded, weight_map)
    assert_refused(sharded, *fragments)


def test_a_shard_that_the_index_does_not_name_is_not_read(sharded: Path) -> None:
    index(sharded, {"a": FIRST, "b": FIRST})
    assert set(read_all(sharded)) == {"a", "b"}


def test_a_key_in_two_shards(sharded: Path) -> None:
    shard(sharded, SECOND, "c", "b")
    assert_refused(sharded, SECOND, "the key b is in two shards")


def test_a_stale_file_beside_an_index(sharded: Path) -> None:
    shard(sharded, STEM, "a")
    assert_refused(sharded, f"holds both {STEM} and an index of shards: one of them is stale")


def test_torch_shards_keep_every_foreign_name_and_refuse_hostile_keys(tmp_path: Path) -> None:
    stem, names = "pytorch_model.bin", ["pytorch_model-1.bin", "pytorch_model-2.bin"]
    wrapped = {"state_dict": {"a": tensor()}, "optimizer": call(Glob("os", "system"), "true")}
    save(tmp_path, torch_file(wrapped, SIX), names[0])
    save(tmp_path, torch_file({"b": tensor()}, SIX), names[1])
    index(tmp_path, {"a": names[0], "b": names[1]}, stem)
    assert set(read_all(tmp_path)) == {"a", "b"}
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.foreign_globals == [("os.system", True)]
        assert len(checkpoint.others) == 1
    for hostile in (b")" + b"2\x86" * 60, b"]", b")" + b"\x85" * 100_000, b"N"):
        data = torch_file(b"\x80\x02}(" + hostile + tensor().emit() + b"u.", SIX)
        save(tmp_path, data, names[1])
        assert_refused(tmp_path, names[1], "a key that is not plain text")


@pytest.mark.parametrize(("name", "fragment"), [
    (".metadata", "a torch distributed checkpoint: merge it first"), ("__0_0.distcp", "dcp_to_torch"),
    ("adapter_config.json", "a PEFT adapter (LoRA)"), ("optimizer.bin", "holds no weights: looked for"),
])  # fmt: skip
def test_folders_that_hold_something_else_are_named(tmp_path: Path, name: str, fragment: str) -> None:
    (tmp_path / name).write_text("{}")
    assert_refused(tmp_path, f"{tmp_path}: {'a torch' if name == '__0_0.distcp' else fragment}", fragment)


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    assert_refused(tmp_path, "holds no weights: looked for", STEM, "pytorch_model.bin")


@pytest.mark.parametrize("name", ["config.json", f"{STEM}.index.json"])
@pytest.mark.parametrize(("text", "fragment"), [
    ("", "not valid JSON"), ("[]", ""), ("{", "not valid JSON"), ('{"a": 1, "a": 2}', "a duplicate key"),
    ("[" * 99_999, "nested too deeply"), ('{"a": ' + "9" * 9999 + "}", "not valid JSON"),
    ("\ufeff\ufeff{}", "not valid JSON"), ('{"weight_map": NaN}', "NaN is not JSON"),
])  # fmt: skip
def test_a_hostile_config_or_index(sharded: Path, name: str, text: str, fragment: str) -> None:
    (sharded / name).write_text(text)
    fragment = fragment or ("not a JSON object" if name == "config.json" else "weight_map")
    with within(5), refused(sharded / name, fragment):
        read_all(sharded)


@pytest.mark.parametrize("name", ["config.json", f"{STEM}.index.json"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "loop"])
def test_a_config_or_index_that_is_no_file_never_blocks(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    {"fifo": os.mkfifo, "folder": os.mkdir, "loop": lambda p: os.symlink(p, p)}[kind](path)
    assert_refused(tmp_path)


def test_a_config_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    shard(tmp_path, STEM, "a")
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 1 << 40)
    with within(5), refused(tmp_path / "config.json", f"{1 << 40} bytes of JSON"):
        read_all(tmp_path)


def test_no_config_is_an_empty_one(tmp_path: Path) -> None:
    assert read_config(tmp_path) == {}
    save(tmp_path, safetensors_file({}), "model.safetensors")
    assert weight_files(tmp_path) == ([tmp_path / "model.safetensors"], None, [])


def test_weights_of_several_formats_are_not_silently_passed_over(tmp_path: Path, sharded: Path) -> None:
    """As in diffusers, safetensors win; that other weights lie beside them is said."""
    for folder in (tmp_path, sharded):
        with open_checkpoint(sharded) as checkpoint:
            assert checkpoint.others == []
        shard(tmp_path, STEM, "w")
        for name in ("diffusion_pytorch_model.bin", "model.safetensors.index.json"):
            save(folder, b"never read", name)
        with open_checkpoint(folder) as checkpoint:
            assert list(checkpoint) == (["w"] if folder == tmp_path else ["a", "b", "c"])
            assert checkpoint.others == [
                "diffusion_pytorch_model.bin: other weights in this folder, not read",
                "model.safetensors.index.json: other weights in this folder, not read",
            ]


def test_a_refused_folder_leaves_no_descriptor_open(sharded: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (sharded / SECOND).write_bytes(b"")
    assert_refused(sharded, SECOND, "empty")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_of_checkpoints_is_none(tmp_path: Path) -> None:
    for name in ("epoch_2.pth", "epoch_1.pth"):
        save(tmp_path, b"never read", name)
    assert_refused(tmp_path, "holds no weights", "there is epoch_1.pth: name a file, or a glob")


# ---------------------------------------------------------------- variants


FP16 = "diffusion_pytorch_model.fp16.safetensors"


@pytest.mark.parametrize(("name", "variant", "expected"), [
    (STEM, "", STEM), (STEM, "fp16", FP16), ("pytorch_model.bin", "non_ema", "pytorch_model.non_ema.bin"),
    (f"{STEM}.index.json", "fp16", "diffusion_pytorch_model.safetensors.index.fp16.json"),
    ("model-00001-of-00002.safetensors", "fp16", "model-00001-of-00002.fp16.safetensors"),
])  # fmt: skip
def test_a_variant_is_named_as_diffusers_names_it(name: str, variant: str, expected: str) -> None:
    assert with_variant(name, variant) == expected


@given(
    st.sampled_from([*STEMS, *(f"{stem}.index.json" for stem in STEMS)]),
    st.from_regex(r"\A[A-Za-z0-9_-]+\Z"),
)
def test_a_variant_is_read_back_from_the_name(name: str, variant: str) -> None:
    shard_of_another = re.search(r"-\d{5}-of-\d{5}$", variant)
    assert variants({with_variant(name, variant)}) == ([] if shard_of_another else [variant])
    assert variants({name}) == []


@pytest.mark.parametrize("stem", STEMS)
def test_a_variant_is_taken_where_it_is_all_there_is(tmp_path: Path, stem: str) -> None:
    name = with_variant(stem, "fp16")
    if name.endswith(".bin"):
        save(tmp_path, torch_file({"w": tensor()}, SIX), name)
    else:
        save_file({"w": torch.arange(6.0).reshape(2, 3)}, tmp_path / name)
    assert read_all(tmp_path) == {"w": ("float32", (2, 3), SIX["0"])}
    assert weight_files(tmp_path) == ([tmp_path / name], None, [])


def test_weights_without_a_variant_go_first(tmp_path: Path) -> None:
    shard(tmp_path, FP16, "w", value=2.0)
    shard(tmp_path, STEM, "w", value=1.0)
    index(tmp_path, {"w": FIRST}).rename(tmp_path / with_variant(f"{STEM}.index.json", "non_ema"))
    assert read_all(tmp_path)["w"][2] == torch.ones(2).numpy().tobytes()
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.others == [f"{name}: a variant of the weights, not read" for name in ("fp16", "non_ema")]


def test_a_shard_of_an_odd_name_is_no_variant(tmp_path: Path) -> None:
    odd = "diffusion_pytorch_model.part1.safetensors"
    shard(tmp_path, odd, "w")
    index(tmp_path, {"w": odd})
    with open_checkpoint(tmp_path) as checkpoint:
        assert (list(checkpoint), checkpoint.others) == (["w"], [])


@pytest.mark.parametrize(("names", "kinds"), [
    ([FP16, "model.bf16.safetensors", "pytorch_model.fp32.bin"], "bf16, fp16, fp32"),
    ([FP16, "diffusion_pytorch_model.safetensors.index.non_ema.json"], "fp16, non_ema"),
])  # fmt: skip
def test_several_variants_are_refused_by_name(tmp_path: Path, names: list[str], kinds: str) -> None:
    for name in names:
        shard(tmp_path, name, "w")
    with pytest.raises(InputError, match=rf"holds several variants \({kinds}\) and no weights without one$"):
        read_all(tmp_path)


def sharded_variant(folder: Path, variant: str) -> None:
    stem = f"diffusion_pytorch_model.{variant}"
    names = [f"{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    shard(folder, names[0], "a")
    shard(folder, names[1], "b", value=2.0)
    weight_map = {"a": names[0], "b": names[1]}
    (folder / f"{STEM}.index.{variant}.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_variant_in_shards(tmp_path: Path) -> None:
    """Its shards are not taken for variants of their own."""
    sharded_variant(tmp_path, "fp16")
    assert {key: value[2] for key, value in read_all(tmp_path).items()} == {
        "a": torch.ones(2).numpy().tobytes(), "b": torch.full((2,), 2.0).numpy().tobytes()}  # fmt: skip
    assert variants({path.name for path in tmp_path.iterdir()}) == ["fp16"]
    with open_checkpoint(tmp_path) as checkpoint:
        path = tmp_path / f"{STEM}.index.fp16.json"
        assert checkpoint.companions == {path: path.read_bytes()}
    sharded_variant(tmp_path, "bf16")
    with pytest.raises(InputError, match=r"several variants \(bf16, fp16\)"):
        read_all(tmp_path)


def test_a_stale_file_beside_the_index_of_a_variant(tmp_path: Path) -> None:
    sharded_variant(tmp_path, "fp16")
    shard(tmp_path, FP16, "a")
    assert_refused(tmp_path, f"holds both {FP16} and an index of shards: one of them is stale")
    # Beside weights that have no variant, nobody asks it.
    shard(tmp_path, STEM, "w")
    assert set(read_all(tmp_path)) == {"w"}


def test_a_shard_of_a_variant_without_its_index_is_no_weights(tmp_path: Path) -> None:
    shard(tmp_path, "diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "a")
    assert_refused(tmp_path, "holds no weights: looked for")


def test_a_missing_shard_of_a_variant_is_named(tmp_path: Path) -> None:
    sharded_variant(tmp_path, "fp16")
    (tmp_path / "diffusion_pytorch_model.fp16-00002-of-00002.safetensors").unlink()
    with within(5), refused(tmp_path / f"{STEM}.index.fp16.json", "-00002-of-00002.safetensors is missing"):
        read_all(tmp_path)


@pytest.mark.parametrize("name", [
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.a b.safetensors", "diffusion_pytorch_model..bin",
    "xdiffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.fp16.safetensors.tmp", "optimizer.fp16.bin",
    "diffusion_pytorch_model.a.b.safetensors", "diffusion_pytorch_model.safetensors.index.json", "model.fp16.bin",
])  # fmt: skip
def test_what_is_no_variant(name: str) -> None:
    assert variants({name}) == []


@given(st.sets(st.sampled_from([with_variant(name, variant) for variant in ("", "fp16", "ema")
                                for stem in STEMS[:2] for name in (stem, f"{stem}.index.json")])))  # fmt: skip
def test_the_choice_among_any_names(names: set[str]) -> None:
    """Stated another way: of the first group that has any, the first kind of file."""
    groups = {variant: [name for stem in STEMS for name in (stem, f"{stem}.index.json")
                        if with_variant(name, variant) in names] for variant in ("", "ema", "fp16")}  # fmt: skip
    if not groups[""] and groups["ema"] and groups["fp16"]:
        with pytest.raises(ValueError, match=r"several variants \(ema, fp16\)"):
            weights_among(names)
        return
    variant = next((variant for variant, found in groups.items() if found), "")
    found = groups[variant]
    if found and {found[0], f"{found[0]}.index.json"} <= set(found):
        with pytest.raises(ValueError, match="one of them is stale"):
            weights_among(names)
        return
    chosen = weights_among(names)
    assert [name for pair in chosen for name in pair if name] == [with_variant(name, variant) for name in found]


def test_tied_weights_that_the_index_names(tmp_path: Path) -> None:
    """huggingface_hub leaves them out of every shard and says so in the index alone."""
    a, b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 8)
    model = torch.nn.ModuleDict({"a": a, "b": b, "c": a, "d": b, "own": torch.nn.Linear(4, 4)})
    save_torch_model(model, tmp_path, filename_pattern=STEM.replace(".s", "{suffix}.s"), max_shard_size=100)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found, wanted = read_all(tmp_path), model.state_dict()
    assert set(found) == set(wanted)
    assert {key: value[2] for key, value in found.items()} == {k: v.numpy().tobytes() for k, v in wanted.items()}


def test_copies_that_a_shard_or_the_index_names_are_held_to_the_rules(sharded: Path) -> None:
    save_file({"a.w": torch.ones(2)}, sharded / FIRST, {"b.w": "a.w", "c.w": "a.w", "x": "a.w"})
    save_file({"c.w": torch.zeros(2)}, sharded / SECOND, {"a.w": "c.w"})
    path, places = sharded / f"{STEM}.index.json", {"a.w": FIRST, "c.w": SECOND}
    said: dict[str, Any] = {"d.w": "c.w", "e": "c.w", "a.w": "c.w", "total_size": 16, "f.w": "d.w", "g.w": ["c.w"]}
    for metadata, copies in ((said, {"d.w"}), (["a.w"], set()), ("c.w", set()), (None, set())):
        path.write_text(json.dumps({"metadata": metadata, "weight_map": places}))
        found = read_all(sharded)
        assert set(found) == {"a.w", "c.w"} | copies
        assert found["a.w"][2] == torch.ones(2).numpy().tobytes()  # what is there counts before what is said
        assert found.get("d.w", found["c.w"]) == found["c.w"] != found["a.w"]
    index(sharded, places | {"b.w": FIRST})  # the index may place a copy where the header names it
    assert read_all(sharded)["b.w"] == read_all(sharded)["a.w"]
    index(sharded, places | {"b.w": SECOND})
    assert_refused(sharded, "places b.w in", "which does not hold it")
