"""Deliberate faults of DiT that no table of keys has in it: conventions, configs, what is done to inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...families import Findings
from ...mapping import Plan
from ...nets.faults import BOTH, Fault
from ...nets.shared_faults import (
    SEEN,
    STATED,
    field_faults,
    more_heads,
    output_faults,
    position_faults,
    targets_of,
    timestep_faults,
)
from .stock import FINAL, PATCHES, STOCK
from .table import IGNORABLE_CONFIG


def faults(findings: Findings, config: Mapping[str, Any], plan: Plan) -> list[Fault]:
    """Faults of the config, of conventions between the two code bases, and of what only a whole net shows."""
    have = STOCK.resolve_config(config)
    return [
        *field_faults(config, STOCK.resolve_config, [
            more_heads(findings, have["num_attention_heads"]),
            ("eps 1e-5 for 1e-6", {"norm_eps": 1e-5}, STATED, True),
            ("exact GELU for tanh", {"activation_fn": "gelu"}, STATED, True),
            ("twice the sample size", {"sample_size": have["sample_size"] * 2}, STATED, False),
            ("a class more", {"num_embeds_ada_norm": have["num_embeds_ada_norm"] + 1}, STATED, False),
        ], IGNORABLE_CONFIG),
        *timestep_faults(),
        *_class_faults(findings),
        *position_faults(findings, 1.0, PATCHES),
        *_condition_faults(findings, plan),
        *output_faults(findings, targets_of(plan, 0, "R"), FINAL),
    ]  # fmt: skip


def _class_faults(findings: Findings) -> list[Fault]:
    """What a pipeline does wrong to the class."""
    null, name = findings.value("num_classes"), "class_label"
    if not null:
        return []  # there is one row, which is the class of everything
    return [
        Fault("classes off by one", SEEN, inputs=lambda v: v | {name: (v[name] + 1) % (null + 1)}),
        Fault("no class for any sample", SEEN, inputs=lambda v: v | {name: v[name] * 0 + null}),
        Fault("classes of the samples mixed up", SEEN, inputs=lambda v: v | {name: v[name].roll(1)}),
    ]


def _condition_faults(findings: Findings, plan: Plan) -> list[Fault]:
    """What goes wrong between timestep, class and the layers that they modulate."""

    def halves(tensor: Tensor) -> Tensor:
        return torch.cat(tensor.chunk(2, dim=1)[::-1], dim=1)

    last = f"block {findings.value('depth') - 1}"
    waves = targets_of(plan, -1, "256")  # the sinusoids, in the shape pattern of the table
    fed = {target: (target, halves) for target in waves if not target.endswith(".bias")}
    return [
        Fault("sines before cosines of the timestep", BOTH, fed),
        Fault("last layer not told of the class", SEEN, stage=last, cheap=True,
              values=lambda v: v | {"y0": torch.zeros_like(v["y0"])}),
        Fault("last layer not told of the timestep", SEEN, stage=last, cheap=True,
              values=lambda v: v | {"t0": torch.zeros_like(v["t0"])}),
    ]  # fmt: skip
