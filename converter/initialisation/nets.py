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


@dataclass(frozen=True)
class BothNets:
    """A DiT and a PixArt (`state`: key -> tensor or lazy tensor), whose weights are read when a stage runs.

    `memory`: what both read their blocks into: only one stage runs at a time.
    """

    origin: Origin
    state: Mapping[str, Any]
    memory: Memory = field(default_factory=Memory)

    def dit(self, dtype: torch.dtype, *, stored: bool = False) -> Net:
        """The DiT. On latents of any size, with positions that are scaled as the PixArt's; or with the table that its
        file holds, where it has the PixArt's size and scale (`stored`)."""
        return dit(Weights(self._without_class, dtype, memory=self.memory), DiTShape(**self._shape(stored)))

    def pixart(self, dtype: torch.dtype, *, stored: bool = False) -> Net:
        """The PixArt, on latents of any size, or with the table of positions that it is to be stored with; each is
        rounded to float32, as a DiT's."""
        micro, channels = self.origin.options.micro_condition, self.origin.dims["C"]
        more = self._shape(stored) | {"float64_tables": False}
        shape = PixArtShape(in_channels=channels, micro_condition=micro, **more)
        return pixart(Weights(self.state, dtype, memory=self.memory), shape)

    def outputs(self, case: Case, dtype: torch.dtype, *, whole: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of the DiT and of the PixArt what comes of every stage that changes the image; not `whole`: only the patches,
        with the table of positions that is stored."""
        inputs = case.tensors(dtype)
        if whole:
            return stage_outputs(self.dit(dtype), inputs), stage_outputs(self.pixart(dtype), inputs)
        nets = self.dit(dtype, stored=self.origin.same_positions), self.pixart(dtype, stored=True)
        with torch.inference_mode():
            theirs, ours = (net.stages[0].run(dict(inputs), no_probe)["x"] for net in nets)
        return {PATCHES: theirs}, {PATCHES: ours}

    def _shape(self, stored: bool) -> dict[str, Any]:
        found, origin = self.origin.analysis.findings, self.origin
        sizes = {name: found.value(name) for name in ("depth", "hidden_size", "patch_size", "out_channels")}
        sizes |= {"num_heads": found.value("num_attention_heads"), "input_size": origin.side, "scale": origin.scale}
        return sizes | {"multi_scale": not stored}

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

    def watch(stage: str, values: Values) -> None:
        if "x" in values:
            seen[stage] = values["x"]
        if OUTPUT in values:
            seen[OUTPUT] = values[OUTPUT]

    net.forward(inputs, watch)
    return seen
