"""Whole models of which only names and shapes are there: the inventories, and what a family may see beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import cos, isqrt, nan, sin
from pathlib import Path
from typing import Any

import numpy as np
import torch
from makers import inventories

from converter.mapping import Plan

ROOT = Path(__file__).resolve().parents[1]
INVENTORIES: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "fixtures" / "inventories").glob("*.json"))
}
CONTROLNETS = ("delta-controlnet-1024", "delta-controlnet-512")
DIFFUSERS = tuple(name for name, made in INVENTORIES.items() if made["layout"] == "diffusers")
DITS = tuple(name for name in INVENTORIES if name.startswith("dit-"))
SANA_CONTROLNETS = tuple(name for name in INVENTORIES if name.startswith("sana-controlnet-"))
SANAS = tuple(name for name in INVENTORIES if name.startswith("sana-") and name not in SANA_CONTROLNETS)
# What stock diffusers cannot hold.
EXTENDED = ("sigma-1024-ms-qknorm", "sigma-1024-ms-kvcompress")
WHOLE = tuple(name for name in INVENTORIES if name not in (*CONTROLNETS, *DIFFUSERS, *DITS, *SANAS, *SANA_CONTROLNETS))
assert (len(WHOLE), len(SANAS), len(SANA_CONTROLNETS)) == (12, 11, 2), "a released model is not tested"


@dataclass(frozen=True)
class Shaped:
    """A tensor of which only the shape is there."""

    shape: tuple[int, ...]


def shaped(shapes: Mapping[str, Iterable[int]]) -> dict[str, Shaped]:
    return {key: Shaped(tuple(shape)) for key, shape in shapes.items()}


def inventory(name: str) -> dict[str, Shaped]:
    """The tensors of a released model."""
    return shaped({key: shape for key, (_, shape) in INVENTORIES[name]["tensors"].items()})


def small(**sizes: Any) -> dict[str, Shaped]:
    """The tensors of a model of any sizes, in the original layout."""
    return shaped({key: shape for key, (_, shape) in inventories.inventory(**sizes).items()})


def produced(plan: Plan, state: Mapping[str, Shaped]) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of what a plan makes."""
    made: dict[str, tuple[int, ...]] = {}
    for move in plan.moves:
        first, *rest = state[move.sources[0]].shape
        rows = first * move.operation.share(len(move.parts))
        assert rows.denominator == 1
        assert not made.keys() & set(move.targets)
        made |= dict.fromkeys(move.targets, (int(rows), *rest))
    return made


ROUNDING = {torch.float32: 2e-7, torch.float16: 2.5e-4, torch.bfloat16: 2e-3}


def rounded(value: float, dtype: torch.dtype) -> float:
    """A float64 as the original stores it: float32, then the dtype of the file."""
    return torch.tensor(value, dtype=torch.float64).float().to(dtype).item()


class FakeState:
    """What a family may see: a sin-cos table of this scale (None: no such table; 0: zeros), and a `config.json`."""

    def __init__(
        self,
        scale: float | None = None,
        config: Mapping[str, Any] | None = None,
        hidden: int = 1152,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.recorded_integers = dict(config or {}), dict[str, int]()
        self._scale, self._hidden, self._dtype = scale, hidden, dtype

    def elements(self, key: str, *positions: int) -> tuple[tuple[float, ...], float]:
        assert key == "pos_embed"
        side = isqrt(max(positions) // self._hidden + 1)  # the last token is among them
        return tuple(self._element(position, side) for position in positions), ROUNDING[self._dtype]

    def rows(self, key: str) -> Iterator[tuple[int, Any]]:
        assert not self._scale, "a few elements tell it"
        yield 0, np.full((1, self._hidden), nan if self._scale is None else 0, np.float32)

    def _element(self, position: int, side: int) -> float:
        if not self._scale:
            return nan if self._scale is None else 0.0
        token, channel = divmod(position, self._hidden)
        part, j = divmod(channel, self._hidden // 4)
        place = (token // side if part > 1 else token % side) / self._scale
        return rounded((cos if part % 2 else sin)(place / 10000 ** (j / (self._hidden / 4))), self._dtype)
