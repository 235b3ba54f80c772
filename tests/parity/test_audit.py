"""The weight audit: every byte, whatever no output would show, and in words where it went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import SMALL, pixart
from memory_tensors import MemoryTensor, memory_tensors
from opened import State, golden, keyed, sides
from safetensors.torch import save_file

from converter.checkpoint import open_checkpoint
from converter.errors import UsageError
from converter.families import Family, Findings
from converter.mapping import Copies, KeyMapping
from converter.nets.faults import with_fault
from converter.parity import misplaced
from converter.parity.audit import audit
from converter.parity.catalogue import catalogue
from converter.parity.misplaced import equal
from converter.parity.sides import Sides
from converter.reports.report import FAIL, PASS, Check, Phase

EXTRA = "y_embedder.y_embedding"
LAST = f"transformer_blocks.{SMALL['depth'] - 1}."
TOLD = {"image_size": 8 * SMALL["input_size"], "multi_scale_train": True}


@pytest.fixture(scope="module")
def state() -> State:
    return pixart(micro_conditions=True, seed=3)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, state: State) -> Path:
    path = tmp_path_factory.mktemp("audit") / "model.safetensors"
    save_file(state, path)
    return path


@pytest.fixture
def right(original: Path, state: State) -> Iterator[Sides]:
    """A right conversion of it, in memory, to be spoilt."""
    sidecar = {"y_embedder.y_embedding": state["y_embedder.y_embedding"].clone()}
    with sides(original, keyed(state), sidecar=sidecar, **TOLD) as made:
        yield made


def put(made: Sides, key: str, tensor: torch.Tensor) -> None:
    made.converted[key] = MemoryTensor(tensor)


def failed(made: Sides) -> list[str]:
    found = audit(made)
    assert found.verdict == (FAIL if list(found.failed) else PASS)
    return [check.words for check in found.failed]


def of(state: State, path: Path, converted: State | None = None, cast: str = "", **given: object) -> Phase:
    """The audit of another original."""
    save_file(state, path)
    with sides(path, keyed(state) if converted is None else converted, cast, **{**TOLD, **given}) as made:
        return audit(made)


def check(phase: Phase, what: str) -> Check:
    (found,) = [check for check in phase.checks if check.what == what]
    return found


# Right ones.


def test_a_right_conversion(right: Sides) -> None:
    steps: list[int] = []
    found = audit(right, steps.append)
    assert found.verdict == PASS
    moves = len(right.plan.moves)
    numbers = sum(int(np.prod(right.original[m.sources[0]].shape)) for m in right.plan.moves)
    assert found.words == (
        f"all {len(right.original)} tensors of the original accounted for: {moves} in the model byte for byte "
        f"({numbers / 1e6:.4g} M numbers), 1 in the sidecar, 1 recomputed; none missing, none extra"
    )
    assert sum(steps) == moves
    assert found.notes == []


@pytest.mark.parametrize("name", ["alpha-ms", "sigma-ms"])
def test_the_golden_models_from_disk(name: str, tmp_path: Path) -> None:
    pair = golden(name, tmp_path)
    with (
        open_checkpoint(pair.folder) as theirs,
        sides(pair.original, {}, multi_scale_train=True) as made,
    ):
        lazy = Sides(made.family, made.findings, made.plan, made.original, theirs)
        assert audit(lazy).verdict == PASS
        spoilt = {key: tensor.torch().clone() for key, tensor in theirs.items()}
        spoilt["proj_out.bias"][-1] += 1e-7
        wrong = Sides(made.family, made.findings, made.plan, made.original, memory_tensors(spoilt))
        (words,) = [check.words for check in audit(wrong).failed]
        assert words.startswith("proj_out.bias differs in 1 of 32 elements, by up to ")


# Wrong bytes.


def test_one_bit_in_any_tensor(right: Sides, state: State) -> None:
    """Whichever tensor and wherever in it: that tensor is named, alone, with how many elements are wrong."""
    dice = np.random.default_rng(0)
    for key, tensor in keyed(state).items():
        flat = tensor.flatten().view(torch.uint8).clone()
        flat[int(dice.integers(len(flat)))] ^= 1 << int(dice.integers(8))
        put(right, key, flat.view(tensor.dtype).reshape(tensor.shape))
        (words,) = failed(right)
        assert words.startswith(f"{key} differs in 1 of {tensor.numel()} elements")
        put(right, key, tensor)
    assert failed(right) == []


def test_a_bias_that_no_output_shows(right: Sides, state: State) -> None:
    key = f"{LAST}attn1.to_k.bias"
    put(right, key, torch.zeros_like(keyed(state)[key]))
    (words,) = failed(right)
    assert words.startswith(f"{key} differs in {state['blocks.0.attn.proj.bias'].numel()} of ")


def test_how_much_is_wrong(right: Sides, state: State) -> None:
    tensor = keyed(state)["proj_out.weight"].clone()
    tensor.view(-1)[:3] += 0.25
    put(right, "proj_out.weight", tensor)
    found = audit(right)
    assert found.words == (
        f"1 of {len(right.converted)} converted tensors are not the original's: "
        f"proj_out.weight differs in 3 of {tensor.numel()} elements, by up to 0.25"
    )


def test_infinite_and_not_a_number_are_told(right: Sides, state: State) -> None:
    tensor = keyed(state)["proj_out.bias"].clone()
    tensor[0], tensor[1] = float("nan"), float("inf")
    put(right, "proj_out.bias", tensor)
    (words,) = failed(right)
    assert words.startswith("proj_out.bias differs in 2 of 32 elements")
    assert words.endswith("2 not finite")
    put(right, "proj_out.bias", torch.full_like(tensor, float("nan")))
    assert failed(right) == ["proj_out.bias differs in 32 of 32 elements, 32 not finite"]


SWAPS = [
    (f"{LAST}attn1.to_q.weight", f"{LAST}attn1.to_k.weight"),
    (f"{LAST}attn2.to_k.bias", f"{LAST}attn2.to_v.bias"),
    ("transformer_blocks.0.attn1.to_v.weight", f"{LAST}attn1.to_v.weight"),
    (f"{LAST}attn1.to_out.0.weight", f"{LAST}attn2.to_out.0.weight"),
    (
        "adaln_single.emb.resolution_embedder.linear_1.weight",
        "adaln_single.emb.aspect_ratio_embedder.linear_1.weight",
    ),
]


@pytest.mark.parametrize(("one", "other"), SWAPS)
def test_swapped_tensors(right: Sides, state: State, one: str, other: str) -> None:
    converted = keyed(state)
    put(right, one, converted[other])
    put(right, other, converted[one])
    assert sorted(failed(right)) == sorted(
        [f"{one} holds what belongs in {other}", f"{other} holds what belongs in {one}"]
    )


def test_one_tensor_twice(right: Sides, state: State) -> None:
    put(right, f"{LAST}attn1.to_q.weight", keyed(state)[f"{LAST}attn1.to_v.weight"])
    assert failed(right) == [f"{LAST}attn1.to_q.weight holds what belongs in {LAST}attn1.to_v.weight"]


def test_the_same_fault_in_all_blocks_is_one_line(right: Sides, state: State) -> None:
    for block in range(SMALL["depth"]):
        put(right, f"transformer_blocks.{block}.ff.net.2.bias", torch.zeros(SMALL["hidden_size"]))
    lines = failed(right)
    assert len(lines) <= SMALL["depth"]
    assert all("ff.net.2.bias differs in 24 of 24 elements" in line for line in lines)


def test_many_wrong_tensors_are_not_each_held_against_all_others(
    right: Sides, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the wrong set of weights every tensor of a large model is wrong; reading all of it for each takes hours."""
    compared = []
    monkeypatch.setattr(misplaced, "equal", lambda one, other: compared.append(1) or equal(one, other))
    for key, tensor in keyed(state).items():
        put(right, key, tensor + 1)
    assert len(failed(right)) > 20
    assert len(compared) < len(right.converted)
    put(right, "proj_out.weight", keyed(state)["proj_out.weight"])
    swapped = f"{LAST}attn1.to_q.weight"
    put(right, swapped, keyed(state)[f"{LAST}attn1.to_k.weight"])
    assert f"{swapped} holds what belongs in {LAST}attn1.to_k.weight" in failed(right)


