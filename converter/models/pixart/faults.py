"""Deliberate faults of PixArt that no table of keys has in it: conventions, configs, what is done to inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...families import Findings
from ...mapping import Plan
from ...nets.faults import Fault
from ...nets.net import Values
from ...nets.shared_faults import (
    SAID,
    SEEN,
    STATED,
    field_faults,
    more_heads,
    output_faults,
    position_faults,
    targets_of,
    timestep_faults,
)
from .released import MICRO
from .stock import FINAL, PATCHES, STOCK
from .table import IGNORABLE_CONFIG


def faults(findings: Findings, config: Mapping[str, Any], plan: Plan) -> list[Fault]:
    """Faults of the config, of conventions between the two code bases, and of what only a whole net shows."""
    return [
        *_config_faults(findings, config),
        *_input_faults(findings),
        *position_faults(findings, findings.value("interpolation_scale"), PATCHES),
        Fault("t_block's output where the final layer wants t", SEEN, stage="timestep embedding",
              values=lambda v: v | {"t": v["t0"][:, : v["t"].shape[1]]}),
        *output_faults(findings, targets_of(plan, 0, "R"), FINAL),
    ]  # fmt: skip


def _config_faults(findings: Findings, config: Mapping[str, Any]) -> list[Fault]:
    have = STOCK.resolve_config(config)
    scale, conditioned = have["interpolation_scale"], findings.value(MICRO)
    micro = "micro-conditions off" if conditioned else "micro-conditions where the model has none"
    return field_faults(config, STOCK.resolve_config, [
        more_heads(findings, have["num_attention_heads"]),
        ("eps 1e-5 for 1e-6", {"norm_eps": 1e-5}, STATED, False),
        ("exact GELU for tanh", {"activation_fn": "gelu"}, STATED, True),
        (f"scale {scale * 1.01:g} for {scale:g}", {"interpolation_scale": scale * 1.01}, STATED, False),
        ("half the scale", {"interpolation_scale": scale / 2}, STATED, False),
        ("twice the sample size", {"sample_size": have["sample_size"] * 2}, STATED, False),
        (micro, {"use_additional_conditions": not conditioned}, STATED if conditioned else SAID, False),
    ], IGNORABLE_CONFIG)  # fmt: skip


def _input_faults(findings: Findings) -> list[Fault]:
    """What a pipeline does wrong before the net is called."""

    def maskless(inputs: Values) -> Values:
        return {name: value for name, value in inputs.items() if name != "caption_mask"}

    def longer(inputs: Values) -> Values:
        mask = inputs["caption_mask"]
        return inputs | {"caption_mask": torch.maximum(mask, mask.roll(1, dims=1))}

    faults = [
        Fault("mask ignored", SEEN, inputs=maskless, cheap=True),
        Fault("mask one token too long", SEEN, inputs=longer),
        *timestep_faults(),
    ]
    if findings.value(MICRO):
        faults += [
            Fault("height and width swapped", SEEN, inputs=lambda v: v | {"img_hw": v["img_hw"].flip(1)}),
            Fault("aspect ratio upside down", SEEN, inputs=lambda v: v | {"aspect_ratio": 1 / v["aspect_ratio"]}),
            Fault("one size for the whole batch", SEEN,
                  inputs=lambda v: v | {"img_hw": v["img_hw"][:1].expand_as(v["img_hw"])}),
        ]  # fmt: skip
    return faults
