"""The catalogue of deliberate faults: what is in it, and that each does what its name says and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from opened import NAMES, State, golden, session

from converter.mapping import KeyMapping, Sparse
from converter.models.pixart.parity import PARITY
from converter.nets.faults import CONFIG, FUNCTION, WEIGHTS, Fault, with_fault
from converter.parity.catalogue import catalogue
from converter.parity.sides import UNAVAILABLE, Sides

Catalogues = dict[str, tuple[Sides, list[Fault]]]


@pytest.fixture(scope="module")
def catalogues(tmp_path_factory: pytest.TempPathFactory) -> Catalogues:
    found = {}
    for name in NAMES:
        with session(
            golden(name, tmp_path_factory.mktemp("faults")), multi_scale_train=name != "alpha-fixed"
        ) as opened:
            sides = opened.sides
            faults = catalogue(sides.plan, PARITY)
            found[name] = (sides, faults + list(PARITY.faults(sides.findings, opened.config, sides.plan)))
    return found


def named(faults: list[Fault]) -> dict[str, Fault]:
    return {fault.name: fault for fault in faults}


BOTH = {WEIGHTS, FUNCTION}
# What a conversion of PixArt is known, or feared, to do wrong -> the names of the faults that do it.
FEARED = {
    "q and k": [f"attn1.to_q and attn1.to_k swapped in {where}" for where in ("block 2", "all blocks")],
    "k and v": [f"attn1.to_k and attn1.to_v swapped in {where}" for where in ("block 2", "all blocks")],
    "q and v": [f"attn1.to_q and attn1.to_v swapped in {where}" for where in ("block 2", "all blocks")],
    "cross k and v": [f"attn2.to_k and attn2.to_v swapped in {where}" for where in ("block 2", "all blocks")],
    "rows of a block's table": [
        f"rows {i} and {j} of 6 of scale_shift_table of block 2 swapped" for i, j in ((0, 1), (0, 3), (4, 5))
    ],
    "rows of t_block": [
        f"rows {i} and {j} of 6 of adaln_single.linear of the model swapped" for i, j in ((0, 1), (0, 3), (4, 5))
    ],
    "rows of the final table": ["rows 0 and 1 of 2 of scale_shift_table of the model swapped"],
    "blocks": ["blocks off by one", "blocks 0 and 2 swapped"],
    "EMA among raw": ["block 2 of the EMA among raw weights"],
    "half": ["all weights rounded to half", "attn1.to_q of block 2 rounded to half"],
    "scaling": ["all weights scaled by 1 %", "proj_out of the model scaled by 1 %"],
    "transposed": [
        f"{name} of {where} transposed"
        for name, where in (
            ("attn1.to_q", "block 2"),
            ("attn1.to_out.0", "block 2"),
            ("attn2.to_q", "block 2"),
            ("attn2.to_k", "block 2"),
            ("attn2.to_out.0", "block 2"),
            ("caption_projection.linear_2", "the model"),
            ("adaln_single.emb.timestep_embedder.linear_2", "the model"),
        )
    ],
    "patches": [
        "pos_embed.proj of the model with its last axes transposed",
        "pixels of every patch transposed",
        "output rows with the channel before the patch position",
    ],
    "biases": [
        f"{what} of {name}"
        for name in (
            "attn1.to_q of block 2",
            "attn1.to_k of block 2",
            "attn1.to_v of block 2",
            "attn1.to_out.0 of block 2",
            "attn2.to_q of block 2",
            "attn2.to_k of block 2",
            "attn2.to_v of block 2",
            "attn2.to_out.0 of block 2",
            "ff.net.0.proj of block 2",
            "ff.net.2 of block 2",
            "pos_embed.proj of the model",
            "caption_projection.linear_1 of the model",
            "caption_projection.linear_2 of the model",
            "adaln_single.emb.timestep_embedder.linear_1 of the model",
            "adaln_single.emb.timestep_embedder.linear_2 of the model",
            "adaln_single.linear of the model",
            "proj_out of the model",
        )
        for what in ("bias", "last bit of the bias")
    ],
    "positions": ["positional table transposed", "positional table left out", "half the scale"],
    "config": ["eps 1e-5 for 1e-6", "exact GELU for tanh", "8 heads for 4"],
    "inputs": ["mask ignored", "timestep one too late", "timestep one too early"],
    "missing": ["num_layers missing from the config", "num_attention_heads missing from the config"],
    "lost": ["block 2 lost", "one tensor lost", "a NaN in a weight"],
}
FEARED_OF = {
    "alpha-ms": [
        "adaln_single.emb.resolution_embedder.linear_1 and adaln_single.emb.aspect_ratio_embedder.linear_1 of the "
        "model swapped",
        "adaln_single.emb.resolution_embedder.linear_2 and adaln_single.emb.aspect_ratio_embedder.linear_2 of the "
        "model swapped",
        "micro-conditions off",
        "height and width swapped",
        "scale 2.02 for 2",
        "interpolation_scale missing from the config",
        "use_additional_conditions missing from the config",
    ],
    "sigma-ms": ["scale 1.01 for 1", "micro-conditions where the model has none"],
    "alpha-fixed": ["scale 1.01 for 1"],
}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_feared_is_in_it(catalogues: Catalogues, name: str) -> None:
    sides, faults = catalogues[name]
    assert len(faults) >= 60
    assert len(named(faults)) == len(faults)
    last = sides.plan.blocks - 1
    wanted = [text for texts in FEARED.values() for text in texts] + FEARED_OF[name]
    wanted = [
        text.replace("block 2", f"block {last}").replace("blocks 0 and 2", f"blocks 0 and {last}") for text in wanted
    ]
    wanted = [f"{text} dropped" if text.startswith("bias of") else text for text in wanted]
    assert sorted(set(wanted) - named(faults).keys()) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_spoilt_by_some_fault(catalogues: Catalogues, name: str) -> None:
    """Of the last block and of the model, each key by itself, so that no row of the table is out of reach."""
    sides, faults = catalogues[name]
    last = f"transformer_blocks.{sides.plan.blocks - 1}."
    alone = {key for fault in faults if len(fault.weights) == 1 for key in fault.weights}
    reached = {key for fault in faults if len(fault.weights) <= 4 for key in fault.weights}
    for key in sides.converted:
        if key.startswith(last) or not key.startswith("transformer_blocks."):
            assert key in reached, key
            # Of what is split only the first part is spoilt by itself.
            split = re.search(r"attn1.to_[kv]|attn2.to_v", key)
            assert key in alone or (split and not key.endswith(".bias")), key


@pytest.mark.parametrize("name", NAMES)
def test_faults_are_well_formed(catalogues: Catalogues, name: str) -> None:
    sides, faults = catalogues[name]
    for fault in faults:
        assert fault.expected, fault.name
        assert fault.expected <= {WEIGHTS, CONFIG, FUNCTION}, fault.name
        keys = {key for key, (origin, _) in fault.weights.items() for key in (key, origin)} | fault.drop
        assert keys <= sides.converted.keys(), fault.name
        acts = [fault.weights, fault.drop, fault.config, fault.inputs, fault.values]
        assert sum(bool(act) for act in acts) == 1, fault.name
        assert bool(fault.stage) == bool(fault.values), fault.name
        if fault.weights or fault.drop:
            assert WEIGHTS in fault.expected, fault.name  # what touches a byte is seen byte by byte
        assert (CONFIG in fault.expected) == bool(fault.config), fault.name
    cheap = [fault for fault in faults if fault.cheap]
    assert 8 <= len(cheap) < 20
    assert {phase for fault in cheap for phase in fault.expected} == {WEIGHTS, CONFIG, FUNCTION}


@pytest.mark.parametrize("name", NAMES)
def test_every_fault_of_weights_changes_something(catalogues: Catalogues, name: str) -> None:
    """A fault that is none would be a hole in the self-test, or a false alarm of it."""
    sides, faults = catalogues[name]
    for fault in faults:
        spoilt = with_fault(sides.converted, fault)
        for key in fault.weights:
            was, now = sides.converted[key].torch(), spoilt[key].torch()
            assert (now.shape, now.dtype) == (was.shape, was.dtype), f"{fault.name}: {key}"
            assert not torch.equal(now, was), f"{fault.name}: {key}"
            assert spoilt[key].read() == now.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def test_the_same_faults_of_another_block(catalogues: Catalogues) -> None:
    sides, _ = catalogues["sigma-ms"]
    first = named(catalogue(sides.plan, PARITY, 0))
    assert "attn1.to_q and attn1.to_k swapped in block 0" in first
    keys = first["attn1.to_q and attn1.to_k swapped in block 0"].weights
    assert {key.split(".")[1] for key in keys} == {"0"}
    assert len(first) == len(catalogue(sides.plan, PARITY))


def test_a_bias_of_keys_is_not_asked_of_the_outputs(catalogues: Catalogues) -> None:
    _, faults = catalogues["sigma-ms"]
    by_name = named(faults)
    for part in ("attn1.to_k", "attn2.to_k"):
        assert by_name[f"bias of {part} of block 2 dropped"].expected == {WEIGHTS}
    for part in ("attn1.to_q", "attn1.to_v", "attn2.to_v", "attn2.to_q"):
        assert by_name[f"bias of {part} of block 2 dropped"].expected == BOTH


# Faults of PixArt's own.


def values_fault(faults: list[Fault], name: str) -> Fault:
    return named(faults)[name]


def test_pixels_of_every_patch_transposed(catalogues: Catalogues) -> None:
    fault = values_fault(catalogues["sigma-ms"][1], "pixels of every patch transposed")
    assert fault.values
    output = torch.arange(2 * 4 * 6, dtype=torch.float64).reshape(1, 2, 4, 6)
    turned = fault.values({"output": output})["output"]
    for row in range(0, 4, 2):
        for column in range(0, 6, 2):
            patch = output[..., row : row + 2, column : column + 2]
            assert torch.equal(turned[..., row : row + 2, column : column + 2], patch.transpose(-1, -2))
    assert torch.equal(fault.values({"output": turned})["output"], output)


def test_epsilon_and_variance_swapped(catalogues: Catalogues) -> None:
    fault = values_fault(catalogues["sigma-ms"][1], "epsilon and variance swapped")
    assert fault.values
    output = torch.arange(8.0).reshape(1, 8, 1, 1)
    assert fault.values({"output": output})["output"].flatten().tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


def test_positional_faults_take_the_right_table_off(catalogues: Catalogues) -> None:
    """Of what the net makes, the patches without any table are left; transposed twice it is right again."""
    sides, faults = catalogues["sigma-ms"]
    by_name = named(faults)
    left_out, turned = by_name["positional table left out"], by_name["positional table transposed"]
    assert left_out.values
    assert turned.values
    hidden = sides.findings.value("hidden_size")
    zeros = {"latent": torch.zeros(1, 4, 8, 12), "x": torch.zeros(1, 24, hidden, dtype=torch.float64)}
    table = -left_out.values(zeros)["x"]
    from converter.nets.patches import position_table

    side = sides.findings.value("sample_size") // 2
    own = torch.from_numpy(position_table((4, 6), hidden, side, float(sides.findings.value("interpolation_scale"))))
    apart = float((table - own).norm() / own.norm())
    # The fault's table is of the larger side, and so only close for what is not square; the angles are the right kind.
    assert apart < 0.6
    square = {"latent": torch.zeros(1, 4, 12, 12), "x": torch.zeros(1, 36, hidden, dtype=torch.float64)}
    own = torch.from_numpy(position_table((6, 6), hidden, side, float(sides.findings.value("interpolation_scale"))))
    assert float((-left_out.values(square)["x"] - own).norm() / own.norm()) < 1e-6
    wrong = turned.values(square | {"x": own})["x"].reshape(6, 6, hidden)
    assert torch.allclose(wrong, own.reshape(6, 6, hidden).transpose(0, 1), atol=1e-6)


def test_inputs_are_copied_and_not_changed(catalogues: Catalogues) -> None:
    sides, faults = catalogues["alpha-ms"]
    case = PARITY.cases(sides.findings, "quick", {})[0]
    for fault in faults:
        if fault.inputs:
            inputs = case.tensors(torch.float64)
            spoilt = fault.inputs(inputs)
            right = case.tensors(torch.float64)
            assert all(torch.equal(inputs[name], right[name]) for name in right), fault.name
            assert spoilt.keys() != right.keys() or any(not torch.equal(spoilt[n], right[n]) for n in right), fault.name


def test_configs_are_copied_and_not_changed(catalogues: Catalogues) -> None:
    _, faults = catalogues["alpha-ms"]
    config = {"norm_eps": 1e-6, "num_layers": 3}
    for fault in faults:
        if fault.config:
            fault.config(config)
            assert config == {"norm_eps": 1e-6, "num_layers": 3}, fault.name


def spoilt_state(sides: Sides, fault: Fault) -> State:
    made_of = with_fault(sides.converted, fault)
    return {key: made_of[key].torch() for key in made_of}


def test_output_rows(catalogues: Catalogues) -> None:
    sides, faults = catalogues["sigma-ms"]
    fault = named(faults)["output rows with the channel before the patch position"]
    assert set(fault.weights) == {"proj_out.weight", "proj_out.bias"}
    right = sides.converted["proj_out.bias"].torch().reshape(4, 8)
    assert torch.equal(spoilt_state(sides, fault)["proj_out.bias"].reshape(8, 4), right.T)


def test_blocks_off_by_one(catalogues: Catalogues) -> None:
    sides, faults = catalogues["sigma-ms"]
    moved = spoilt_state(sides, named(faults)["blocks off by one"])
    for key, tensor in moved.items():
        if key.startswith("transformer_blocks."):
            _, number, rest = key.split(".", 2)
            origin = f"transformer_blocks.{(int(number) + 1) % sides.plan.blocks}.{rest}"
            assert torch.equal(tensor, sides.converted[origin].torch())
        else:
            assert torch.equal(tensor, sides.converted[key].torch())


def test_a_table_of_one_block_has_no_faults_between_blocks(tmp_path: Path) -> None:
    from makers import pixart
    from opened import small

    with session(small(tmp_path, pixart(depth=1)), image_size=128) as opened:
        names = named(catalogue(opened.sides.plan))
    assert not [name for name in names if "off by one" in name or "EMA" in name]
    assert "attn1.to_q and attn1.to_k swapped in block 0" in names


def test_what_no_output_shows_is_asked_of_the_weights_alone() -> None:
    """Of a linear attention the scale of its keys, and of products of channels their order; of a 1 x 1 kernel nothing
    is left to be transposed."""
    shapes = {"norm_q": (8,), "norm_k": (8,), "out": (8, 8), "conv": (8, 8, 1, 1)}
    table = {"norm_q.weight [D]": "q.weight", "norm_k.weight [D]": "k.weight", "out [D D]": "proj"}
    keys = KeyMapping(table | {"conv [D D 1 1]": "ff"})
    state = {f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    plan = keys.plan(state | {"out.bias": torch.ones(8), "conv.bias": torch.ones(8)})
    swap, scale = "q.weight and k.weight of the model swapped", "q.weight of the model scaled by 1 %"
    model = replace(UNAVAILABLE, invisible_scales=("q",), invisible_swaps=(("k", "q"),))
    plain, told = named(catalogue(plan)), named(catalogue(plan, model))
    assert plain.keys() == told.keys()
    assert {name for name in plain if plain[name].expected != told[name].expected} == {swap, scale}
    assert plain[swap].expected == plain[scale].expected == BOTH
    assert told[swap].expected == told[scale].expected == {WEIGHTS}
    assert "proj of the model transposed" in plain
    assert not [name for name in plain if name.startswith("ff") and "transposed" in name]


def test_a_row_of_some_blocks_has_faults_in_the_last_of_its_own() -> None:
    """And none in a block that it, or its whole stack, does not have."""
    keys = KeyMapping(
        {"b.{}.q [D D]": "t.{}.q", "b.{}.kv [2D D]": Sparse(("t.{}.k", "t.{}.v")), "s.{}.o [D D]": "u.{}.o"}
    )
    shapes = {
        f"{path}.{end}": (8, 4) if path.endswith("kv") else (4, 4) for path in PATHS for end in ("weight", "bias")
    }
    plan = keys.plan({key: torch.zeros(shape[: 1 if key.endswith("bias") else 2]) for key, shape in shapes.items()})
    names = named(catalogue(plan))
    assert "k and v swapped in block 1 of b" in names
    assert "last bit of q of block 3 of b" in names
    assert "last bit of o of block 1 of s" in names
    of_the_last = named(catalogue(plan, block=3))
    assert "last bit of q of block 3 of b" in of_the_last
    assert not [name for name in of_the_last if name.startswith(("k and v swapped in block", "last bit of o"))]


PATHS = [f"b.{i}.q" for i in range(4)] + [f"b.{i}.kv" for i in range(2)] + [f"s.{i}.o" for i in range(2)]


def test_a_gate_and_a_value_are_swapped_in_both_layers_that_they_go_through() -> None:
    keys = KeyMapping({"b.{}.up [2F D]": "t.{}.up", "b.{}.conv [2F 1]": "t.{}.conv", "b.{}.down [D F]": "t.{}.down"})
    shapes = {"up": (12, 4), "conv": (12, 1), "down": (4, 6)}
    state = {
        f"b.0.{name}.{end}": torch.randn(shape[: 2 - (end == "bias")])
        for name, shape in shapes.items()
        for end in ("weight", "bias")
    }
    fault = named(catalogue(keys.plan(state)))["rows 0 and 1 of 2 of up and conv of block 0 swapped"]
    assert fault.undoes_itself
    assert fault.weights.keys() == {key.replace("b.", "t.") for key in state if "down" not in key}
    _, change = fault.weights["t.0.conv.bias"]
    assert change
    assert torch.equal(change(state["b.0.conv.bias"]), state["b.0.conv.bias"].roll(6))