def test_only_some_keys(right: Sides, state: State) -> None:
    """What was compared before need not be again, but keys have to be there all the same."""
    one, other = f"{LAST}attn1.to_q.weight", "proj_out.weight"
    put(right, one, keyed(state)[one] + 1)
    assert audit(right, only={other}).verdict == PASS
    assert [check.what for check in audit(right, only={one, other}).failed] == [one]
    del right.converted[other]
    assert audit(right, only=set()).verdict == FAIL


def test_signs_of_zero_are_bits(state: State, tmp_path: Path) -> None:
    zeros = state | {"final_layer.linear.bias": torch.zeros(32)}
    assert of(zeros, tmp_path / "a").verdict == PASS
    wrong = keyed(zeros)
    wrong["proj_out.bias"] = -torch.zeros(32)
    assert of(zeros, tmp_path / "a", wrong).verdict == FAIL


def test_nans_are_compared_as_bits(state: State, tmp_path: Path) -> None:
    """The same NaN is equal, another is not, whatever == says of either."""

    def nan(payload: int) -> torch.Tensor:
        bits = state["final_layer.linear.bias"].view(torch.int32).clone()
        bits[5] = 0x7FC00000 | payload
        return bits.view(torch.float32)

    made = state | {"final_layer.linear.bias": nan(7)}
    assert of(made, tmp_path / "a").verdict == PASS
    wrong = keyed(made)
    wrong["proj_out.bias"] = nan(8)
    (found,) = of(made, tmp_path / "a", wrong).failed
    assert found.words.startswith("proj_out.bias differs in 1 of 32 elements")


