"""The reference computes what the original training code's own nets computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from originals import MODELS, errors_of, golden

from converter.models.pixart.compression import Compression

TOLERANCE = 2e-5
CASES = [(name, case) for name in MODELS for case in range(len(golden(name).cases))]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_outputs_and_blocks(name: str, case: int, record_property: pytest.RecordProperty) -> None:
    model, recorded = golden(name), golden(name).cases[case]
    errors = errors_of(model.net(), model.inputs(case), recorded)
    record_property("max abs error", errors)
    assert set(errors) == {"output"} | {key for key in recorded if key.startswith("block")}
    assert max(errors.values()) < TOLERANCE, errors


def test_every_block_was_recorded() -> None:
    for name in MODELS:
        blocks = 0 if golden(name).copied_blocks else golden(name).shape.depth
        for recorded in golden(name).cases:
            assert sum(key.startswith("block") for key in recorded) == blocks


class Noted(Mapping[str, torch.Tensor]):
    """A state dict that knows which of its tensors were read."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self.state, self.read = state, set[str]()

    def __getitem__(self, key: str) -> torch.Tensor:
        self.read.add(key)
        return self.state[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


class Lazy:
    """A tensor that is read when asked for."""

    def __init__(self, state: Noted, key: str) -> None:
        self.held, self.key = state, key
        tensor = state.state[key]
        self.shape, self.dtype = (
            tensor.shape,
            SimpleNamespace(name=str(tensor.dtype).removeprefix("torch."), itemsize=tensor.itemsize),
        )

    def torch(self, out: torch.Tensor | None = None) -> torch.Tensor:
        return self.held[self.key]


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_used_and_none_before_its_stage(name: str) -> None:
    model = golden(name)
    noted = Noted(model.state)
    net = replace(model, state={key: Lazy(noted, key) for key in model.state}).net()
    assert noted.read == set()
    values = model.inputs()
    for stage in net.stages:
        before = set(noted.read)
        values |= stage.run(values, lambda name, value: None)
        if stage.name.startswith("block "):
            index = int(stage.name.removeprefix("block "))
            read = {key.removeprefix("base_model.") for key in noted.read - before}
            assert {key.split(".")[1] for key in read if key.startswith("blocks.")} == {str(index)}
            assert all(key.startswith((f"blocks.{index}.", f"controlnet.{index - 1}.")) for key in read)
    unread = {key.removeprefix("base_model.") for key in set(model.state) - noted.read}
    assert unread == {"y_embedder.y_embedding"} | ({"pos_embed"} if model.shape.multi_scale else set())


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("alpha-ms", {"num_heads": 2}),
    ("alpha-ms", {"scale": 1.0}),
    ("alpha-ms", {"input_size": 32}),
    ("alpha-ms", {"micro_condition": False}),
    ("sigma-ms", {"scale": 2.0}),
    ("sigma-kvcompress", {"compression": None}),
    ("sigma-kvcompress", {"compression": Compression("ave", 2, frozenset({2, 3}))}),
    ("sigma-qknorm", {"qk_norm": False}),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_shape_would_be_seen(name: str, wrong: dict[str, Any]) -> None:
    model = golden(name)
    for case, recorded in enumerate(model.cases):
        output = replace(model, shape=replace(model.shape, **wrong)).net().forward(model.inputs(case))
        assert float((output - recorded["output"]).abs().max()) > 10 * TOLERANCE


def test_the_control_matters() -> None:
    model = golden("alpha-controlnet")
    inputs = model.inputs()
    inputs["control"] = inputs["control"].flip(-1)
    assert float((model.net().forward(inputs) - model.cases[0]["output"]).abs().max()) > 100 * TOLERANCE
    del inputs["control"]
    with pytest.raises(KeyError, match="control"):
        model.net().forward(inputs)
