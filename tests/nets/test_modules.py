"""A module of anybody's in stages: what its own forward gives, whole and stage by stage, in every precision."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from converter.nets import Values, Weights, no_probe
from converter.nets.modules import ModuleNet


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gain = nn.Linear(6, 6), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return x + self.gain * self.fc(x + table).tanh()


class Head(nn.Module):
    """Only holds its layer: it has no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 2)


class Small(nn.Module):
    table: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head, self.scale = nn.Linear(3, 6), Head(), nn.Parameter(torch.ones(1) * 3)
        self.one, self.two = (nn.ModuleList(Block() for _ in range(count)) for count in (2, 3))
        self.register_buffer("table", torch.arange(6.0))
        self.register_buffer("own", torch.ones(6) / 3, persistent=False)
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in (*self.one, *self.two):
            x = block(x, self.table)
        return self.head.out(x * self.scale + self.get_buffer("own")) / self.count


STAGES = {"embed": ("embed", "x"), "one {}": ("one.{}", "x"), "two {}": ("two.{}", "x")}


def call(model: nn.Module, values: Values) -> Tensor:
    output: Tensor = model(values["input"])
    return output


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_forward_of_the_module_whole_and_in_stages(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, other = Small(), Small()
    state = model.state_dict()
    state["table"] = torch.randn(6)  # a buffer of the checkpoint
    model.load_state_dict(state)
    inputs = {"input": torch.randn(4, 3).to(dtype)}
    net = ModuleNet(other, Weights(state, dtype), call, STAGES)
    right = model.to(dtype)(inputs["input"])
    assert torch.equal(net.forward(inputs), right)
    assert [stage.name for stage in net.stages] == ["embed", "one 0", "one 1", "two 0", "two 1", "two 2", "output"]
    values = dict(inputs)
    with torch.inference_mode():
        for stage in net.stages:
            values |= stage.run(values, no_probe)
    assert torch.equal(values["output"], right)


def test_it_goes_on_to_other_weights_in_another_dtype() -> None:
    torch.manual_seed(0)
    one, other, x = Small(), Small(), torch.randn(4, 3)
    net = ModuleNet(Small(), Weights(one.state_dict(), torch.float64), call, STAGES)
    net.forward({"input": x.double()})
    net.on(Weights(other.state_dict(), torch.float32))
    assert torch.equal(net.forward({"input": x}), other(x))


WRONG = {
    "no such list": ({"b {}": ("blocks.{}", "x")}, "'b {}': there is no blocks in Small, which has embed, head, one"),
    "nothing in its blocks": ({"b {}": ("one.{}.zz", "x")}, "'b {}': there is no zz in Small.one.0, which has fc"),
    "no numbers": ({"b {}": ("head.{}", "x")}, "'b {}': there is no 0 in Small.head, which has out"),
    "no module": ({"b": ("embed.weight", "x")}, "'b': there is no weight in Small.embed, which has no parts"),
    "an empty list": ({"b {}": ("two.2.fc.{}", "x")}, "'b {}': Small.two.2.fc is empty"),
    "numbers alone": ({"b {}": ("{}", "x")}, "'b {}': there is no {} in Small, which has embed"),
    "the last": ({"output": ("head.out", "x")}, "several stages are called 'output': that is the last one, the rest"),
    "twice": ({"b {}": ("one.{}", "x"), "b 1": ("two.1", "x")}, "several stages are called 'b 1'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_stage_that_cannot_be_is_named(name: str) -> None:
    stages, said = WRONG[name]
    with pytest.raises(ValueError, match=re.escape(said)):
        ModuleNet(Small(), Weights({}, torch.float32), call, stages)
