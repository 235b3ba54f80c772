"""Image parity: the original's net and the converted one through the whole chain, from the same noise to the picture,
and what diffusers' own conventions would change of that picture, one at a time."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..nets import Net
from ..nets.pipeline_spec import SamplerSpec
from ..parity.choices import FLOAT32
from ..parity.statistics import relative
from ..parity.trajectory import walk
from ..reports.report import Phase
from .decode import Decoding, Pictures, decode
from .denoise import Guidance, denoise, make_scheduler

IMAGES = "images"
AMPLIFIED = (100, 50, 20, 10, 5, 2, 1)  # times that a difference is shown, as often as 8 bits hold
SHOWN = 384  # pixels, at most, of a side of a picture in the report
GAP = 8  # pixels, between pictures side by side
# (in words, part of the chain, fields of it)
CHANGES = (
    ("the prompt cleaned as a caption from the web", "guidance", ("prompt", "mask")),
    ("a mask of its own for the null caption, and not the prompt's", "guidance", ("null_mask",)),
    ("an encoded empty prompt in place of the stored null caption", "guidance", ("null",)),
    ("the aspect ratio as a quotient, and not with two decimals", "guidance", ("conditions",)),
    ("the scaling factor of the VAE's config", "decoding", ("scaling_factor",)),
    ("8 bits rounded half to even", "decoding", ("half_up",)),
)
HEADER = ["diffusers' convention", "latents", "% of values", "mean"]
SHARES = (
    "Of the original's own picture, by one convention of diffusers' pipelines at a time: the relative L2 of the "
    "latents; how many of the picture's values change, and by how much of 255 on average."
)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """All that a picture is made with but the net.

    Attributes:
        start: the noise (B, C, h, w) to begin with, and the generator of what some samplers add, new each time.
        vae: its folder. decoding: with its `scaling_factor`.
        advance: called with 1 after each step.
    """

    sampler: SamplerSpec
    guidance: Guidance
    start: Callable[[], tuple[Tensor, torch.Generator]]
    steps: int
    vae: Path
    decoding: Decoding
    advance: Callable[[int], object] = lambda count: None

    def path(self, net: Net, precision: str = FLOAT32) -> Iterator[tuple[float, Tensor]]:
        """Each timestep with the latents after it; NaN from where the net's output is not finite.

        In float64 the schedule is float32 as it is, and diffusers' DPM-Solver++ rounds the latents to float32 once a
        step, which is a thirtieth of the noise floor.
        """
        noise, generator = self.start()
        how: dict[str, Any] = {"steps": self.steps, "dtype": getattr(torch, precision), "float32_latents": False}
        latents, done = noise.to(self.decoding.device), 0
        try:
            for step in denoise(net, self.sampler, self.guidance, latents, generator=generator, **how):
                self.advance(1)
                done += 1
                yield step
        except InputError:
            times = make_scheduler(self.sampler, self.steps).timesteps.tolist()
            yield from ((time, torch.full_like(latents, torch.nan)) for time in times[done:])

    def draw(self, net: Net) -> Tensor:
        """The latents after the last step."""
        *_, (_, latents) = self.path(net)
        return latents.cpu()


def changes(chain: Chain, stock: Chain) -> Iterator[tuple[str, Chain]]:
    """What diffusers' pipelines do otherwise, in words: one thing at a time, and last all of it.

    Args:
        chain, stock: from the same noise, by the conventions of the training code and of diffusers.
    """
    if chain.sampler != stock.sampler:
        yield "the usual scheduler, with its own last step and end", replace(chain, sampler=stock.sampler)
    rounding = f"diffusers:{chain.sampler.stock}"
    if chain.sampler.scheduler != rounding:
        config = dict(make_scheduler(chain.sampler, chain.steps).config)  # with what follows from the number of steps
        sampler = replace(chain.sampler, scheduler=rounding, config=config)
        yield "timesteps in whole numbers, last step and end as in the training code", replace(chain, sampler=sampler)
    for words, part, fields in CHANGES:
        ours, theirs = getattr(chain, part), getattr(stock, part)
        if any(not _same(getattr(ours, field), getattr(theirs, field)) for field in fields):
            other = {field: getattr(theirs, field) for field in fields}
            if "mask" in other:
                other["null_mask"] = theirs.mask  # which goes with the prompt
            yield words, replace(chain, **{part: replace(ours, **other)})
    yield "all of these: the stock pipeline", stock


def _same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def shares(net: Net, chain: Chain, stock: Chain, latents: Tensor, pictures: Pictures) -> list[list[Any]]:
    """What each of the `changes` does to what a net draws: rows under `HEADER`."""
    rows = []
    for words, other in changes(chain, stock):
        redrawn = other.sampler != chain.sampler or other.guidance is not chain.guidance
        drawn = other.draw(net) if redrawn else latents
        apart = np.abs(decode(drawn, other.vae, other.decoding).astype(np.int16) - pictures)
        rows.append([words, relative(drawn, latents), 100 * float((apart > 0).mean()), float(apart.mean())])
    return rows


def image_parity(
    original: Callable[[str], Net], converted: Callable[[str], Net], chain: Chain, stock: Chain, *, sampler: str
) -> tuple[Phase, Pictures | None]:
    """Both nets, in a precision, through the chain: a phase of the report, and the pictures side by side.

    Args:
        sampler: in words.

    Returns: the phase; and (H, W, 3) with the original's picture, the converted model's and their difference, of the
        sample in which they differ most; None where a net's latents are not finite.
    """
    last: dict[str, Tensor] = {}

    def along(side: str, net: Callable[[str], Net]) -> Callable[[str], Iterator[tuple[float, Tensor]]]:
        def path(precision: str) -> Iterator[tuple[float, Tensor]]:
            for timestep, latents in chain.path(net(precision), precision):
                last[side] = latents.cpu()
                yield timestep, latents

        return path

    sides = along("original", original), along("converted", converted)
    phase = walk(*sides, name=IMAGES, sampler=sampler, to_the_end=True)
    if not all(bool(latents.isfinite().all()) for latents in last.values()):
        return phase, None
    ours, theirs = (decode(last[side], chain.vae, chain.decoding) for side in ("original", "converted"))
    rows = shares(original(FLOAT32), chain, stock, last["original"], ours)
    phase.detail["tables"] = [
        {"title": "What stock conventions change", "words": SHARES, "header": HEADER, "rows": rows}
    ]
    apart = np.abs(ours.astype(np.int16) - theirs)
    worst, most, share = int(apart.mean((1, 2, 3)).argmax()), int(apart.max()), float((apart > 0).mean())
    times = next(times for times in AMPLIFIED if times * most <= 255)
    phase.words += f"; {100 * share:.2g} % of the picture's values differ, by at most {most} of 255"
    difference = (apart[worst] * times).astype(np.uint8)
    shown = {
        "original": ("drawn by the original's net", _png(ours[worst])),
        "converted": ("drawn by the converted net", _png(theirs[worst])),
        f"difference × {times}": (f"at most {most} of 255, amplified {times} times", _png(difference, largest=True)),
    }
    phase.detail["pictures"] = [{"title": name, "words": words, "png": png} for name, (words, png) in shown.items()]
    gap = np.full((difference.shape[0], GAP, 3), 255, np.uint8)
    return phase, np.concatenate([ours[worst], gap, theirs[worst], gap, difference], axis=1)


def _png(picture: Pictures, largest: bool = False) -> str:
    """A picture small enough for a report, in base64; of pixels that become one, the mean or the largest."""
    from PIL import Image

    by = -(-max(picture.shape[:2]) // SHOWN)
    if largest:
        height, width = (side // by for side in picture.shape[:2])
        picture = picture[: height * by, : width * by].reshape(height, by, width, by, 3).max((1, 3))
    image, file = Image.fromarray(picture), io.BytesIO()
    (image if largest else image.reduce(by)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
