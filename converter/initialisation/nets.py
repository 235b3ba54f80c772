"""The two nets that are compared: the DiT without a class, and the PixArt that begins as it, on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import LazyTensor
from ..models.dit.net import DiTShape, dit
from ..models.pixart.hyper_parameters import VAE_FACTOR
from ..models.pixart.net import PixArtShape, pixart
from ..nets import Memory, Net, Values, Weights, no_probe
from ..nets.inputs import Case, Draws
from .modulation import CLASSES
from .options import ZERO

if TYPE_CHECKING:
    from .origin import Origin

PATCHES, OUTPUT = "patch embedding", "output"
CAPTION = 8  # tokens, of noise: whatever they say must not matter


class _Float32Table(PixArtShape):
    """Of any size of latent the table of positions is float32, as the stored one is, and as a DiT has it."""

    float64_tables = False


@dataclass(frozen=True)
class BothNets:
    """A DiT and a PixArt, whose weights are read when a stage runs.

    Args:
        origin: of the DiT; `state`: of the PixArt, key -> tensor or lazy tensor.
        memory: what both read their blocks into: only one stage runs at a time.
    """

    origin: Origin
    state: Mapping[str, Any]
    memory: Memory = field(default_factory=Memory)

    def dit(self, dtype: torch.dtype, *, stored: bool = False) -> Net:
        """The DiT. On latents of any size, with positions that are scaled as the PixArt's; or with the table that its
        file holds, where it has the PixArt's size and scale (`stored`)."""
        shape = DiTShape(input_size=self.origin.side, scale=self.origin.scale, multi_scale=not stored, **self._sizes)
        return dit(Weights(self._without_class, dtype, memory=self.memory), shape)

    def pixart(self, dtype: torch.dtype, *, stored: bool = False) -> Net:
        """The PixArt, on latents of any size, or with the table of positions that it is to be stored with."""
        shape = _Float32Table(
            input_size=self.origin.side,
            scale=self.origin.scale,
            multi_scale=not stored,
            in_channels=self.origin.dims["C"],
            micro_condition=self.origin.options.micro_condition,
            **self._sizes,
        )
        return pixart(Weights(self.state, dtype, memory=self.memory), shape)

    @property
    def _sizes(self) -> dict[str, Any]:
        found = self.origin.analysis.found
        made = {name: found.value(name) for name in ("depth", "hidden_size", "patch_size", "out_channels")}
        return made | {"num_heads": found.value("num_attention_heads")}

    @property
    def _without_class(self) -> Mapping[str, Any]:
        """The DiT's state dict, in which the last class is none."""
        held: Mapping[str, LazyTensor] = self.origin.analysis.checkpoint
        if self.origin.options.none != ZERO:
            return held
        return {key: held[key] for key in held} | {CLASSES: torch.zeros(held[CLASSES].shape)}


class CaseMaker(Draws):
    """Makes cases that both nets take."""

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self.origin = origin

    def case(self, name: str, rows: int, columns: int, timesteps: list[int], *, alike: bool = False) -> Case:
        """A sample for each timestep, on a grid of patches. `alike`: the same latent for all."""
        origin, batch = self.origin, len(timesteps)
        patch = origin.dims["p"]
        latent = self.draw(1 if alike else batch, origin.dims["C"], rows * patch, columns * patch)
        arrays = {
            "latent": np.repeat(latent, batch, axis=0) if alike else latent,
            "timestep": np.array(timesteps, np.int64),
            "class_label": np.full(batch, origin.dims["Y"] - 1, np.int64),
            "caption": self.draw(batch, CAPTION, origin.options.caption_channels),
        }
        if origin.options.micro_condition:
            pixels = [rows * patch * VAE_FACTOR, columns * patch * VAE_FACTOR]
            arrays["img_hw"] = np.array([pixels] * batch, np.float32)
            arrays["aspect_ratio"] = np.full((batch, 1), rows / columns, np.float32)
        return Case(name, arrays, f"{rows} x {columns} patches")


def stage_outputs(net: Net, inputs: Values) -> dict[str, Tensor]:
    """What comes of every stage that changes the image: the patches, each block, and the output."""
    seen: dict[str, Tensor] = {}

    def watch(stage: str, made: Values) -> None:
        if "x" in made:
            seen[stage] = made["x"]
        if OUTPUT in made:
            seen[OUTPUT] = made[OUTPUT]

    net.forward(inputs, watch)
    return seen


def embedded(net: Net, inputs: Values) -> Tensor:
    """The patches of a latent with their positions, at the cost of no block."""
    with torch.inference_mode():
        return net.stages[0].run(dict(inputs), no_probe)["x"]
