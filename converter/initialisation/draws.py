"""What of a PixArt a DiT says nothing about, drawn as the paper's code draws it.

PixArt-alpha repository, diffusion/model/nets/PixArt.py and PixArtMS.py, `initialize_weights`: Xavier for linear
layers, biases of zero, a normal distribution of deviation 0.02 for embedders and `t_block`, and zero for the output
projection of the cross attention, which so adds nothing at first.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from math import prod, sqrt
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Draw = Callable[[int, str, Shape], Any]  # (seed, key, shape) -> float32 array


def _generator(seed: int, key: str) -> Any:
    """Counter-based, and of each key its own: no tensor depends on which others are drawn, or in what order."""
    return np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(key.encode())]))


def normal(deviation: Callable[[Shape], float]) -> Draw:
    """N(0, deviation^2), float32."""

    def draw(seed: int, key: str, shape: Shape) -> Any:
        return _generator(seed, key).standard_normal(shape, np.float32) * np.float32(deviation(shape))

    return draw


def zeros(seed: int, key: str, shape: Shape) -> Any:
    return np.zeros(shape, np.float32)


def xavier(seed: int, key: str, shape: Shape) -> Any:
    """Uniform in +-sqrt(6 / (inputs + outputs)): `torch.nn.init.xavier_uniform_`."""
    bound = np.float32(sqrt(6 / (shape[0] + prod(shape[1:]))))
    return (_generator(seed, key).random(shape, np.float32) * 2 - 1) * bound


EMBEDDER = normal(lambda shape: 0.02)
NULL_CAPTION = normal(lambda shape: 1 / sqrt(shape[1]))