# Wrong keys and shapes.


def test_one_missing(right: Sides) -> None:
    del right.converted["proj_out.bias"]
    lines = failed(right)
    assert len(lines) == 1
    assert "proj_out.bias" in lines[0]
    assert "missing" in lines[0]


def test_one_part_missing(right: Sides) -> None:
    key = f"{LAST}attn1.to_k.weight"
    del right.converted[key]
    assert any("missing" in line and key in line for line in failed(right))


def test_one_extra(right: Sides) -> None:
    put(right, "proj_out.scale", torch.zeros(1))
    assert any("proj_out.scale" in line for line in failed(right))


def test_a_group_that_the_original_does_not_have(state: State, tmp_path: Path) -> None:
    plain = {key: tensor for key, tensor in state.items() if not key.startswith(("csize", "ar_"))}
    found = of(plain, tmp_path / "a", keyed(state))
    assert found.verdict == FAIL
    assert {check.words.partition(":")[0] for check in found.failed} == {"extra"}
    assert any("resolution_embedder.linear_1.weight" in check.words for check in found.failed)
    found = of(state, tmp_path / "b", keyed(plain))
    assert found.verdict == FAIL
    assert {check.words.partition(":")[0] for check in found.failed} == {"missing"}


def test_the_last_block_lost(right: Sides) -> None:
    """A shorter model is consistent in itself."""
    for key in [key for key in right.converted if key.startswith(LAST)]:
        del right.converted[key]
    lines = failed(right)
    assert lines
    assert all(line.startswith("missing: ") and LAST in line for line in lines)


def test_one_block_too_many(right: Sides, state: State) -> None:
    more = f"transformer_blocks.{SMALL['depth']}."
    for key, tensor in keyed(state).items():
        if key.startswith(LAST):
            put(right, key.replace(LAST, more), tensor)
    lines = failed(right)
    assert lines
    assert all(line.startswith("extra: ") and more in line for line in lines)


def test_a_wrong_shape(right: Sides, state: State) -> None:
    put(right, "caption_projection.linear_1.weight", state["y_embedder.y_proj.fc1.weight"].T)
    assert any("caption_projection.linear_1.weight" in line and "[16, 24]" in line for line in failed(right))
    put(right, "caption_projection.linear_1.weight", state["y_embedder.y_proj.fc1.weight"].flatten())
    assert failed(right)


