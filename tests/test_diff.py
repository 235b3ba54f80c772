"""How two checkpoints differ: every layout and container against every other, and torch's word on every number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import (
    CONTAINERS,
    GOLDEN,
    PREFIXES,
    ROOT,
    SMALL,
    State,
    convert,
    diffusers_keyed,
    folder,
    other,
    pixart,
    prefixed,
    save,
    training,
)
from safetensors.torch import save_file

import converter
from converter import Diff, InputError, UsageError, diff
from converter.comparison import TensorDiff, WeightsDiff

EXTRA, POSITIONS = "y_embedder.y_embedding", "pos_embed"
NO_PLACE = {EXTRA, POSITIONS}
CONFIG = {"_class_name": "PixArtTransformer2DModel", "sample_size": 16, "interpolation_scale": 1}
DEPTH = SMALL["depth"]


@pytest.fixture(scope="module")
def state() -> State:
    return pixart(seed=5)


@pytest.fixture(scope="module")
def near(state: State) -> State:
    """Nearly the same weights: what fine-tuning or averaging makes."""
    random = torch.Generator().manual_seed(9)
    return {
        key: tensor if key in NO_PLACE else tensor + 1e-3 * torch.randn(tensor.shape, generator=random)
        for key, tensor in state.items()
    }


def only(found: Diff) -> WeightsDiff:
    (each,) = found.comparisons
    return each


def tensor(found: Diff, key: str) -> TensorDiff:
    (each,) = [each for each in only(found).tensors if each.key == key]
    return each


def differing(found: Diff) -> dict[str, str]:
    """What is not identical: key -> kind."""
    return {each.key: each.kind for each in only(found).tensors if each.kind != "identical"}


def distance(a: State, b: State) -> float:
    """Relative L2 of two models, by torch: of what both layouts hold."""
    keys = [key for key in a if key not in NO_PLACE]
    one, two = (torch.cat([side[key].double().flatten() for key in keys]) for side in (a, b))
    return float((one - two).norm() / max(one.norm(), two.norm()))


# Every way to keep one model.

WAYS: dict[str, Callable[[State, Path], Path]] = {
    **{name: lambda s, p, make=make: save(make(s), p / "m.pth") for name, make in CONTAINERS.items()},
    "safetensors": lambda s, p: _safetensors(s, p / "m.safetensors"),
    "compiled": lambda s, p: save(prefixed(s, "module._orig_mod."), p / "m.pth"),
    "diffusers": lambda s, p: folder(diffusers_keyed(s), p / "m", CONFIG),
    "diffusers-shards": lambda s, p: folder(diffusers_keyed(s), p / "m", CONFIG, shards=3),
    "diffusers-bin": lambda s, p: folder(diffusers_keyed(s), p / "m", CONFIG, suffix="bin"),
    "diffusers-keyed-bin": lambda s, p: save(diffusers_keyed(s), p / "m.bin"),
    "pipeline": lambda s, p: folder(diffusers_keyed(s), p / "m" / "transformer", CONFIG).parent,
    "views": lambda s, p: save(_views(s), p / "m.pth"),
}


def _safetensors(state: State, path: Path) -> Path:
    save_file(state, path)
    return path


def _views(state: State) -> State:
    """Every tensor a view of something larger, matrices the other way round in memory."""
    made = {}
    for key, each in state.items():
        room = torch.cat([each.flatten(), each.new_ones(3)])
        made[key] = each.t().contiguous().t() if each.dim() == 2 else room[: each.numel()].view(each.shape)
    return made


@pytest.fixture(scope="module")
def kept(state: State, near: State, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Every way: (the model, the one that is near it)."""
    made = {}
    for name, way in WAYS.items():
        places = [tmp_path_factory.mktemp(name) for _ in range(2)]
        made[name] = way(state, places[0]), way(near, places[1])
    return made


