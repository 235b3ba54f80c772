"""How far the PixArt is from the DiT where nothing holds them together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from init_helpers import DEPTH, HEADS, SMALL, golden, origin
from makers import save

from converter.initialisation.nets import CaseMaker
from converter.initialisation.options import TIMESTEP
from converter.initialisation.timesteps import GRID, STEPS, Distances, measure
from converter.models.dit.net import DiTShape, dit
from converter.models.pixart.net import PixArtShape, pixart
from converter.nets import Weights


def test_they_touch_at_500_and_nowhere_else() -> None:
    with origin() as opened:
        found = measure(opened)
    assert len(STEPS) == 21
    assert (STEPS[0], STEPS[-1]) == (0, 999)
    for values in found.distances.values():
        at = dict(zip(found.timesteps, values, strict=True))
        assert at.pop(TIMESTEP) < 1e-6
        assert min(at.values()) > 0.1


SIZES = {"depth": DEPTH, "hidden_size": 48, "num_heads": HEADS, "patch_size": 2, "out_channels": 8, "input_size": 16}


@pytest.mark.parametrize("none", ["unconditional", "zero"])
def test_against_both_nets_built_by_hand(none: str) -> None:
    """One timestep of each choice, through the reference nets, in torch's own words."""
    t, index = STEPS[3], 3
    with origin(replace(SMALL, none=none)) as opened:
        found = measure(opened)
        latent = torch.from_numpy(
            CaseMaker(opened).case("timesteps", *GRID, list(STEPS), alike=True).arrays["latent"][:1]
        )
        state = golden()
        if none == "zero":
            state["y_embedder.embedding_table.weight"][-1] = 0
        own = DiTShape(multi_scale=True, **SIZES)
        inputs = {"latent": latent, "timestep": torch.tensor([t]), "caption": torch.zeros(1, 3, 32)}
        theirs = dit(Weights(state, torch.float32), own).forward(inputs | {"class_label": torch.tensor([10])})
        new = PixArtShape(multi_scale=True, in_channels=4, **SIZES)
        for choice, values in found.distances.items():
            held = {key: tensor.torch() for key, tensor in opened.with_t_block(choice).state().items()}
            ours = pixart(Weights(held, torch.float32), new).forward(inputs)
            assert float((ours - theirs).norm() / theirs.norm()) == pytest.approx(values[index], rel=1e-4)


def test_where_all_layers_are_one_the_mean_is_that_one(tmp_path: Path) -> None:
    """And without a class the blocks are then the DiT's at every timestep; only the final layer is not."""
    state = golden()
    for i in range(DEPTH):
        for end in ("weight", "bias"):
            key = f"blocks.{{}}.adaLN_modulation.1.{end}"
            state[key.format(i)] = state[key.format(0)].clone()
    with origin(replace(SMALL, none="zero"), save(state, tmp_path / "d.pt")) as opened:
        found = measure(opened)
        assert max(float(opened.modulation.table(i).abs().max()) for i in range(DEPTH)) < 1e-6
    assert found.nearer == "mean"
    assert found.mean["mean"] < found.mean["paper"]


def test_it_is_said_which_is_nearer() -> None:
    found = Distances((0, 500), {"mean": [0.5, 0.0], "paper": [0.3, 0.0]})
    assert found.nearer == "paper"
    assert found.words == (
        "over 2 timesteps --t_block paper is nearer to the DiT: its output is on average 0.15 apart (relative L2), "
        "with mean 0.25"
    )
    made = found.as_dict()
    assert json.loads(json.dumps(made)) == made | {"timesteps": [0, 500]}
    assert made["mean"] == {"mean": 0.25, "paper": 0.15}
