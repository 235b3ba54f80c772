"""The reference DiT computes what the original net computed, and what its formulae say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import formulae
import numpy as np
import pytest
import torch
from makers import GOLDEN, dit, recorded
from originals import errors_of

from converter.models.dit.net import DiTShape
from converter.models.dit.net import dit as reference
from converter.nets import Staged, Values, Weights
from converter.nets.layers import sinusoid

TOLERANCE = 2e-5
State = dict[str, torch.Tensor]
INPUTS = ("latent", "timestep", "class_label")


@dataclass(frozen=True)
class Original:
    """A state dict, what it is the state of, and inputs (with the outputs, if golden) by case."""

    state: Mapping[str, Any]
    shape: DiTShape
    cases: tuple[State, ...]

    def net(self, dtype: torch.dtype = torch.float32) -> Staged:
        return reference(Weights(self.state, dtype), self.shape)

    def inputs(self, case: int = 0) -> Values:
        return {name: self.cases[case][name] for name in INPUTS}


@cache
def golden() -> Original:
    told, cases = recorded("dit")
    shape = DiTShape(
        depth=told["depth"],
        hidden_size=told["hidden_size"],
        num_heads=told["num_heads"],
        patch_size=told["patch_size"],
        out_channels=8,
        input_size=told["input_size"],
    )
    state = torch.load(GOLDEN / "dit.pt", weights_only=True)
    return Original(state, shape, tuple(cases))


def random(grid: tuple[int, int] = (4, 4), batch: int = 2, multi_scale: bool = False, **sizes: Any) -> Original:
    """A small model, of the original's one size or (with `multi_scale`) run on a grid of another."""
    sizes = {"depth": 2, "hidden_size": 24, "patch_size": 2, "in_channels": 4, "learn_sigma": True} | sizes
    side = sizes["patch_size"]
    sizes["input_size"] = (8 if multi_scale else grid[0]) * side
    out = sizes["in_channels"] * (2 if sizes["learn_sigma"] else 1)
    shape = DiTShape(
        depth=sizes["depth"], hidden_size=24, num_heads=4, patch_size=side, out_channels=out,
        input_size=sizes["input_size"], multi_scale=multi_scale,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(1)
    case = {
        "latent": torch.randn(batch, sizes["in_channels"], grid[0] * side, grid[1] * side, generator=draw),
        "timestep": torch.tensor([999, 3, 431][:batch]),
        "class_label": torch.tensor([6, 2, 0][:batch]),
    }
    return Original(dit(**sizes), shape, (case,))


# The recordings.


@pytest.mark.parametrize("case", [0, 1])
def test_outputs_and_blocks(case: int, record_property: pytest.RecordProperty) -> None:
    model, recorded = golden(), golden().cases[case]
    errors = errors_of(model.net(), model.inputs(case), recorded)
    record_property("max abs error", errors)
    assert set(errors) == {"output", "block0", "block1", "block2"}
    assert max(errors.values()) < TOLERANCE, errors


WRONG: tuple[dict[str, Any], ...] = ({"num_heads": 2}, {"multi_scale": True, "scale": 2.0})


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_shape_would_be_seen(wrong: dict[str, Any]) -> None:
    model = golden()
    for case, tensors in enumerate(model.cases):
        output = replace(model, shape=replace(model.shape, **wrong)).net().forward(model.inputs(case))
        assert float((output - tensors["output"]).abs().max()) > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["timestep", "class_label"])
def test_timestep_and_class_matter(name: str) -> None:
    model = golden()
    inputs = model.inputs() | {name: model.inputs()[name].flip(0)}
    assert float((model.net().forward(inputs) - model.cases[0]["output"]).abs().max()) > 100 * TOLERANCE


def test_every_weight_is_used_and_none_before_its_stage() -> None:
    model, read = golden(), set[str]()

    class Lazy:
        def __init__(self, key: str) -> None:
            self.key, self.shape = key, model.state[key].shape
            self.dtype = SimpleNamespace(name="float32", itemsize=4)

        def torch(self, out: torch.Tensor | None = None) -> torch.Tensor:
            read.add(self.key)
            return model.state[self.key]

    net = replace(model, state={key: Lazy(key) for key in model.state}).net()
    assert read == set()
    values = model.inputs()
    for stage in net.stages:
        before = set(read)
        values |= stage.run(values, lambda name, value: None)
        if stage.name.startswith("block "):
            assert all(key.startswith(f"blocks.{stage.name[6:]}.") for key in read - before)
    assert read == set(model.state)


# What flows.


def test_stages_and_what_they_add() -> None:
    model = random(depth=3)
    net, seen, heard = model.net(), {}, dict[str, torch.Tensor]()
    net.forward(model.inputs(), lambda stage, made: seen.__setitem__(stage, sorted(made)))
    assert seen == {
        "patch embedding": ["x"],
        "timestep embedding": ["t0", "t1", "t2"],
        "class embedding": ["y0", "y1", "y2"],
        **{f"block {i}": ["x"] for i in range(3)},
        "final layer": ["output"],
    }
    made = net.stages[1].run(model.inputs(), heard.__setitem__)
    assert list(heard) == ["block 0", "block 1", "block 2"]
    assert made["t2"] is made["t0"]


