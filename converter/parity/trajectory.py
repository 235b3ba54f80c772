"""A few sampler steps from the same noise, each net on its own latents: how far small differences grow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from ..nets import Net
from ..nets.inputs import Case
from ..nets.sampler import Sampler
from ..reports.report import FAIL, FLOOR_LIMIT, INCONCLUSIVE, PASS, Phase
from .choices import FLOAT32, FLOAT64
from .gates import LIMITS
from .statistics import relative

DIVERGED = 1e-2  # relative L2 of the latents, from which on the two draw different pictures


@dataclass(frozen=True)
class Step:
    """After so many steps, how far the latents are from the original's in float64: the converted net's in float32, and
    the original's own."""

    step: int
    timestep: int
    error: float
    floor: float


def run(
    original: Callable[[str], Net],
    converted: Callable[[str], Net],
    case: Case,
    channels: int,
    *,
    sampler: Sampler,
    device: str = "cpu",
) -> Phase:
    """Both nets from the same noise in float32; the original in float64 is what both are held against."""
    drawn = sampler.sample(original(FLOAT64), case, channels, dtype=torch.float64, device=device)
    truth = [x.cpu() for _, x in drawn]

    def errors(net: Net) -> list[float]:
        """Up to the step at which the two have diverged."""
        apart: list[float] = []
        drawn = sampler.sample(net, case, channels, dtype=torch.float32, device=device)
        for right, (_, x) in zip(truth, drawn, strict=False):
            apart.append(relative(x.cpu(), right))
            if not apart[-1] <= DIVERGED:
                break
        return apart

    floors = errors(original(FLOAT32))
    rows = zip(sampler.timesteps, errors(converted(FLOAT32)), floors, strict=False)
    steps = [Step(number, *row) for number, row in enumerate(rows, 1)]
    verdict, last = PASS, steps[-1]
    error, floor = last.error, last.floor
    if not floor <= DIVERGED:
        verdict, words = INCONCLUSIVE, "the original's own float32 leaves its float64 path"
    elif len(steps) < len(sampler.timesteps) or not error <= DIVERGED:
        place = f"step {last.step} (timestep {last.timestep})"
        verdict, words = FAIL, f"they diverge at {place}: {error:.2g} of the latents"
    else:
        ratio = error / max(floor, LIMITS["relative L2"] / 10)
        words = f"after {last.step} steps the latents are {error:.2g} apart, {ratio:.2f} times the noise floor"
        words += f" (up to {FLOOR_LIMIT:g} is usual)" if ratio > FLOOR_LIMIT else ""
    detail = {"sampler": f"DDIM, guidance {sampler.guidance:g}", "steps": [asdict(step) for step in steps]}
    return Phase("trajectory", verdict, words, detail=detail)
