"""A model that nobody here knows is compared by one short file: what its library makes of it is a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from opened import Pair
from safetensors.torch import load_file, save_file
from toy_spec import STOCK

from converter import convert
from converter.nets import Weights, no_probe
from converter.nets.inputs import Case, noise
from converter.nets.stock import StockStage
from converter.parity import check
from converter.reports.report import FAIL, PASS, Report

HERE = Path(__file__).parent
FAMILY = str(HERE / "toy_family.py")
FILE = "diffusion_pytorch_model.safetensors"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    at = tmp_path_factory.mktemp("toy")
    width, drawn = 16, torch.Generator().manual_seed(3)
    shapes = {"x_in": (width, 4), "t_in": (width, 1), "c_in": (width, 6), "head": (4, width)}
    for i in range(3):
        shapes |= {f"blocks.{i}.{name}": (width, width) for name in ("out", "scale", "mlp")}
        shapes |= {f"blocks.{i}.qkv": (3 * width, width)}
    state = {f"{name}.weight": torch.randn(shape, generator=drawn) * 0.3 for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.randn(shape[0], generator=drawn) * 0.3 for name, shape in shapes.items()}
    save_file(state, at / "toy.safetensors")
    convert(at / "toy.safetensors", at / "out", family=FAMILY)
    return Pair(at / "toy.safetensors", at / "out")


def compared(pair: Pair, at: Path, change: Callable[[State], None], **fields: object) -> Report:
    at.mkdir()
    state = load_file(pair.model / FILE)
    change(state)
    save_file(state, at / FILE, metadata={"format": "pt"})
    (at / "config.json").write_text(json.dumps(json.loads((pair.model / "config.json").read_text()) | fields))
    return check(pair.original, at, family=FAMILY)


def faulty(report: Report) -> dict[str, list[str]]:
    made = report.phase("function")
    assert made
    rows = made.detail["localisation"]["stages"]
    return {row["name"]: [part["name"] for part in row["inside"] if part["faulty"]] for row in rows if row["faulty"]}


def test_a_right_conversion_passes_every_phase(pair: Pair) -> None:
    report = check(pair.original, pair.folder, family=FAMILY, profile="full", self_test="full")
    assert report.verdict == PASS, report.reason
    assert [phase.verdict for phase in report.phases] == [PASS] * 6
    made = report.phase("function")
    assert made
    assert made.detail["blocks"]["stages"] == ["image", "time", "caption", "block 0", "block 1", "block 2", "head"]


def test_a_swap_is_named_with_its_place_and_its_repair(pair: Pair, tmp_path: Path) -> None:
    def swap(state: State) -> None:
        for end in ("weight", "bias"):
            q, k = (f"blocks.1.attn.to_{part}.{end}" for part in "qk")
            state[q], state[k] = state[k], state[q]

    report = compared(pair, tmp_path / "out", swap)
    assert report.verdict == FAIL
    assert faulty(report) == {"block 1": ["attn1 q", "attn1 k", "ff out"]}
    made = report.phase("function")
    assert made
    assert any("block 1 is right again with attn.to_q and attn.to_k swapped" in note for note in made.notes)


def test_a_config_that_is_wrong_is_wrong_where_it_acts(pair: Pair, tmp_path: Path) -> None:
    report = compared(pair, tmp_path / "out", lambda state: None, eps=1e-2)
    assert list(faulty(report)) == ["block 0", "block 1", "block 2"]


def test_a_table_of_modules_that_the_forward_does_not_use(pair: Pair) -> None:
    unused = replace(STOCK, stages=(StockStage("idle", "blocks.0.attn.to_out.idle", ("x",)), *STOCK.stages))
    state = load_file(pair.model / FILE)
    config = json.loads((pair.model / "config.json").read_text())
    case = Case("a", {"latent": noise(1, 1, 4, 8, 8), "timestep": noise(2, 1), "caption": noise(3, 1, 3, 6)})
    right = STOCK.net(config, Weights(state, torch.float32))
    # A module that is not there makes no stage.
    assert [stage.name for stage in unused.net(config, right.weights).stages] == [stage.name for stage in right.stages]
    idle = replace(STOCK, post_load=with_idle, stages=(StockStage("idle", "idle", ("i",)), *STOCK.stages))
    net = idle.net(config, right.weights)
    values = case.tensors(torch.float32)
    assert torch.equal(net.forward(values), right.forward(values))
    with pytest.raises(ValueError, match="the library's forward does not use the modules of the stage 'idle'"):
        net.stages[0].run(values, no_probe)


def with_idle(model: torch.nn.Module) -> torch.nn.Module:
    model.idle = torch.nn.Identity()
    return model


def test_it_takes_no_more_than_a_short_file() -> None:
    assert len((HERE / "toy_spec.py").read_text().splitlines()) < 120