def test_a_model_of_another_width(right: Sides) -> None:
    """All shapes agree among themselves, and are not the original's."""
    for key, tensor in keyed(pixart(micro_conditions=True, hidden_size=48)).items():
        put(right, key, tensor)
    assert any(" has shape " in line and ", not " in line for line in failed(right))


# Dtypes.


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_rounded_as_declared(state: State, tmp_path: Path, kind: str) -> None:
    dtype = getattr(torch, kind)
    converted = {key: tensor.to(dtype) for key, tensor in keyed(state).items()}
    found = of(state, tmp_path / "a", converted, kind)
    assert found.verdict == PASS
    assert f"rounded to {kind}" in found.words

    undeclared = of(state, tmp_path / "a", converted)
    assert undeclared.verdict == FAIL
    assert f"is {kind}, and the original is float32; --cast {kind} if that was meant" in undeclared.words
    other = {"float16": "bfloat16", "bfloat16": "float16"}[kind]
    assert of(state, tmp_path / "a", converted, other).verdict == FAIL

    # One element rounded the other way.
    wrong = dict(converted)
    bits = converted["proj_out.weight"].view(torch.int16).clone()
    bits.view(-1)[17] ^= 1
    wrong["proj_out.weight"] = bits.view(dtype)
    (line,) = of(state, tmp_path / "a", wrong, kind).failed
    assert line.words.startswith(f"proj_out.weight differs in 1 of {bits.numel()} elements")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_float64_is_rounded_as_torch_rounds_it(tmp_path: Path, kind: str) -> None:
    """By way of float32, which of a few elements in a million gives the other neighbour."""
    dtype = getattr(torch, kind)
    exact = {k: t.double() for k, t in pixart(seed=3).items()}
    numbers = exact["blocks.0.mlp.fc1.weight"]
    tie = 1 + {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}[kind]
    numbers.view(-1)[:2] = torch.tensor([tie, tie + 2.0**-40], dtype=torch.float64)
    exact["blocks.0.mlp.fc2.weight"].view(-1)[0] = 1e300  # beyond any of them
    converted = {key: tensor.to(dtype) for key, tensor in keyed(exact).items()}
    found = of(exact, tmp_path / "a", converted, kind)
    assert found.verdict == PASS, found.words
    assert converted["transformer_blocks.0.ff.net.2.weight"].isinf().any()


def test_swapped_and_rounded(state: State, tmp_path: Path) -> None:
    converted = {key: tensor.half() for key, tensor in keyed(state).items()}
    one, other = f"{LAST}attn1.to_q.weight", f"{LAST}attn1.to_k.weight"
    converted[one], converted[other] = converted[other], converted[one]
    words = [check.words for check in of(state, tmp_path / "a", converted, "float16").failed]
    assert sorted(words) == sorted([f"{one} holds what belongs in {other}", f"{other} holds what belongs in {one}"])


def test_what_is_zero_is_no_other_tensor(state: State, tmp_path: Path) -> None:
    zeros = state | {"blocks.0.mlp.fc2.bias": torch.zeros(SMALL["hidden_size"])}
    wrong = keyed(zeros) | {f"{LAST}ff.net.2.bias": torch.zeros(SMALL["hidden_size"])}
    (line,) = of(zeros, tmp_path / "a", wrong).failed
    assert line.words.startswith(f"{LAST}ff.net.2.bias differs in 24 of 24 elements, by up to ")
    assert line.words.endswith("; it is zero everywhere")


def test_declared_and_not_rounded(state: State, tmp_path: Path) -> None:
    """Whole or in part: what was said of the conversion is not so."""
    found = of(state, tmp_path / "a", keyed(state), "float16")
    assert found.verdict == FAIL
    assert "was declared to be rounded to float16" in found.words
    converted = {key: tensor.half() for key, tensor in keyed(state).items()}
    converted["proj_out.weight"] = keyed(state)["proj_out.weight"]
    (line,) = of(state, tmp_path / "b", converted, "float16").failed
    assert line.what == "proj_out.weight"


