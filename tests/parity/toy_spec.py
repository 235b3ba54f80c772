"""All that parity needs to know of a model: its original net, where the library has its stages, inputs, faults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from converter.families import Findings
from converter.nets import Probe, Stage, Staged, Values, Weights
from converter.nets.faults import FUNCTION, Fault
from converter.nets.inputs import Case, noise
from converter.nets.layers import linear, self_attention
from converter.nets.sampler import Sampler
from converter.nets.spec import ParitySpec
from converter.nets.stock import Stock, StockStage

STOCK = Stock(
    kind="toy_library:ToyTransformer2DModel",
    arguments={"sample": "latent", "timestep": "timestep", "context": "caption"},
    stages=(
        StockStage("image", "proj_in", ("x",)),
        StockStage("time", "time", ("t",)),
        StockStage("caption", "context_in", ("c",)),
        StockStage("block {}", "blocks.{}", ("c", "x")),
        StockStage("head", "", ("output",)),
    ),
    probes={"attn1 q": ("attn.to_q", "output"), "attn1 k": ("attn.to_k", "output"), "ff out": ("ff", "output")},
)


def original(found: Findings, weights: Weights) -> Staged:
    """The net as it was trained, in stages of the same names."""
    heads = found.value("num_attention_heads")

    def block(i: int) -> Stage:
        def run(values: Values, probe: Probe) -> Values:
            own = weights.under(f"blocks.{i}.")
            count = values["c"].shape[1]
            x = torch.cat([values["c"], values["x"] + places(values["x"]) * (i == 0)], dim=1)
            own |= {f"proj.{end}": own[f"out.{end}"] for end in ("weight", "bias")}
            scale = 1 + linear(own, "scale", values["t"])[:, None]
            x = x + self_attention(own, F.layer_norm(x, x.shape[-1:], eps=1e-6) * scale, heads, probe=probe)
            out = linear(own, "mlp", F.layer_norm(x, x.shape[-1:], eps=1e-6).tanh())
            probe("ff out", out)
            x = x + out
            return {"c": x[:, :count], "x": x[:, count:]}

        return Stage(f"block {i}", run)

    def head(values: Values, probe: Probe) -> Values:
        return {"output": linear(weights, "head", values["x"]).transpose(1, 2).unflatten(2, values["latent"].shape[2:])}

    return Staged(
        [
            Stage("image", lambda v, probe: {"x": linear(weights, "x_in", v["latent"].flatten(2).transpose(1, 2))}),
            Stage("time", lambda v, probe: {"t": linear(weights, "t_in", v["timestep"][:, None] / 1000)}),
            Stage("caption", lambda v, probe: {"c": linear(weights, "c_in", v["caption"])}),
            *(block(i) for i in range(found.value("depth"))),
            Stage("head", head),
        ]
    )


def places(x: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 1, x.shape[1])[:, None].to(x)


def cases(found: Findings, profile: str, left: Mapping[str, Any]) -> list[Case]:
    latent, caption = noise(1, 2, found.value("in_channels"), 8, 8), noise(2, 2, 3, found.value("context_width"))
    return [Case("guidance", {"latent": latent, "timestep": np.float32([999, 321]), "caption": caption})]


def faults(found: Findings, config: Mapping[str, Any], plan: Any) -> list[Fault]:
    def late(inputs: Values) -> Values:
        return inputs | {"timestep": inputs["timestep"] + 1}

    return [Fault("timestep one too late", frozenset({FUNCTION}), inputs=late, cheap=True)]


PARITY = ParitySpec(
    original,
    STOCK.net,
    cases,
    parts=lambda found: {"epsilon": slice(0, found.value("in_channels"))},
    resolve_config=STOCK.resolve_config,
    faults=faults,
    invisible_biases=("attn.to_k",),
    sampler=Sampler("guidance"),
    loaded=STOCK.loaded,
)
