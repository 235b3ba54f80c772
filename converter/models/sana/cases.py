"""What both nets of a SANA are run on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...families import Findings
from ...nets.inputs import Case
from ...nets.latents import STANDARD_TOKENS, LatentInputs
from .conventions import GUIDANCE, GUIDANCE_SCALE, TIMESTEP_SCALE
from .table import VAE_FACTOR

MASK, GUIDED = "caption_mask", "guidance"
TOKENS = 300  # of a caption, where the file has no null caption to show it
FEW = 6  # tokens: the fewest that show every fault
GUIDANCES = (4.5, 1.0)  # of the two samples, before they are scaled


def cases(findings: Findings, profile: str, left: Mapping[str, Any]) -> list[Case]:
    """The inputs of a profile. Timesteps and guidance are scaled, as diffusers' pipelines do it; timesteps of 1000 are
    whole, since of others the original takes the whole part."""
    make, width = LatentInputs(findings), findings.value("caption_channels")
    timestep_scale, guidance_scale = findings.values_of(TIMESTEP_SCALE.name, GUIDANCE_SCALE.name)
    most = max(findings["caption_tokens"].value or TOKENS, FEW)

    def case(
        name: str, axes: str, timesteps: Sequence[int], grid: tuple[int, int] = (8, 6),
        kept: Sequence[int] | None = (5, most), tokens: int = most,
    ) -> Case:  # fmt: skip
        """Two different samples. `grid` counts patches, `kept` the tokens of each that are no padding, which is
        garbage; None: there is no mask."""
        arrays = {"latent": make.latent(2, *grid), "caption": make.draw(2, tokens, width)}
        arrays["timestep"] = np.array(timesteps, np.float32) * np.float32(timestep_scale)
        if kept is not None:
            arrays[MASK] = (np.arange(tokens)[None] < np.array(kept)[:, None]).astype(np.float32)
            arrays["caption"][arrays[MASK] == 0] *= 50
        if findings.value(GUIDANCE):
            arrays[GUIDED] = np.array(GUIDANCES, np.float32) * np.float32(guidance_scale)
        return Case(name, arrays, f"a grid of {grid[0]} x {grid[1]}, {axes}")

    first = case("t999-t321", f"captions of 2 and of {FEW} tokens", (999, 321), (4, 3), (2, FEW), FEW)
    if profile == "quick":
        return [first]
    listed = [
        first,
        case("t998-t20", "captions of 5 and of all tokens", (998, 20)),
        case("t0-t1", "captions of 1 token and of all but one", (0, 1), (4, 12), (1, max(most - 1, 1))),
        case("t700-t1000", "no mask", (700, 1000), (16, 16), None),
        loud := case("x3", "latents of three times the amplitude", (999, 321)),
        outliers := case("outliers", "with channels far above the others, and in the caption too", (999, 321)),
    ]
    loud.arrays["latent"][:] *= 3
    outliers.arrays["latent"][:, 0] *= 10
    outliers.arrays["caption"][:, :, :: max(width // 4, 1)] *= 20  # as text encoders have
    if make.side**2 <= STANDARD_TOKENS or profile == "full":
        pixels = make.side * make.patch * VAE_FACTOR
        listed.append(case("native", f"the model's own size, {pixels} px", (600, 40), (make.side, make.side)))
    return listed