def test_a_sidecar_beside_a_rounded_model(original: Path, state: State) -> None:
    """It may be kept as it is, or rounded like the rest; never rounded otherwise."""
    converted = {key: tensor.half() for key, tensor in keyed(state).items()}
    for kept, verdict in ((state[EXTRA], PASS), (state[EXTRA].half(), PASS), (state[EXTRA].bfloat16(), FAIL)):
        with sides(original, converted, "float16", {EXTRA: kept}, **TOLD) as made:
            assert audit(made).verdict == verdict
    with sides(original, converted, "float16", {EXTRA: state[EXTRA].half().float()}, **TOLD) as made:
        assert audit(made).verdict == FAIL


def test_truncated_and_not_rounded(state: State, tmp_path: Path) -> None:
    converted = {key: tensor.to(torch.bfloat16) for key, tensor in keyed(state).items()}
    bits = keyed(state)["proj_out.weight"].view(torch.int32) >> 16
    converted["proj_out.weight"] = bits.to(torch.int16).view(torch.bfloat16)
    (line,) = of(state, tmp_path / "a", converted, "bfloat16").failed
    assert line.what == "proj_out.weight"


def test_rounded_and_widened_again(state: State, tmp_path: Path) -> None:
    """The dtype is right and half of the digits are gone."""
    converted = keyed(state)
    converted["proj_out.weight"] = converted["proj_out.weight"].half().float()
    (line,) = of(state, tmp_path / "a", converted).failed
    assert line.what == "proj_out.weight"


def test_one_dtype_among_others(right: Sides, state: State) -> None:
    key = f"{LAST}attn1.to_k.weight"
    put(right, key, keyed(state)[key].double())
    assert failed(right) == [f"{key} is float64, and the original is float32"]
    put(right, key, keyed(state)[key])
    put(right, "proj_out.bias", keyed(state)["proj_out.bias"].double())
    assert failed(right) == ["proj_out.bias is float64, and the original is float32; --cast float64 if that was meant"]


def test_a_half_original_is_held_to_its_own_bytes(state: State, tmp_path: Path) -> None:
    half = {key: tensor.to(torch.bfloat16) for key, tensor in state.items()}
    assert of(half, tmp_path / "a").verdict == PASS
    assert of(half, tmp_path / "a", keyed({k: v.float() for k, v in half.items()})).verdict == FAIL


# What does not travel.


def test_the_sidecar(right: Sides, state: State) -> None:
    found = check(audit(right), EXTRA)
    assert found.passed
    assert "kept in the sidecar, byte for byte" in found.words
    wrong = state[EXTRA].clone()
    wrong[3, 3] += 1e-6
    right.sidecar[EXTRA] = MemoryTensor(wrong)
    assert [line.partition(",")[0] for line in failed(right)] == [
        f"{EXTRA} of the sidecar differs in 1 of {wrong.numel()} elements"
    ]
    right.sidecar[EXTRA] = MemoryTensor(wrong[:5])
    assert failed(right) == [f"{EXTRA} of the sidecar has shape [5, 16], not [12, 16]"]


def test_no_sidecar_is_said_and_no_failure(right: Sides, original: Path, state: State) -> None:
    del right.sidecar[EXTRA]
    wanted = [f"{EXTRA} has no place in the converted model or in a sidecar"]
    found = audit(right)
    assert (found.verdict, found.notes) == (PASS, wanted)
    with sides(original, keyed(state), **TOLD) as made:
        found = audit(made)
        assert (found.verdict, found.notes) == (PASS, wanted)


def test_a_stray_of_old_conversions(right: Sides, state: State) -> None:
    put(right, "caption_projection.y_embedding", state[EXTRA])
    found = audit(right)
    assert found.verdict == PASS
    assert found.notes == ["caption_projection.y_embedding is left over from an old conversion, and not used"]


def test_a_table_that_the_target_computes(right: Sides) -> None:
    found = check(audit(right), "pos_embed")
    assert found.passed
    assert found.words == "pos_embed is what the target computes, bit for bit"