PAIRS = sorted({*((way, "bare") for way in WAYS), *(("diffusers", way) for way in WAYS), ("bare", "diffusers-shards")})


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_whatever_the_layouts(
    one: str, two: str, kept: dict[str, tuple[Path, Path]], state: State, near: State
) -> None:
    weights = {"weights_a": "raw" if "training" in one else None, "weights_b": "raw" if "training" in two else None}
    same = diff(kept[one][0], kept[two][0], **weights)
    assert same.verdict == "identical"
    assert same.same()
    assert differing(same) == {}
    diffusers = ["diffusers" in way or way == "pipeline" for way in (one, two)]
    one_sided = dict.fromkeys(NO_PLACE, f"only in {'A' if diffusers[1] else 'B'}") if len({*diffusers}) > 1 else {}
    assert {each.key: each.kind for each in only(same).one_sided_buffers} == one_sided
    nearly = diff(kept[one][0], kept[two][1], **weights)
    assert (nearly.verdict, nearly.same(rounding_ok=True)) == ("different", False)
    assert set(differing(nearly).values()) == {"different"}
    assert only(nearly).relative_l2 == pytest.approx(distance(state, near), rel=1e-9)
    keys = diffusers_keyed(state) if all(diffusers) else {key for key in state if key not in NO_PLACE}
    assert set(differing(nearly)) == set(keys)
    for each in only(nearly).tensors if not all(diffusers) else ():
        a, b = state[each.key].double(), near[each.key].double()
        assert each.a == each.b == (tuple(a.shape), "float32")
        if each.numbers:
            l2 = float((a - b).norm() / max(a.norm(), b.norm()))
            assert each.numbers.relative_l2 == pytest.approx(l2, rel=1e-9)
            assert each.numbers.max_abs == float((a - b).abs().max())
            assert (each.numbers.differing, each.numbers.elements) == (int((a != b).sum()), a.numel())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_no_difference(prefix: str, state: State, tmp_path: Path) -> None:
    a = save(prefixed(state, prefix), tmp_path / "a.pth")
    assert diff(a, save(state, tmp_path / "b.pth")).same()


def test_one_element_of_any_tensor_is_found_and_named(state: State, tmp_path: Path) -> None:
    a = save(state, tmp_path / "a.pth")
    for i, key in enumerate(state):
        changed = {k: t.clone() for k, t in state.items()}
        changed[key].view(torch.int32).flatten()[i % changed[key].numel()] ^= 1
        keyed = key not in NO_PLACE and i % 2
        b = folder(diffusers_keyed(changed), tmp_path / f"{i}", CONFIG) if keyed else save(changed, tmp_path / "b.pth")
        found = diff(a, b)
        assert differing(found) == {key: "different"}
        numbers = tensor(found, key).numbers
        assert numbers
        assert numbers.differing == 1
    assert found.words.startswith(f"1 of {len(only(found).tensors)} tensors differ, relative L2 ")


def test_a_tensor_that_is_missing_or_too_many_or_of_another_shape(state: State, tmp_path: Path) -> None:
    a = save(state, tmp_path / "a.pth")
    key, extra, other = "blocks.1.mlp.fc1.bias", "blocks.0.attn.spare", "blocks.0.attn.proj.weight"
    b = save({k: t for k, t in state.items() if k != key} | {extra: torch.ones(3)}, tmp_path / "b.pth")
    found = diff(a, b)
    assert differing(found) == {key: "only in A", extra: "only in B"}
    assert (tensor(found, key).b, tensor(found, extra).a) == (None, None)
    assert found.verdict == "different"
    assert found.words == f"the {len(state) - 1} tensors that both have are the same, 1 only in A, 1 only in B"
    assert differing(diff(b, a)) == {key: "only in B", extra: "only in A"}
    found = diff(a, save(state | {other: state[other][:, :-1].clone()}, tmp_path / "c.pth"))
    assert differing(found) == {other: "other shape"}
    assert found.words == f"the {len(state) - 1} tensors that both have are the same, 1 of another shape"
    far = f"transformer_blocks.{10**17}.attn1.to_q.weight"  # beyond all counting
    found = diff(a, folder(diffusers_keyed(state) | {far: torch.ones(24, 24)}, tmp_path / "d", CONFIG))
    assert differing(found) == {far: "only in B"}
    found = diff(a, save({k: t for k, t in state.items() if k != POSITIONS}, tmp_path / "e.pth"))
    assert found.same()
    assert [(each.key, each.kind) for each in only(found).one_sided_buffers] == [(POSITIONS, "only in A")]


