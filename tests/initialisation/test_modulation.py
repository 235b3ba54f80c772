"""The re-parameterisation against its formulae, in torch's float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from init_helpers import DEPTH, HIDDEN, SMALL, begun, embedded, golden, layer, origin

from converter.initialisation import modulation
from converter.initialisation.modulation import Modulation
from converter.models.dit.net import DiTShape, dit
from converter.nets import Weights, no_probe

CHOICES = [(none, t_block) for none in ("unconditional", "zero") for t_block in ("mean", "paper")]


def told(state: dict[str, torch.Tensor], none: str) -> torch.Tensor:
    """What the layers of the DiT hear at t = 500 where there is no class."""
    row = state["y_embedder.embedding_table.weight"][-1].double()
    return embedded(state, 500.0) + (row if none == "unconditional" else 0)


@pytest.mark.parametrize(("none", "t_block"), CHOICES)
def test_every_vector_is_the_dits_at_500(none: str, t_block: str) -> None:
    state, e = golden(), embedded(golden(), 500.0)
    made = Modulation(state, DEPTH, replace(SMALL, none=none, t_block=t_block))
    weight, bias = made.t_block
    shared = layer({"t_block.1.weight": weight, "t_block.1.bias": bias}, "t_block.1", e).reshape(6, -1)
    for i in range(DEPTH):
        wanted = layer(state, f"blocks.{i}.adaLN_modulation.1", told(state, none)).reshape(6, -1)
        assert (made.table(i) + shared - wanted).abs().max() < 1e-12
    wanted = layer(state, "final_layer.adaLN_modulation.1", told(state, none)).reshape(2, -1)
    assert (made.final_table + e - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(("none", "t_block"), CHOICES)
def test_what_is_stored_is_that_rounded_once(none: str, t_block: str, tmp_path: Path) -> None:
    options = replace(SMALL, none=none, t_block=t_block)
    stored, made = begun(tmp_path, options), Modulation(golden(), DEPTH, options)
    for i in range(DEPTH):
        assert torch.equal(stored[f"blocks.{i}.scale_shift_table"], made.table(i).float())
    assert torch.equal(stored["final_layer.scale_shift_table"], made.final_table.float())
    assert torch.equal(stored["t_block.1.weight"], made.t_block[0])


def test_the_embedded_timestep_is_the_nets_own() -> None:
    shape = DiTShape(depth=DEPTH, hidden_size=HIDDEN, num_heads=4, patch_size=2, out_channels=8, input_size=16)
    stage = dit(Weights(golden(), torch.float64), shape).stages[1]
    nets = stage.run({"timestep": torch.tensor([500])}, no_probe)["t0"][0]
    assert torch.equal(Modulation(golden(), DEPTH, SMALL).embedded, nets)


def test_the_mean_is_the_mean() -> None:
    state, made = golden(), Modulation(golden(), DEPTH, SMALL)
    for end, found in zip(("weight", "bias"), made.t_block, strict=True):
        layers = torch.stack([state[f"blocks.{i}.adaLN_modulation.1.{end}"].double() for i in range(DEPTH)])
        assert torch.equal(found, layers.mean(0).float())


def test_the_paper_has_no_bias() -> None:
    weight, bias = Modulation(golden(), DEPTH, replace(SMALL, t_block="paper")).t_block
    assert weight.std() == pytest.approx(0.02, rel=0.05)
    assert not bias.any()


def test_however_few_rows_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Modulation(golden(), DEPTH, SMALL)
    tables, shared = [whole.table(i) for i in range(DEPTH)], whole.t_block
    monkeypatch.setattr(modulation, "ROWS", 7)  # which does not divide 288
    with origin() as opened:  # lazy tensors, of which slices are read
        made = Modulation(opened.analysis.checkpoint, DEPTH, SMALL)
        assert all(torch.equal(one, other) for one, other in zip(made.t_block, shared, strict=True))
        apart = [float((made.table(i) - table).abs().max()) for i, table in enumerate(tables)]
    assert max(apart) < 1e-14


def test_the_mean_is_nearest_over_all_blocks_together() -> None:
    """What the docstring says of the first part of the distance, on random directions."""
    state = golden()
    layers = torch.stack([state[f"blocks.{i}.adaLN_modulation.1.weight"].double() for i in range(DEPTH)])
    draw = torch.Generator().manual_seed(0)

    def apart(shared: torch.Tensor, direction: torch.Tensor) -> float:
        return float(((shared - layers) @ direction).square().sum())

    for _ in range(8):
        direction = torch.randn(HIDDEN, generator=draw, dtype=torch.float64)
        other = layers.mean(0) + 0.01 * torch.randn(layers[0].shape, generator=draw, dtype=torch.float64)
        assert apart(layers.mean(0), direction) < apart(other, direction)
