"""Where both nets have the same stages, and what they are run on: as in docs/new-family.md, with a caption."""

from __future__ import annotations

from typing import Any

import numpy as np
from kite import Kite
from kite_diffusers import KiteTransformer2DModel

from converter import parity


def call(model: Any, values: Any) -> Any:
    return model(values["latent"], values["timestep"], values["caption"])


def original(found: Any, weights: Any) -> parity.ModuleNet:
    stages = {
        "embed": ("x_embedder.proj", "patches"),
        "refiner {}": ("refiner.{}", "y"),
        "block {}": ("blocks.{}", "x"),
    }
    return parity.ModuleNet(Kite(), weights, call, stages)


def converted(config: Any, weights: Any) -> parity.ModuleNet:
    stages = {
        "embed": ("proj_in", "patches"),
        "refiner {}": ("refiner_blocks.{}", "y"),
        "block {}": ("transformer_blocks.{}", "x"),
    }
    return parity.ModuleNet(KiteTransformer2DModel.from_config(dict(config)), weights, call, stages)


def cases(found: Any, profile: str, left: Any) -> list[parity.Case]:
    null, side = left["null_caption"].numpy(), found.value("sample_size")
    inputs = {
        "latent": parity.noise(1, 2, found.value("in_channels"), side, side),
        "timestep": np.array([999, 421], np.float32),
        "caption": np.stack([null, parity.noise(2, *null.shape)]),
    }
    return [parity.Case("noise", inputs)]


# A norm follows: no output shows the scale of these.
PARITY = parity.ParitySpec(original, converted, cases, invisible_scales=("attn1.to_q",))