@pytest.mark.parametrize("spoil", ["missing", "dtype", "shape"])
def test_parts_that_cannot_be_joined_stay_under_their_own_keys(spoil: str, state: State, tmp_path: Path) -> None:
    keyed = diffusers_keyed(state)
    part = "transformer_blocks.1.attn1.to_k.weight"
    parts = {part.replace("to_k", f"to_{letter}") for letter in "qkv"}
    if spoil == "missing":
        del keyed[part]
        parts.remove(part)
    else:
        keyed[part] = keyed[part].half() if spoil == "dtype" else keyed[part][:-1].clone()
    found = diff(save(state, tmp_path / "a.pth"), folder(keyed, tmp_path / "b", CONFIG))
    assert differing(found) == {"blocks.1.attn.qkv.weight": "only in A"} | dict.fromkeys(parts, "only in B")
    assert only(found).notes == [
        "B: blocks.1.attn.qkv.weight cannot be joined: its parts are incomplete, or differ in shape or dtype"
    ]


def test_both_spellings_of_one_tensor_in_one_file_are_refused(state: State, tmp_path: Path) -> None:
    key = "final_layer.linear.bias"
    both = folder(diffusers_keyed(state) | {key: state[key]}, tmp_path / "b", CONFIG)
    with pytest.raises(InputError, match=rf"b: {key}: the same tensor is there under diffusers' keys too"):
        diff(save(state, tmp_path / "a.pth"), both)


