"""The recordings of the training code's samplers in `fixtures/pipeline`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from makers import ROOT
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

PARTS = ROOT / "fixtures" / "pipeline"
NAMES = ("alpha-ms", "alpha-fixed", "sigma-ms")
# Run -> (sampler, steps, guidance).
RUNS = {
    "dpm6": ("dpm-solver", 6, 4.5),
    "dpm14": ("dpm-solver", 14, 4.5),
    "dpm5nocfg": ("dpm-solver", 5, 1.0),
    "iddpm10": ("iddpm", 10, 4.5),
    "sa8": ("sa-solver", 8, 4.5),
    "lcm4": ("lcm", 4, 1.0),
    "dmd1": ("dmd", 1, 1.0),
}


@dataclass(frozen=True)
class Recording:
    """One net: its inputs, and per run what came out."""

    name: str
    tensors: dict[str, Tensor]
    runs: dict[str, dict[str, Any]]

    def floor(self, run: str) -> float:
        return float(self.runs[run]["floor_final"])

    def error(self, run: str, latents: Tensor) -> float:
        return relative(latents, self.tensors[f"{run}.final_fp64"])


@cache
def recording(name: str) -> Recording:
    path = PARTS / f"{name}.golden.safetensors"
    with safe_open(path, "pt") as file:
        runs = json.loads(file.metadata()["runs"])
    return Recording(name, load_file(path), runs)


def recorded_runs() -> list[tuple[str, str]]:
    return [(name, run) for name in NAMES for run in RUNS if run in recording(name).runs]


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def replay_noise(monkeypatch: pytest.MonkeyPatch, recorded: Recording, run: str) -> None:
    """Let the schedulers of diffusers draw what was drawn in a run; the last step of some draws more, and uses none."""
    first = 1 if run.startswith("sa") else 0  # of SA-Solver the first was drawn and not used
    noises = iter(recorded.tensors[f"{run}.noises"][first:] if f"{run}.noises" in recorded.tensors else ())
    for module in ("sasolver", "ddpm", "lcm"):
        place = f"diffusers.schedulers.scheduling_{module}.randn_tensor"
        monkeypatch.setattr(place, lambda *_, **__: next(noises, torch.zeros(())))
