"""Adapters and bases for the tests, and what an adapter adds to a base, computed whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from makers import ROOT
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file

from converter.conversion.analysis import analyse
from converter.conversion.model_files import open_model
from converter.lora.merge import place_on
from converter.lora.reading import open_adapter

LORA, BASES = ROOT / "fixtures" / "lora", ROOT / "fixtures" / "golden"
HEADS = {"num_attention_heads": 4}
SIGMA, ALPHA = BASES / "sigma-ms.pth", BASES / "alpha-ms.pth"
D = 48  # hidden size of the bases


@dataclass(frozen=True)
class Recording:
    """A golden file: what the net of `base` computes with the adapter `file`."""

    golden: Path
    base: Path
    file: Path

    @property
    def weights(self) -> str | None:
        return "raw" if self.base == ALPHA else None

    def cases(self) -> Iterator[dict[str, Any]]:
        tensors = load_file(self.golden)
        for number in range(len(tensors)):
            case = {key.partition(".")[2]: held for key, held in tensors.items() if key.startswith(f"case{number}.")}
            if case:
                yield case


def recordings() -> list[Recording]:
    """Every file of every golden recording."""
    found = []
    for golden in sorted(LORA.glob("*.golden.safetensors")):
        with safe_open(golden, "pt") as opened:
            about = opened.metadata()
        files = json.loads(about["files"]) if about["files"].startswith("[") else about["files"].split(",")
        base = BASES / f"{about['base'].removesuffix('.pth')}.pth"
        found += [Recording(golden, base, LORA / file.strip()) for file in files]
    return found


def named(recording: Recording) -> str:
    return recording.file.relative_to(LORA).as_posix()


def added(base: Path, adapter: Path, weights: str | None = None, strength: float = 1.0, **more: Any) -> dict[str, Any]:
    """What an adapter adds to each tensor of a base, in float64, by the base's keys."""
    with ExitStack() as stack:
        analysis = analyse(stack.enter_context(open_model(base, weights)), HEADS)
        opened = stack.enter_context(open_adapter(adapter, **more))
        differences = {}
        for placed in place_on(analysis, [(opened, strength)]):
            arrays = [held.numpy().astype(np.float64) for held in placed.held]
            for held, array, changed in zip(placed.held, arrays, placed.computed(arrays), strict=True):
                differences[held.key] = changed - array
        return differences


def apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The largest relative L2 between what two adapters add to a tensor."""
    assert one.keys() == other.keys()
    return max(float(np.linalg.norm(one[key] - other[key]) / (np.linalg.norm(one[key]) or 1.0)) for key in one)


def write(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: np.ascontiguousarray(held) for key, held in tensors.items()}, path, metadata)
    return path


def pair(name: str, rank: int = 2, out: int = D, width: int = D, *, seed: int = 0, ends: str = "AB") -> dict[str, Any]:
    """`lora_A` and `lora_B` of a module (`ends` 'AB'), or `lora_down` and `lora_up` ('du')."""
    draw = np.random.default_rng([seed, *map(ord, name)])
    down, up = {"AB": ("lora_A", "lora_B"), "du": ("lora_down", "lora_up")}[ends]
    return {
        f"{name}.{down}.weight": draw.standard_normal((rank, width)).astype(np.float32) / 8,
        f"{name}.{up}.weight": draw.standard_normal((out, rank)).astype(np.float32) / 8,
    }