def test_numbers_that_are_not_finite_are_counted(state: State, tmp_path: Path) -> None:
    key = "t_block.1.weight"
    spoilt = state | {key: state[key].clone()}
    spoilt[key][0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    a, b = save(state, tmp_path / "a.pth"), save(spoilt, tmp_path / "b.pth")
    found = diff(a, b)
    numbers = tensor(found, key).numbers
    assert numbers
    assert (numbers.nonfinite_a, numbers.nonfinite_b, numbers.differing, numbers.relative_l2) == (0, 3, 3, 0.0)
    assert found.words.endswith("; elements that are not finite: 3 in B")
    same = diff(b, b)
    assert same.verdict == "identical"
    assert same.words.endswith("; elements that are not finite: 3 in A, 3 in B")
    json.loads(json.dumps(found.as_dict(), allow_nan=False))


# Rounding.

HALVES = (torch.float16, torch.bfloat16)


def cast(state: State, dtype: torch.dtype) -> State:
    return {key: each.to(dtype) for key, each in state.items()}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_model_rounded(layout: str, dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    a = save(state, tmp_path / "a.pth")
    rounded = cast(state, dtype)
    b = save(rounded, tmp_path / "b.pth") if layout == "original" else (
        folder(diffusers_keyed(rounded), tmp_path / "b", CONFIG)
    )  # fmt: skip
    name = str(dtype).removeprefix("torch.")
    for one, two, words in ((a, b, f"B is A rounded to {name}"), (b, a, f"A is B rounded to {name}")):
        found = diff(one, two)
        assert (found.verdict, found.same(), found.same(rounding_ok=True)) == ("rounding only", False, True)
        count = len(only(found).tensors)
        assert found.words == f"the same but for rounding: {words} ({count} of {count} tensors)"
        assert only(found).relative_l2 == pytest.approx(distance(state, rounded), rel=1e-9)
    rounded["x_embedder.proj.bias"][0] += 1
    worse = diff(a, save(rounded, tmp_path / "c.pth"))
    assert worse.verdict == "different"
    assert worse.words.startswith(f"1 of {len(state)} tensors differ, relative L2 ")
    assert worse.words.endswith(f" overall, {len(state) - 1} are roundings")


def test_a_model_rounded_and_stored_as_float32(state: State, tmp_path: Path) -> None:
    """What comes of loading a half-precision model into a float32 one."""
    a, through = save(state, tmp_path / "a.pth"), {k: t.half().float() for k, t in state.items()}
    found = diff(a, folder(diffusers_keyed(through), tmp_path / "b", CONFIG))
    count = len(state) - len(NO_PLACE)
    assert found.words == (
        f"the same but for rounding: B is A rounded to float16 and stored as float32 ({count} of {count} tensors)"
    )
    mixed = {key: each.half() if "mlp" in key else each for key, each in state.items()}
    found = diff(a, folder(diffusers_keyed(mixed), tmp_path / "c", CONFIG))
    assert found.verdict == "rounding only"
    assert differing(found) == {key: "rounded" for key in state if "mlp" in key}


def test_one_rounding_for_all_tensors_is_preferred(tmp_path: Path) -> None:
    """A tensor that float16 explains as well as bfloat16 does goes with the others."""
    a = {"a.weight": torch.tensor([1.0001]), "b.weight": torch.tensor([1.001, 1.1])}
    b = {key: each.bfloat16().float() for key, each in a.items()}
    found = diff(save(a, tmp_path / "a.pth"), save(b, tmp_path / "b.pth"))
    assert "B is A rounded to bfloat16 and stored as float32 (2 of 2 tensors)" in found.words
    assert "float16 and" not in found.words.replace("bfloat16", "")


def test_other_dtypes_that_lose_nothing(state: State, tmp_path: Path) -> None:
    exact = {key: each.half().float() for key, each in state.items()}
    found = diff(save(exact, tmp_path / "a.pth"), save(cast(exact, torch.float16), tmp_path / "b.pth"))
    count = len(state)
    assert found.words == (
        f"the same in other dtypes: float32 in A and float16 in B ({count} of {count} tensors), and nothing is lost"
    )
    assert found.verdict == "rounding only"
    assert only(found).relative_l2 == 0.0


def test_biases_of_zeros_lose_nothing_where_the_rest_is_rounded(state: State, tmp_path: Path) -> None:
    made = {key: torch.zeros_like(t) if key.endswith("bias") else t for key, t in state.items()}
    zeros, count = sum(key.endswith("bias") for key in made), len(made)
    found = diff(save(made, tmp_path / "a.pth"), save(cast(made, torch.float16), tmp_path / "b.pth"))
    assert found.words == (
        f"the same but for rounding: B is A rounded to float16 ({count - zeros} of {count} tensors), "
        f"float32 in A and float16 in B ({zeros} of {count} tensors), and nothing is lost"
    )


@pytest.fixture(scope="module")
def trained(state: State, near: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(training(state, near), tmp_path_factory.mktemp("trained") / "epoch_7.pth")


def test_which_weights_a_file_is(trained: Path, state: State, near: State, tmp_path: Path) -> None:
    far = f"relative L2 {distance(state, near):.2g}"
    for name, weights, further in (("raw", state, "EMA"), ("EMA", near, "raw")):
        b = folder(diffusers_keyed(weights), tmp_path / name, CONFIG)
        found = diff(trained, b)
        assert found.words == f"B is the {name} weights of A, byte for byte; {further}: {far}"
        assert (found.verdict, found.choice) == ("identical", "A")
        assert [each.weights_a for each in found.comparisons] == ["raw", "ema"]
        assert found.decisive.weights_a == name.lower()
        found = diff(b, trained)
        assert found.words == f"A is the {name} weights of B, byte for byte; {further}: {far}"
        assert (found.choice, found.decisive.weights_b) == ("B", name.lower())


def test_which_weights_a_file_is_nearest_to(trained: Path, state: State, near: State, tmp_path: Path) -> None:
    between = {key: each if key in NO_PLACE else 0.9 * each + 0.1 * near[key] for key, each in state.items()}
    count = len(state) - len(NO_PLACE)
    found = diff(trained, folder(diffusers_keyed(between), tmp_path / "b", CONFIG))
    assert found.words == (
        f"B is nearest to the raw weights of A: {count} of {count} tensors differ, "
        f"relative L2 {distance(state, between):.2g} overall; EMA: relative L2 {distance(near, between):.2g}"
    )
    assert (found.verdict, found.decisive.weights_a) == ("different", "raw")
    found = diff(trained, folder(diffusers_keyed(cast(near, torch.float16)), tmp_path / "c", CONFIG))
    assert found.words.startswith(
        f"B is the EMA weights of A, but for rounding: B is A rounded to float16 ({count} of {count} tensors); raw: "
    )
    assert (found.same(), found.same(rounding_ok=True)) == (False, True)
    same = save(training(state, state), tmp_path / "same.pth")
    found = diff(same, save(state, tmp_path / "d.pth"))
    assert found.words == "B is the raw and EMA weights of A, which are the same, byte for byte"
    found = diff(trained, save(pixart(depth=3), tmp_path / "e.pth"))
    assert found.words == "different models: depth 2 and 3"


def test_like_is_compared_with_like_where_both_have_both(
    trained: Path, state: State, near: State, tmp_path: Path
) -> None:
    b = save(training(state, other(near)), tmp_path / "b.pth")
    found = diff(trained, b)
    assert [(each.weights_a, each.weights_b) for each in found.comparisons] == [("raw", "raw"), ("ema", "ema")]
    assert found.choice == ""
    assert found.verdict == "different"  # not the nearest counts here, but the other one
    assert found.words.startswith(f"raw weights: identical: all {len(state)} tensors, byte for byte; EMA weights: ")
    assert diff(trained, trained).same()
    crossed = diff(trained, trained, weights_a="raw", weights_b="ema")
    assert only(crossed).relative_l2 == pytest.approx(distance(state, near), rel=1e-9)
    half = diff(trained, trained, weights_a="ema")
    assert half.words.startswith("A is the EMA weights of B, byte for byte; raw: ")


def test_weights_that_a_file_does_not_hold(trained: Path, tmp_path: Path, state: State) -> None:
    b = save(state, tmp_path / "b.pth")
    with pytest.raises(UsageError, match=r"b\.pth: `weights_b` ema, but the file holds only raw weights"):
        diff(trained, b, weights_b="ema")
    with pytest.raises(UsageError, match=r"b\.pth: `weights_a` ema, but the file holds only raw weights"):
        diff(b, trained, weights_a="ema")
    with pytest.raises(UsageError, match="`weights` best: one of raw, ema"):
        diff(b, b, weights_a="best")


# What has no home in diffusers, and what a config says.


@pytest.fixture(scope="module")
def converted(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = convert(trained, tmp_path_factory.mktemp("converted") / "out")
    return made.path


def test_a_sidecar_is_part_of_a_conversion(trained: Path, converted: Path, near: State, tmp_path: Path) -> None:
    for path in (converted, converted / "transformer"):
        found = diff(trained, path, weights_a="raw")
        assert (found.verdict, differing(found)) == ("identical", {})
        assert EXTRA in {each.key for each in only(found).tensors}
        assert {each.key: each.kind for each in only(found).one_sided_buffers} == {POSITIONS: "only in A"}
    changed = save(near | {EXTRA: near[EXTRA] + 1}, tmp_path / "a.pth")
    assert differing(diff(changed, converted))[EXTRA] == "different"
    # Elsewhere it is of whatever lies there.
    bare = tmp_path / "elsewhere" / "model"
    bare.parent.mkdir()
    os.symlink(converted / "transformer", bare)
    os.symlink(converted / "original_extras.safetensors", bare.parent / "original_extras.safetensors")
    found = diff(trained, bare, weights_a="raw")
    assert {each.key for each in only(found).one_sided_buffers} == NO_PLACE


def test_a_stray_null_caption_of_an_old_conversion(state: State, tmp_path: Path) -> None:
    stray = "caption_projection.y_embedding"
    b = folder(diffusers_keyed(state) | {stray: state[EXTRA]}, tmp_path / "b", CONFIG)
    a = save(state, tmp_path / "a.pth")
    found = diff(a, b)
    assert found.same()
    assert tensor(found, EXTRA).kind == "identical"
    changed = folder(diffusers_keyed(state) | {stray: state[EXTRA] + 1}, tmp_path / "c", CONFIG)
    assert differing(diff(a, changed)) == {EXTRA: "different"}
    assert differing(diff(b, changed)) == {EXTRA: "different"}


def test_a_config_that_says_otherwise_than_the_original_shows(state: State, tmp_path: Path) -> None:
    a = save(state, tmp_path / "a.pth")
    b = folder(diffusers_keyed(state), tmp_path / "b", CONFIG | {"interpolation_scale": 2})
    found = diff(a, b)
    (scale,) = only(found).disagreements
    assert (scale.name, scale.a, scale.b, scale.evidence_b) == ("interpolation_scale", 1.0, 2, "config.json")
    assert scale.evidence_a.startswith("pos_embed [1, 64, 24]")
    assert (found.verdict, only(found).weights_verdict) == ("different", "identical")
    assert not found.same(rounding_ok=True)
    count = len(state) - len(NO_PLACE)
    assert found.words == (
        f"identical: all {count} tensors, byte for byte; but the models differ: interpolation_scale 1.0 and 2"
    )


def test_configs_of_two_folders(state: State, tmp_path: Path) -> None:
    keyed = diffusers_keyed(state)
    inert = {"dropout": 0.0, "_diffusers_version": "0.30.0", "_name_or_path": "a", "spare": 1}
    others = {"dropout": 0.1, "_diffusers_version": "0.42.1", "_name_or_path": "b", "spare": None}
    a = folder(keyed, tmp_path / "a", CONFIG | inert | {"norm_eps": 1e-6, "num_attention_heads": 4})
    renamed = others | {"_class_name": "Transformer2DModel", "num_layers": DEPTH}
    b = folder(keyed, tmp_path / "b", CONFIG | renamed | {"norm_eps": 1e-5, "num_attention_heads": 2})
    found = diff(a, b)
    assert [(each.name, each.a, each.b) for each in only(found).disagreements] == [
        ("num_attention_heads", 4, 2),
        ("norm_eps", 1e-6, 1e-5),
    ]
    assert found.words.endswith("; but the models differ: num_attention_heads 4 and 2, norm_eps 1e-06 and 1e-05")


def test_what_is_only_assumed_is_no_difference(state: State, tmp_path: Path) -> None:
    """Heads of a file are a convention; a config that names others contradicts nothing."""
    b = folder(diffusers_keyed(state), tmp_path / "b", CONFIG | {"num_attention_heads": 2})
    assert diff(save(state, tmp_path / "a.pth"), b).same()


# Other models, and files of no model that is known.


def test_different_models(tmp_path: Path, state: State) -> None:
    a = save(state, tmp_path / "a.pth")
    for sizes, words in (
        ({"depth": 5}, "depth 2 and 5"),
        ({"hidden_size": 48}, "hidden_size 24 and 48"),
        ({"micro_conditions": True}, "micro_condition False and True"),
        ({"tokens": 120}, "caption_tokens 12 and 120"),
        ({"input_size": 32}, "image_size 128 and 256, sample_size 16 and 32"),
    ):
        found = diff(a, save(pixart(**sizes), tmp_path / "b.pth"))
        assert (found.verdict, found.words) == ("different models", f"different models: {words}")
        assert not found.same(rounding_ok=True)


def test_a_feature_that_diffusers_cannot_hold_is_compared_too(tmp_path: Path) -> None:
    """Of two originals nothing needs a place in diffusers."""
    qk = GOLDEN / "sigma-qknorm.pth"
    found = diff(qk, qk)
    assert found.same()
    keys = {each.key for each in only(found).tensors}
    assert "blocks.0.attn.q_norm.weight" in keys
    changed = torch.load(qk, weights_only=True)
    changed = changed.get("state_dict", changed)
    changed["blocks.0.attn.q_norm.weight"] = changed["blocks.0.attn.q_norm.weight"] + 1
    assert differing(diff(qk, save(changed, tmp_path / "b.pth"))) == {"blocks.0.attn.q_norm.weight": "different"}


def test_a_null_caption_is_not_part_of_the_distance_and_said_so(tmp_path: Path) -> None:
    state = torch.load(GOLDEN / "sigma-ms.pth", weights_only=True)
    key = "y_embedder.y_embedding"
    other = save(state | {key: state[key] + 1}, tmp_path / "b.pth")
    found = diff(save(state, tmp_path / "a.pth"), other)
    assert found.words.endswith(" tensors differ, relative L2 0 overall without 1 buffer")
    assert differing(found) == {key: "different"}


def test_files_that_no_family_knows_are_compared_by_key(tmp_path: Path) -> None:
    a = {"encoder.mid.weight": torch.ones(3), "steps": torch.tensor([1, 2]), "old": torch.ones(1)}
    b = {"encoder.mid.weight": torch.ones(3) + 1, "steps": torch.tensor([1, 2]), "new": torch.ones(1)}
    found = diff(save(a, tmp_path / "a.pth"), save(b, tmp_path / "b.pth"))
    assert differing(found) == {"encoder.mid.weight": "different", "old": "only in A", "new": "only in B"}
    assert only(found).notes == ["no model family knows these files: compared by key, where the keys are the same"]
    assert found.words == "1 of 2 tensors differ, relative L2 0.42 overall, 1 only in A, 1 only in B"
    same = diff(GOLDEN / "alpha-controlnet.pth", GOLDEN / "alpha-controlnet.pth")
    assert same.same()


def test_files_with_nothing_in_common_are_refused(tmp_path: Path, state: State) -> None:
    model, vae = save(state, tmp_path / "a.pth"), save({"encoder.mid.weight": torch.ones(3)}, tmp_path / "vae.pth")
    with pytest.raises(InputError, match=r"vae\.pth: this is a VAE, .*; .*a\.pth is a PixArt$"):
        diff(model, vae)
    with pytest.raises(InputError, match=r"vae\.pth: this is a VAE, .*; .*a\.pth is a PixArt$"):
        diff(vae, model)
    with pytest.raises(InputError, match=r"vae\.pth: this is a VAE, .*net\.pth is a PixArt ControlNet$"):
        diff(vae, GOLDEN / "alpha-controlnet.pth")
    with pytest.raises(InputError, match=r"dit\.pt: this is a DiT, and .*a\.pth is a PixArt$"):
        diff(model, GOLDEN / "dit.pt")


def test_two_families_are_not_compared(monkeypatch: pytest.MonkeyPatch, state: State, tmp_path: Path) -> None:
    toy = converter.Family(
        "toy", "Toy", converter.KeyMapping({"fc.{} [D D]": "to.{}"}), lambda *_: None, lambda found: {}
    )
    monkeypatch.setattr(converter.families, "_REGISTERED", {"toy": toy})
    other_family = save({"fc.0.weight": torch.ones(2, 2), "fc.0.bias": torch.ones(2)}, tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"b\.pth: this is a Toy, and .*a\.pth is a PixArt"):
        diff(save(state, tmp_path / "a.pth"), other_family)
    theirs = save({"to.0.weight": torch.ones(2, 2), "to.0.bias": torch.zeros(2)}, tmp_path / "c.pth")
    assert differing(diff(other_family, theirs)) == {"fc.0.bias": "different"}


def test_every_copy_is_compared_with_what_it_is_a_copy_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = {"layers.{} [D D]": "to.{}", "emb [2 D]": converter.Copies(converter.Parameter("to.{}.emb"))}
    toy = converter.Family("toy", "Toy", converter.KeyMapping(table), lambda *_: None, lambda found: {})
    monkeypatch.setattr(converter.families, "_REGISTERED", {"toy": toy})
    state = {
        f"layers.{i}.{end}": torch.rand(*size) for i in range(3) for end, size in (("weight", (4, 4)), ("bias", [4]))
    }
    state["emb"] = torch.rand(2, 4)
    keyed = toy.keys(state)
    a, b = save(state, tmp_path / "a.pth"), save({k: t.clone() for k, t in keyed.items()}, tmp_path / "b.pth")
    for pair in ((a, b), (b, a)):
        found = diff(*pair)
        assert found.words == "identical: all 9 tensors, byte for byte"
    keyed["to.1.emb"] = keyed["to.1.emb"] + 1
    del keyed["to.2.emb"]
    found = diff(a, save(keyed, tmp_path / "c.pth"))
    assert differing(found) == {"to.1.emb": "different", "to.2.emb": "only in A"}
    assert {each.key for each in only(found).tensors if each.kind == "identical"} >= {"to.0.emb", "layers.2.bias"}


@pytest.fixture
def bad(tmp_path: Path, state: State) -> dict[str, Path]:
    (tmp_path / "page.pth").write_text("<html>404</html>")
    whole = save(state, tmp_path / "whole.pth").read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(state["t_block.1.weight"].numpy().tobytes()) + 5] ^= 4
    (tmp_path / "flipped.pth").write_bytes(flipped)
    damaged = folder(diffusers_keyed(state), tmp_path / "damaged", CONFIG)
    (damaged / "original_extras.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{" + bytes(3))
    return {
        "No such file": tmp_path / "absent.pth",
        "HTML": tmp_path / "page.pth",
        "CRC-32 mismatch": tmp_path / "flipped.pth",
        r"original_extras\.safetensors": damaged,
    }


def test_bad_files_are_refused_from_either_side(bad: dict[str, Path], state: State, tmp_path: Path) -> None:
    good = save(state, tmp_path / "good.pth")
    for words, path in bad.items():
        for pair in ((good, path), (path, good)):
            with pytest.raises(InputError, match=words) as caught:
                diff(*pair)
            assert "\n" not in str(caught.value)


def test_nothing_stays_open(bad: dict[str, Path], trained: Path, converted: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    diff(trained, converted)
    for path in bad.values():
        with pytest.raises(InputError):
            diff(trained, path)
    assert set(os.listdir("/proc/self/fd")) == before


@st.composite
def models(draw: st.DrawFn) -> State:
    """A model of a random width and dtype, some of its tensors changed or lost."""
    made = pixart(
        seed=draw(st.integers(0, 2)),
        depth=draw(st.integers(1, 2)),
        dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
    )
    for key in draw(st.lists(st.sampled_from(sorted(made)), max_size=3)):
        made[key] = made[key] + draw(st.sampled_from([0.0, 1.0, 1e-3]))
    return made


@settings(max_examples=30)
@given(a=models(), b=models(), keyed=st.booleans())
def test_laws(a: State, b: State, keyed: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is compared with itself is identical, and both directions say the same."""
    place = tmp_path_factory.mktemp("laws")
    one = save(a, place / "a.pth")
    two = folder(diffusers_keyed(b), place / "b", CONFIG) if keyed else save(b, place / "b.pth")
    for path in (one, two):
        itself = diff(path, path)
        assert (itself.verdict, differing(itself), only(itself).relative_l2) == ("identical", {}, 0.0)
    there, back = diff(one, two), diff(two, one)
    assert there.verdict == back.verdict
    assert only(there).relative_l2 == pytest.approx(only(back).relative_l2, rel=1e-12)
    turned = {"only in A": "only in B", "only in B": "only in A"}
    assert {k: turned.get(kind, kind) for k, kind in differing(there).items()} == differing(back)
    numbers = [
        {each.key: (each.numbers.differing, each.numbers.max_abs) for each in only(found).tensors if each.numbers}
        for found in (there, back)
    ]
    assert numbers[0] == numbers[1]


def test_progress_adds_up_to_what_it_announced(trained: Path, converted: Path, near: State, tmp_path: Path) -> None:
    totals: list[int] = []
    counts: list[int] = []
    lock = threading.Lock()

    def step(count: int) -> None:
        with lock:
            counts.append(count)

    def progress(total: int) -> Callable[[int], None]:
        totals.append(total)
        return step

    for b in (converted, save(near, tmp_path / "b.pth"), save(pixart(hidden_size=48), tmp_path / "c.pth")):
        diff(trained, b, progress=progress)
        assert totals.pop() == sum(counts)
        assert totals == []
        assert min(counts) > 0
        counts.clear()


def test_an_exception_of_the_caller_passes_through(trained: Path) -> None:
    def step(count: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        diff(trained, trained, progress=lambda total: step)


def test_the_result_is_json(trained: Path, converted: Path) -> None:
    made = diff(trained, converted).as_dict()
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert (made["verdict"], made["decisive"]) == ("identical", 0)
    assert made["a"]["weights"] == ["raw", "ema"]
    assert (made["a"]["layout"], made["b"]["layout"]) == ("original", "diffusers")
    raw, ema = made["comparisons"]
    assert raw["tensors"] == []
    assert list(raw["counts"]) == ["identical"]
    assert len(ema["tensors"]) == ema["counts"]["different"] > 0
    assert {each["kind"] for each in ema["tensors"]} == {"different"}
    first = ema["tensors"][0]
    assert first["a"] == first["b"] == {"shape": first["a"]["shape"], "dtype": "float32"}
    assert first["relative_l2"] > 0
    assert [each["key"] for each in raw["apart"]] == [POSITIONS]


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Peak memory of a process that compares files of 150 MB, over that of one that compares tiny ones."""
    big = {f"blocks.{i}.attn.qkv.weight": torch.randn(3 << 10, 1 << 10) for i in range(12)}
    tiny = {key: each[:2, :2].clone() for key, each in big.items()}
    pairs, peaks = [(tiny, cast(tiny, torch.float16)), (big, cast(big, torch.float16))], []
    for pair in pairs:
        paths = [str(save(state, tmp_path / f"{name}.pth")) for name, state in zip("ab", pair, strict=True)]
        code = (
            f"import resource; from converter import diff; assert diff(*{paths}).verdict == 'rounding only'; "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 12 << 10  # kB: less than one of the tensors takes, 12 MB
