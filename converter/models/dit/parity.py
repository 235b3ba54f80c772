"""DiT brought to be compared: its reference net, stock diffusers as loaded or amended, and inputs on every axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ...families import Findings
from ...nets.inputs import Case
from ...nets.latents import AFFORDABLE, LatentInputs, believed_size, described, of_any_size, own_size, parts
from ...nets.sampler import Sampler
from ...nets.spec import ParitySpec, PostLoadFix
from .faults import faults
from .net import DiTShape, dit
from .stock import AMENDED as AMENDED_STOCK
from .stock import PATCHES, STOCK
from .table import EXACT, EXACT_LINE, OTHERWISE, VAE_FACTOR

if TYPE_CHECKING:
    from ...nets import Net, Weights

GUIDED = "guidance"
SMALL = 8  # patches on a side of a latent that most cases have; stock diffusers makes squares of any size


def shape(findings: Findings) -> DiTShape:
    """The architecture, from what the original file shows."""
    return DiTShape(**described(findings))


def reference(findings: Findings, weights: Weights) -> Net:
    """The original net, and on latents of another size than its own what it would be with the table of that size."""
    own = shape(findings)
    return of_any_size(dit(weights, own), dit(weights, replace(own, multi_scale=True)), own)


class _DiTInputs(LatentInputs):
    """Makes cases for one model."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(findings)
        self.null = findings.value("num_classes")

    def case(
        self,
        name: str,
        axes: str,
        timesteps: Sequence[int] = (999, 321),
        labels: Sequence[int] = (3, -1),
        side: int = 0,
        amplitude: float = 1.0,
        outliers: bool = False,
    ) -> Case:
        """A batch of different samples, one per timestep. `labels` count from the last, which is no class, if they are
        negative, and begin anew behind it; `side` counts patches (0: as most cases have)."""
        side = side or min(self.side, SMALL)
        latent = self.latent(len(timesteps), side, side) * np.float32(amplitude)
        if outliers:
            latent[:, 0] *= 10
        arrays = {
            "latent": latent,
            "timestep": np.array(timesteps, np.int64),
            "class_label": np.array(labels, np.int64) % (self.null + 1),
        }
        return Case(name, arrays, axes)


def cases(findings: Findings, profile: str, left: Mapping[str, Any]) -> list[Case]:
    """The inputs of a profile."""
    make = _DiTInputs(findings)
    # One batch of four: every weight is read once for all of them.
    words = "timesteps 999 and 321, each with a class and with none"
    listed = [make.case("t999-t321", words, (999, 321, 999, 321), (3, -1, -1, 3))]
    if profile == "quick":
        return listed
    quarter = max(min(make.side, SMALL) // 4, 1)
    listed += [
        make.case("t0-t1", "timesteps 0 and 1, the first class and the last", (0, 1), (0, -2)),
        make.case("t20-t500", "a quarter of the latents' side", (20, 500), (-1, 7), side=quarter),
        make.case("t998-t431", "two classes far apart", (998, 431), (1, make.null // 2)),
        make.case("x3", "latents of three times the amplitude", amplitude=3.0),
        make.case("outliers", "a channel far above the others", outliers=True),
        make.case(GUIDED, "no class, and a class, as for guidance", labels=(-1, 3)),
    ]
    if make.side > SMALL and (make.side**2 <= AFFORDABLE or profile == "full"):
        pixels = make.side * make.patch * VAE_FACTOR
        listed.append(make.case("native", f"the model's own size, {pixels} px", (600, 40), side=make.side))
    return listed


def config_hints(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` says of what an original file may not show, by flag name."""
    fields = STOCK.resolve_config(config)
    return {
        "num_attention_heads": fields["num_attention_heads"],
        "image_size": believed_size(fields["sample_size"], VAE_FACTOR),
    }


AS_LOADED = ParitySpec(
    reference=reference,
    converted=STOCK.net,
    cases=cases,
    parts=parts,
    patch=lambda findings: int(findings.value("patch_size")),
    resolve_config=STOCK.resolve_config,
    config_hints=config_hints,
    faults=faults,
    # A shift of all keys by one vector changes every score of a query alike, and softmax none of them.
    invisible_biases=("attn1.to_k",),
    stages=partial(own_size, stage=PATCHES),
    sampler=Sampler(GUIDED),
    loaded=STOCK.loaded,
)
AMENDED = replace(AS_LOADED, converted=AMENDED_STOCK.net, loaded=AMENDED_STOCK.loaded)
PARITY = replace(AS_LOADED, fix=PostLoadFix(EXACT, OTHERWISE, EXACT_LINE, AMENDED))
