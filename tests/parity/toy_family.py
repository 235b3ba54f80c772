"""A family of its own: the table of the toy model. What it is compared on stands in `toy_spec`."""

from __future__ import annotations

from typing import Any

import converter

KEYS = converter.KeyMapping(
    {
        "x_in [D C]": "proj_in",
        "t_in [D 1]": "time",
        "c_in [D L]": "context_in",
        "blocks.{}.qkv [3D D]": ("blocks.{}.attn.to_q", "blocks.{}.attn.to_k", "blocks.{}.attn.to_v"),
        "blocks.{}.out [D D]": "blocks.{}.attn.to_out",
        "blocks.{}.scale [D D]": "blocks.{}.scale",
        "blocks.{}.mlp [D D]": "blocks.{}.ff",
        "head [C D]": "proj_out",
    }
)


def describe(plan: Any, state: Any, found: converter.Findings) -> None:
    for name, symbol in {"width": "D", "in_channels": "C", "context_width": "L"}.items():
        found.file(name, plan.dims.get(symbol), plan.evidence.get(symbol, "no tensor shows it"))
    found.file("depth", plan.blocks or None, f"{plan.blocks} blocks")
    found.given_or_assumed("num_attention_heads", 2, "by convention")


def config(found: converter.Findings) -> dict[str, Any]:
    names = ("in_channels", "width", "num_attention_heads", "context_width")
    return {name: found.value(name) for name in names} | {"num_layers": found.value("depth"), "sample_size": 8}


FAMILY = converter.Family(
    "toy", "Toy", KEYS, describe, config, {"num_attention_heads": int}, parity="toy_spec:PARITY"
)  # fmt: skip
