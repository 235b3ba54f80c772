"""A family of one's own in one file: two stacks of blocks, scale and shift in another order, buffers as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import converter
from converter import Computed, Copies, Extra, KeyMapping, Parameter, Reorder

D, S = "double_blocks.{}.", "single_blocks.{}."
T, U = "transformer_blocks.{}.", "single_transformer_blocks.{}."


def rope(found: converter.Findings) -> torch.Tensor:
    """(D / 2) frequencies."""
    half = found.value("width") // 2
    return 1.0 / 10000 ** (torch.arange(half, dtype=torch.float32) / half)


def grid(found: converter.Findings) -> np.ndarray[Any, Any]:
    """(2, 3, D): positions of rows and columns."""
    return np.arange(6 * found.value("width"), dtype=np.float64).reshape(2, 3, -1) / 7


KEYS = KeyMapping({
    "img_in [D C]":           "x_embedder",
    "time_in [D D]":          Copies(U + "norm.emb"),
    D + "attn.qkv [3D D]":    (T + "to_q", T + "to_k", T + "to_v"),
    D + "mod [2D D]":         Reorder(T + "norm.linear", (1, 0)),
    S + "linear1 [3D D]":     Reorder((U + "gate", U + "proj", U + "value"), (2, 0, 1)),
    S + "table [6 D]":        Reorder(Parameter(U + "table"), (1, 0, 2, 4, 3, 5)),
    S + "freqs [D/2]":        Computed(rope),
    "final.mod [2D D]":       Reorder("norm_out.linear", (1, 0)),
    "pos.freqs [D/2]":        Computed(rope),
    "pos.grid [2 3 D]":       Computed(grid),
    "null [D]":               Extra(),
})  # fmt: skip


def describe(plan: Any, state: Any, found: converter.Findings) -> None:
    found.file("width", plan.dims.get("D"), plan.evidence.get("D", "no tensor shows it"))
    for name, stack in (("depth", "double_blocks"), ("single_depth", "single_blocks")):
        found.file(name, plan.stacks[stack], f"{plan.stacks[stack]} of {stack}")


def config(found: converter.Findings) -> dict[str, Any]:
    return {"_class_name": "Toy"} | {name: found.value(name) for name in ("width", "depth", "single_depth")}


FAMILY = converter.Family("toy", "Toy", KEYS, describe, config, marks=("time_in", "x_embedder"))


def state(double: int = 3, single: int = 5, width: int = 8) -> dict[str, torch.Tensor]:
    """A checkpoint of random weights with the true buffers."""
    random = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "img_in": (width, 4),
        "time_in": (width, width),
        "final.mod": (2 * width, width),
    }
    shapes |= {f"double_blocks.{i}.attn.qkv": (3 * width, width) for i in range(double)}
    shapes |= {f"double_blocks.{i}.mod": (2 * width, width) for i in range(double)}
    shapes |= {f"single_blocks.{i}.linear1": (3 * width, width) for i in range(single)}
    made = {f"{key}.weight": torch.randn(shape, generator=random) for key, shape in shapes.items()}
    made |= {f"{key}.bias": torch.randn(shape[:1], generator=random) for key, shape in shapes.items()}
    made |= {f"single_blocks.{i}.table": torch.randn(6, width, generator=random) for i in range(single)}
    found = converter.Findings({})
    found.file("width", width, "said")
    made |= {f"single_blocks.{i}.freqs": rope(found) for i in range(single)}
    made |= {
        "pos.freqs": rope(found),
        "pos.grid": torch.from_numpy(grid(found)),
        "null": torch.randn(width, generator=random),
    }
    return made