def test_a_table_that_is_another(state: State, tmp_path: Path) -> None:
    """The multi-scale class never uses it; the fixed one adds it to every input."""
    wrong = state | {"pos_embed": state["pos_embed"].clone()}
    wrong["pos_embed"][0, 40, 5] += 0.5
    said = {"interpolation_scale": 1.0}
    found = of(wrong, tmp_path / "a", **said)
    assert found.verdict == PASS
    assert check(found, "pos_embed").passed is None
    assert any(note.startswith("pos_embed is no sin-cos table") for note in found.notes)
    plain = {key: tensor for key, tensor in wrong.items() if not key.startswith(("csize", "ar_"))}
    found = of(plain, tmp_path / "b", **said, multi_scale_train=False)
    assert found.verdict == FAIL
    assert check(found, "pos_embed").passed is False
    assert "the converted model would be another one" in found.words


def test_a_table_off_by_rounding(state: State, tmp_path: Path) -> None:
    near = state | {"pos_embed": state["pos_embed"].clone()}
    near["pos_embed"][0, 40, 5] += 1e-7
    found = of(near, tmp_path / "a")
    assert found.verdict == PASS
    assert any(note.startswith("pos_embed is the sin-cos table up to rounding") for note in found.notes)


def test_a_table_that_its_scale_was_read_from_and_is_none(state: State, tmp_path: Path) -> None:
    wrong = state | {"pos_embed": state["pos_embed"].clone()}
    wrong["pos_embed"][0, 40, 5] += 0.5
    with pytest.raises(UsageError, match="`interpolation_scale` is needed"):
        of(wrong, tmp_path / "a")


def test_no_table(state: State, tmp_path: Path) -> None:
    bare = {key: tensor for key, tensor in state.items() if key != "pos_embed"}
    found = of(bare, tmp_path / "a", interpolation_scale=1.0)
    assert found.verdict == PASS
    assert all(check.statistic != "recomputed" for check in found.checks)


# Copies.


def test_every_copy_has_to_be_the_original(tmp_path: Path) -> None:
    """A family may keep one tensor in every block of the target: one copy that is wrong is named, by itself."""
    keys = KeyMapping(
        {"t_block [6D D]": Copies("layers.{}.table"), "blocks.{}.qkv [3D D]": tuple(f"layers.{{}}.{n}" for n in "qkv")}
    )
    state = {"t_block.weight": torch.randn(12, 2), "t_block.bias": torch.randn(12)}
    for i in range(3):
        state |= {f"blocks.{i}.qkv.weight": torch.randn(6, 2), f"blocks.{i}.qkv.bias": torch.randn(6)}
    family = Family("copies", "Copies", keys, lambda *arguments: None, lambda found: {})
    save_file(state, tmp_path / "a.safetensors")
    with open_checkpoint(tmp_path / "a.safetensors") as original:
        plan = keys.plan(original)
        made = Sides(family, Findings({}), plan, original, memory_tensors(keys(state)))
        assert audit(made).verdict == PASS
        put(made, "layers.1.table.weight", state["t_block.weight"] + 1)
        (line,) = audit(made).failed
        assert line.words.startswith("layers.1.table.weight differs in 24 of 24 elements")
        put(made, "layers.1.table.weight", state["t_block.weight"])
        faults = catalogue(plan)
        assert len({fault.name for fault in faults}) == len(faults)
        for fault in faults:
            spoilt = {key: held.torch() for key, held in with_fault(made.converted, fault).items()}
            wrong = replace(made, converted=memory_tensors(spoilt))
            assert (audit(wrong).verdict == FAIL) == ("weights" in fault.expected), fault.name


def test_only_what_is_equal_is_proven(right: Sides) -> None:
    wrong = "transformer_blocks.0.attn1.to_k.weight"
    put(right, wrong, right.converted[wrong].torch() + 1)
    assert failed(right)
    keys = {key for key, held in right.converted.items() if held in right.proven}
    assert keys
    assert not [
        key for key in keys if key.startswith("transformer_blocks.0.attn1.to_") and "weight" in key and "out" not in key
    ]
    for part, (origin, start) in right.proven.items():
        own = part.torch().flatten()
        assert torch.equal(origin.torch().flatten()[start : start + own.numel()], own)
