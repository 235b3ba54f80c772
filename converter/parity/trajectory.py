"""A few sampler steps from the same noise, each net on its own latents: how far small differences carry. A report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..reference import Net, Values
from ..reports.report import FAIL, INCONCLUSIVE, PASS, Phase
from .choices import FLOAT32, FLOAT64
from .gates import FLOOR_LIMIT, LIMITS
from .inputs import Case
from .statistics import relative

STEPS = (999, 749, 499, 249)
GUIDANCE = 4.5
DIVERGED = 1e-2  # relative L2 of the latents, from which on the two draw different pictures


def _alphas() -> Any:
    """The cumulative products of the linear schedule that PixArt is trained with (1000 steps, 1e-4 to 0.02)."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, 1000, dtype=np.float64))


def sample(
    net: Net, case: Case, channels: int, dtype: torch.dtype, device: str, seen: Callable[[int, Tensor], bool]
) -> None:
    """Deterministic DDIM (arXiv 2010.02502, eq. 12 with sigma 0) with classifier-free guidance.

    The null branch is the case's first sample as it stands, with the mask of the null caption and not the prompt's.

    Args:
        seen: (timestep, latents after it) -> whether to go on.
    """
    alphas = _alphas()
    values = case.tensors(dtype, device)
    x = values["latent"][1:2]
    for timestep, following in zip(STEPS, (*STEPS[1:], -1), strict=True):
        epsilon = _guided(net, values, x, timestep, channels)
        now, then = float(alphas[timestep]), float(alphas[following]) if following >= 0 else 1.0
        start = (x - (1 - now) ** 0.5 * epsilon) / now**0.5
        x = then**0.5 * start + (1 - then) ** 0.5 * epsilon
        if not seen(timestep, x):
            return


def _guided(net: Net, values: Values, x: Tensor, timestep: int, channels: int) -> Tensor:
    inputs = values | {
        "latent": x.expand(2, -1, -1, -1).clone(),
        "timestep": torch.full_like(values["timestep"], timestep),
    }
    null, text = net.forward(inputs)[:, :channels].chunk(2)
    return null + GUIDANCE * (text - null)


def run(
    original: Callable[[str], Net], converted: Callable[[str], Net], case: Case, channels: int, device: str = "cpu"
) -> Phase:
    """Both nets from the same noise in float32; the original in float64 is what both are held against."""
    truth: list[Tensor] = []

    def remember(timestep: int, x: Tensor) -> bool:
        truth.append(x.cpu())
        return True

    sample(original(FLOAT64), case, channels, torch.float64, device, remember)
    errors: dict[str, list[float]] = {"floor": [], "error": []}
    for side, make in (("floor", original), ("error", converted)):

        def seen(timestep: int, x: Tensor, found: list[float] = errors[side]) -> bool:
            found.append(relative(x.cpu(), truth[len(found)]))
            return found[-1] <= DIVERGED

        sample(make(FLOAT32), case, channels, torch.float32, device, seen)
    steps = [
        {"step": number + 1, "timestep": timestep, "error": error, "floor": floor}
        for number, (timestep, error, floor) in enumerate(zip(STEPS, errors["error"], errors["floor"], strict=False))
    ]
    last = steps[-1]
    detail = {"sampler": f"DDIM, guidance {GUIDANCE:g}", "steps": steps}
    if not last["floor"] <= DIVERGED:
        return Phase("trajectory", INCONCLUSIVE, "the original's own float32 leaves its float64 path", detail=detail)
    if len(steps) < len(STEPS) or not last["error"] <= DIVERGED:
        words = f"the two part at step {len(steps)} (timestep {last['timestep']}): {last['error']:.2g} of the latents"
        return Phase("trajectory", FAIL, words, detail=detail)
    ratio = float(last["error"]) / max(float(last["floor"]), LIMITS["relative L2"] / 10)
    words = f"after {len(steps)} steps the latents are {last['error']:.2g} apart, {ratio:.2f} times the noise floor"
    return Phase(
        "trajectory",
        PASS,
        f"{words} (of which {FLOOR_LIMIT:g} are usual)" if ratio > FLOOR_LIMIT else words,
        detail=detail,
    )