def test_each_block_listens_to_its_own_condition_and_the_last_layer_to_the_first() -> None:
    model = random(depth=2)
    values = model.inputs()
    stages = {stage.name: stage for stage in model.net(torch.float64).stages}
    for name in ("patch embedding", "timestep embedding", "class embedding"):
        values |= stages[name].run(values, lambda name, value: None)
    for stage, heeded in (("block 0", "0"), ("block 1", "1"), ("final layer", "0")):
        truth = stages[stage].run(values, lambda name, value: None)
        for name in ("t0", "t1", "y0", "y1"):
            other = stages[stage].run(values | {name: values[name] + 1}, lambda name, value: None)
            same = all(torch.equal(other[key], truth[key]) for key in truth)
            assert same == (name[1] != heeded), (stage, name)


def test_the_timestep_is_never_rounded_to_the_models_dtype() -> None:
    model = random(batch=1)
    net = model.net(torch.bfloat16)
    made = [
        net.stages[1].run({"timestep": torch.tensor([t])}, lambda name, value: None)["t0"] for t in (999, 1000)
    ]  # both are 1000 in bfloat16
    assert not torch.equal(*made)
    assert made[0].dtype == torch.bfloat16


def test_the_original_takes_one_size_only() -> None:
    model = random()
    inputs = model.inputs() | {"latent": torch.zeros(2, 4, 8, 12)}
    with pytest.raises(ValueError, match=r"16 positions, and a grid of 4 x 6 was given"):
        model.net().forward(inputs)
    assert replace(model, shape=replace(model.shape, multi_scale=True)).net().forward(inputs).shape == (2, 8, 8, 12)


# The formulae, once more: NumPy, float64, loops.


def one(number: float) -> formulae.Array:
    return sinusoid(torch.tensor([number], dtype=torch.float64))[0].numpy()


def computed(shape: DiTShape, grid: tuple[int, int]) -> formulae.Array:
    """The positional table of a grid, which is float32 as the stored one is."""
    base = shape.input_size // shape.patch_size
    rows, columns = (range(count) for count in grid)
    places = [formulae.place(r, c, grid, shape.hidden_size, base, 1.0) for r in rows for c in columns]
    return np.array(places).astype(np.float32).astype(np.float64)


def forward(state: formulae.State, shape: DiTShape, inputs: formulae.State) -> formulae.Array:
    """Sample by sample (arXiv 2212.09748, figure 3, "DiT block with adaLN-Zero")."""
    made = []
    for latent, t, label in zip(inputs["latent"], inputs["timestep"], inputs["class_label"], strict=True):
        side = shape.patch_size
        grid = (latent.shape[1] // side, latent.shape[2] // side)
        x = formulae.patches(
            state, shape, latent, computed(shape, grid) if shape.multi_scale else state["pos_embed"][0]
        )
        hidden = formulae.silu(formulae.affine(state, "t_embedder.mlp.0", one(float(t))))
        c = formulae.affine(state, "t_embedder.mlp.2", hidden) + state["y_embedder.embedding_table.weight"][int(label)]
        for i in range(shape.depth):
            own = formulae.below(state, f"blocks.{i}.")
            rows6 = formulae.affine(own, "adaLN_modulation.1", formulae.silu(c)).reshape(6, -1)
            hidden = formulae.norm(x, 1e-6) * (1 + rows6[1]) + rows6[0]
            q, k, v = np.split(formulae.affine(own, "attn.qkv", hidden), 3, axis=-1)
            attended = formulae.attention(q, k, v, shape.num_heads)
            x = x + rows6[2] * formulae.affine(own, "attn.proj", attended)
            hidden = formulae.norm(x, 1e-6) * (1 + rows6[4]) + rows6[3]
            wide = formulae.gelu(formulae.affine(own, "mlp.fc1", hidden))
            x = x + rows6[5] * formulae.affine(own, "mlp.fc2", wide)
        shift, scale = formulae.affine(state, "final_layer.adaLN_modulation.1", formulae.silu(c)).reshape(2, -1)
        tokens = formulae.affine(state, "final_layer.linear", formulae.norm(x, 1e-6) * (1 + scale) + shift)
        made.append(formulae.image(tokens, grid, side, shape.out_channels))
    return np.array(made)


def difference(model: Original) -> float:
    """Relative to the largest element of the output."""
    inputs = model.inputs()
    got = model.net(torch.float64).forward(inputs | {"latent": inputs["latent"].double()}).numpy()
    wide = [{key: t.double().numpy() for key, t in tensors.items()} for tensors in (model.state, inputs)]
    expected = forward(wide[0], model.shape, wide[1])
    assert got.shape == expected.shape
    assert np.isfinite(expected).all()
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"patch_size": 4, "in_channels": 3, "learn_sigma": False, "grid": (3, 3)},
        {"patch_size": 8, "grid": (2, 2)},
        {"multi_scale": True, "grid": (5, 3)},
        {"depth": 1, "batch": 1, "grid": (1, 1)},
    ],
    ids=str,
)
def test_random_models_agree_with_their_formulae(changes: dict[str, Any]) -> None:
    assert difference(random(**changes)) < 1e-13


def test_the_golden_model_agrees_with_its_formulae() -> None:
    assert difference(golden()) < 1e-13
