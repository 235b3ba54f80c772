"""A few sampler steps from the same noise, each net on its own latents: how far small differences grow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..nets import Net
from ..nets.inputs import Case
from ..nets.sampler import Sampler
from ..reports.report import FAIL, FLOOR_LIMIT, INCONCLUSIVE, PASS, Phase
from .choices import FLOAT32, FLOAT64
from .gates import LIMITS
from .statistics import relative

DIVERGED = 1e-2  # relative L2 of the latents, from which on the two draw different pictures
Path = Iterable[tuple[float, Tensor]]  # of a sampler: each timestep, with the latents after it


@dataclass(frozen=True)
class Step:
    """After so many steps, how far the latents are from the original's in float64: the converted net's in float32, and
    the original's own."""

    step: int
    timestep: float
    error: float
    floor: float

    @property
    def apart(self) -> bool:
        return not (self.error <= DIVERGED and self.floor <= DIVERGED)


def run(
    original: Callable[[str], Net],
    converted: Callable[[str], Net],
    case: Case,
    channels: int,
    *,
    sampler: Sampler,
    device: str = "cpu",
) -> Phase:
    """Both nets through deterministic DDIM."""

    def along(net: Callable[[str], Net]) -> Callable[[str], Path]:
        return lambda kind: sampler.sample(net(kind), case, channels, dtype=getattr(torch, kind), device=device)

    return walk(along(original), along(converted), name="trajectory", sampler=f"DDIM, guidance {sampler.guidance:g}")


def walk(
    original: Callable[[str], Path],
    converted: Callable[[str], Path],
    *,
    name: str,
    sampler: str,
    to_the_end: bool = False,
) -> Phase:
    """Both nets from the same noise in float32; the original in float64 is what both are held against.

    Args:
        original, converted: the path of either net in a precision.
        name: of the phase. sampler: in words.
        to_the_end: go on where the two have diverged.

    Example:
        >>> right = lambda precision: [(999, torch.ones(2)), (499, torch.ones(2))]
        >>> wrong = lambda precision: [(999, torch.ones(2)), (499, torch.zeros(2))]
        >>> walk(right, wrong, name="trajectory", sampler="two steps").words
        'they diverge at step 2 (timestep 499): 1 of the latents'
    """
    truth = [x.cpu() for _, x in original(FLOAT64)]

    def errors(path: Path) -> list[tuple[float, float]]:
        """By timestep."""
        apart: list[tuple[float, float]] = []
        for right, (timestep, x) in zip(truth, path, strict=False):
            apart.append((timestep, relative(x.cpu(), right)))
            if not (to_the_end or apart[-1][1] <= DIVERGED):
                break
        return apart

    floors = [floor for _, floor in errors(original(FLOAT32))]
    rows = zip(errors(converted(FLOAT32)), floors, strict=False)
    steps = [Step(number, *row, floor) for number, (row, floor) in enumerate(rows, 1)]
    verdict, last = PASS, next((step for step in steps if step.apart), steps[-1])
    error, floor = last.error, last.floor
    if not floor <= DIVERGED:
        verdict, words = INCONCLUSIVE, "the original's own float32 leaves its float64 path"
    elif last.apart:
        place = f"step {last.step} (timestep {last.timestep:g})"
        verdict, words = FAIL, f"they diverge at {place}: {error:.2g} of the latents"
    else:
        ratio = error / max(floor, LIMITS["relative L2"] / 10)
        apart = f"{error:.2g} apart, {ratio:.2f} times the noise floor" if error else "identical"
        usual = f" (up to {FLOOR_LIMIT:g} is usual)" if ratio > FLOOR_LIMIT else ""
        words = f"after {last.step} steps the latents are {apart}{usual}"
    return Phase(name, verdict, words, detail={"sampler": sampler, "steps": [asdict(step) for step in steps]})
