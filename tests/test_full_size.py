"""A full-size checkpoint once, in CI: converted and proven, in the memory that the README promises."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from makers import ROOT, save, sincos
from safetensors.torch import save_file

import converter

MEMORY_MB = 1050  # two whole nets in float32 would take 4900

# In a process between this one and the checker, so that the peak is the checker's alone.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def weights() -> dict[str, torch.Tensor]:
    """Those of a released model: noise, of which every tensor is another part, and a true positional table."""
    facts = json.loads((ROOT / "fixtures/inventories/sigma-1024-ms.json").read_text())
    noise = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02
    state = {}
    for index, (key, (_, shape)) in enumerate(facts["tensors"].items()):
        size = math.prod(shape)
        start = index * 7919 % (len(noise) - size)
        state[key] = noise[start : start + size].view(shape).clone()
    _, places, hidden = state["pos_embed"].shape
    return state | {"pos_embed": sincos(hidden, math.isqrt(places), facts["interpolation_scale"])}


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("CI"), reason="5 GB of disk and a minute: in CI (CI=true) only")
def test_a_released_size_is_proven_in_little_memory(tmp_path: Path) -> None:
    original, out, inputs = save({"state_dict": weights()}, tmp_path / "made.pth"), tmp_path / "out", tmp_path / "one"
    converter.convert(original, out)
    # One sample: the size is that of the weights.
    shapes = {"latent": (1, 4, 8, 6), "caption": (1, 60, 4096)}
    arrays = {name: torch.randn(shape) for name, shape in shapes.items()}
    arrays |= {"timestep": torch.tensor([321.0]), "caption_mask": (torch.arange(60)[None] < 17).float()}
    save_file({f"one.{name}": array for name, array in arrays.items()}, inputs)
    compare = [sys.executable, "-m", "converter", "parity", str(original), str(out), "--cases", str(inputs)]
    done = subprocess.run([sys.executable, "-c", MEASURED, *compare], cwd=ROOT, capture_output=True, text=True)
    original.unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    *told, peak = done.stdout.splitlines()
    assert told[-1].startswith("PASS: ")
    assert int(peak) * 1024 / 1e6 < MEMORY_MB
