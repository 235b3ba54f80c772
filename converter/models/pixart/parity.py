"""PixArt brought to be compared: its reference net, stock diffusers, and inputs on every axis where they could part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ...families import Findings
from ...nets.inputs import Array, Case
from ...nets.latents import AFFORDABLE, LatentInputs, believed_size, described, of_any_size, own_size, parts
from ...nets.sampler import Sampler
from ...nets.spec import ParitySpec
from .faults import faults
from .net import PixArtShape, pixart
from .released import MICRO, TOKENS, VAE_FACTOR
from .stock import PATCHES, STOCK

if TYPE_CHECKING:
    from ...nets import Net, Weights

GUIDED = "guidance"


def shape(findings: Findings) -> PixArtShape:
    """The architecture, from what the original file shows."""
    return PixArtShape(
        **described(findings),
        in_channels=findings.value("in_channels"),
        scale=findings.value("interpolation_scale"),
        multi_scale=findings.value("multi_scale_train"),
        micro_condition=findings.value(MICRO),
    )


def reference(findings: Findings, weights: Weights) -> Net:
    """The original net. The fixed class takes one size only; of another, which is cheaper to run, its blocks see the
    table of that size, as in the multi-scale class, and the stored table is tried by itself (`own_size`)."""
    own = shape(findings)
    net = pixart(weights, own)
    return net if own.multi_scale else of_any_size(net, pixart(weights, replace(own, multi_scale=True)), own)


class _PixArtInputs(LatentInputs):
    """Makes cases for one model."""

    def __init__(self, findings: Findings, null: Array | None) -> None:
        super().__init__(findings)
        self.width, self.micro, self.null = findings.value("caption_channels"), findings.value(MICRO), null
        finding = findings.get("caption_tokens")
        by_version = {version: tokens for tokens, version in TOKENS.items()}
        self.tokens: int = (finding.value if finding else None) or by_version.get(
            findings["version"].value, min(TOKENS)
        )

    def case(
        self,
        name: str,
        axes: str,
        grid: tuple[int, int] = (12, 8),
        timesteps: tuple[float, ...] = (999.0, 321.0),
        lengths: tuple[int, ...] | None = (17, 0),
        amplitude: float = 1.0,
        padding: float = 1.0,
        outliers: bool = False,
        null: bool = False,
    ) -> Case:
        """A batch of different samples, one per timestep. `grid` counts patches, `lengths` caption tokens (0: all;
        None: no mask); `padding` is the amplitude of what the mask hides, `null` puts the null caption first."""
        batch = len(timesteps)
        latent = self.latent(batch, *grid) * np.float32(amplitude)
        caption = self.draw(batch, self.tokens, self.width)
        if outliers:  # as text encoders have: a few channels far above all others
            latent[:, 0] *= 10
            caption[:, :, :: max(self.width // 4, 1)] *= 20
        if null and self.null is not None:
            caption[0] = self.null
        arrays = {"latent": latent, "timestep": np.array(timesteps, np.float32), "caption": caption}
        if lengths is not None:
            arrays["caption_mask"] = mask = self._mask(lengths)
            caption[mask == 0] *= np.float32(padding)
        if self.micro:
            sizes = [[512, 768], [1280, 832], [1024, 1536], [704, 1344]]
            arrays["img_hw"] = np.array(sizes[:batch], np.float32)
            arrays["aspect_ratio"] = np.array([[height / width] for height, width in sizes[:batch]], np.float32)
        return Case(name, arrays, axes)

    def _mask(self, lengths: tuple[int, ...]) -> Array:
        """1 for what is kept, (batch, tokens). A net of few tokens keeps a third where the case asks for more."""
        kept = [self.tokens if not n else n if n < self.tokens else max(1, self.tokens // 3) for n in lengths]
        return (np.arange(self.tokens)[None] < np.array(kept)[:, None]).astype(np.float32)


def cases(findings: Findings, profile: str, left: Mapping[str, Any]) -> list[Case]:
    """The inputs of a profile.

    Args:
        left: what the original holds and the converted model does not: the null caption, to run it as guidance does.
    """
    null = next((tensor.numpy() for tensor in left.values() if len(tensor.shape) == 2), None)
    make = _PixArtInputs(findings, null)
    # One batch of four: every weight is read once for all of them.
    listed = [
        make.case(
            "t999-t321",
            "24 x 16 latents; timesteps 999 and 321 with captions of 17 and of all tokens; garbage in the padding",
            timesteps=(999.0, 321.0, 999.0, 321.0),
            lengths=(17, 0, 0, 17),
            padding=50,
        )
    ]
    if profile == "quick":
        return listed
    most = max(make.tokens - 1, 1)
    for name, axes, options in (
        ("t0-t1", "16 x 24 latents, timesteps 0 and 1, captions of 1 token and of all but one",
         {"grid": (8, 12), "timesteps": (0.0, 1.0), "lengths": (1, most)}),
        ("t20-t500", "8 x 8 latents, no mask", {"grid": (4, 4), "timesteps": (20.0, 500.0), "lengths": None}),
        ("t998-t431.5", "4 : 1 latents, a timestep between two",
         {"grid": (16, 4), "timesteps": (998.0, 431.5), "lengths": (most, 17)}),
        ("x3", "latents of three times the amplitude", {"amplitude": 3.0}),
        ("outliers", "channels far above the others, in latent and caption", {"outliers": True}),
        (GUIDED, "the null caption, unmasked, and a text, as for guidance", {"lengths": (0, 17), "null": True}),
    ):  # fmt: skip
        if name != GUIDED or null is not None:
            listed.append(make.case(name, axes, **options))
    side = make.side
    large = (side * 5 // 4, side * 4 // 5)
    if profile == "standard":
        large = (min(large[0], 40), min(large[1], 25))
    if min(large) > 0:
        listed.append(make.case("bin", "a large bin of another aspect ratio", large, timesteps=(700.0, 100.0)))
    if side * side <= AFFORDABLE or profile == "full":
        pixels = side * make.patch * VAE_FACTOR
        listed.append(make.case("native", f"the model's own size, {pixels} px", (side, side), timesteps=(600.0, 40.0)))
    return listed


def config_hints(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` says of what an original file may not show, by flag name."""
    fields = STOCK.resolve_config(config)
    return {
        "num_attention_heads": fields["num_attention_heads"],
        "image_size": believed_size(fields["sample_size"], VAE_FACTOR),
        "interpolation_scale": fields["interpolation_scale"],
        "multi_scale_train": True,
    }


PARITY = ParitySpec(
    reference=reference,
    converted=STOCK.net,
    cases=cases,
    parts=parts,
    patch=lambda findings: int(findings.value("patch_size")),
    resolve_config=STOCK.resolve_config,
    config_hints=config_hints,
    faults=faults,
    # A shift of all keys by one vector changes every score of a query alike, and softmax none of them.
    invisible_biases=("attn1.to_k", "attn2.to_k"),
    stages=partial(own_size, stage=PATCHES),
    optional=("caption_mask",),
    sampler=Sampler(GUIDED),
    loaded=STOCK.loaded,
)
