"""What the net is told besides the image: numbers as sinusoids through an MLP, positions as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = 256  # of the sinusoids, as in DiT


def linear(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """The layer `name` of `weights`, with a bias where there is one, on (..., in): (..., out)."""
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def sinusoid(numbers: Tensor, channels: int = CHANNELS) -> Tensor:
    """(n,) -> (n, channels): cosines, then sines, of number / 10000^(j / (channels / 2)).

    Frequencies, angles and what comes of them are float32 whatever the model's dtype, and only then cast to it: the
    original does so (PixArt-alpha repository, diffusion/model/nets/PixArt_blocks.py, TimestepEmbedder). In float64 the
    last digits differ, so a float64 run has to keep the float32 or it is another function.

    >>> sinusoid(torch.tensor([0.0, 3.0], dtype=torch.float64), 4)
    tensor([[ 1.0000,  1.0000,  0.0000,  0.0000],
            [-0.9900,  0.9996,  0.1411,  0.0300]], dtype=torch.float64)
    """
    half = channels // 2
    # Product first, then quotient: another order gives other bits.
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=numbers.device) / half
    angles = numbers.float()[:, None] * torch.exp(exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(numbers.dtype)


def embed_numbers(weights: Mapping[str, Tensor], numbers: Tensor) -> Tensor:
    """Each number on its own through sinusoids and the MLP `mlp.0`, SiLU, `mlp.2`; of one sample side by side.

    Args:
        weights: `mlp.0.*`, `mlp.2.*`.
        numbers: (B, n), in the model's dtype.

    Returns: (B, n * width of the MLP).
    """
    return embed_sinusoids(weights, sinusoid(numbers.flatten())).reshape(len(numbers), -1)


def embed_sinusoids(weights: Mapping[str, Tensor], waves: Tensor) -> Tensor:
    """(n, 256) -> (n, width of the MLP): `mlp.0`, SiLU, `mlp.2`."""
    return linear(weights, "mlp.2", F.silu(linear(weights, "mlp.0", waves)))


def position_table(grid: tuple[int, int], hidden: int, base: int, scale: float) -> np.ndarray[Any, np.dtype[Any]]:
    """The sin-cos table of a grid of patches, float64.

    Whatever the grid, its rows and its columns span `base / scale` units each: a wider image has its positions closer
    together (arXiv 2310.00426 and 2403.04692, positional interpolation; PixArt-sigma repository,
    diffusion/model/nets/PixArt.py, get_2d_sincos_pos_embed).

    Args:
        grid: (rows, columns), in patches.
        hidden: D, a multiple of 4.
        base: side of the grid that the model was made for, in patches.
        scale: 1, or 2 where the grid is twice that of the model it was trained on from, and so on.

    Returns: (1, rows * columns, D), row by row, a quarter of D each: [sin(column), cos(column), sin(row), cos(row)].

    >>> position_table((2, 3), 4, 3, 1.0)[0, :, 0].round(4).tolist()  # sines of columns 0, 1, 2, in both rows
    [0.0, 0.8415, 0.9093, 0.0, 0.8415, 0.9093]
    """
    rows, columns = grid
    frequencies = 1.0 / 10000 ** (np.arange(hidden // 4, dtype=np.float64) / (hidden / 4.0))

    def axis(count: int) -> np.ndarray[Any, np.dtype[Any]]:
        # Positions are rounded to float32 after each quotient, all that follows is float64.
        positions = np.arange(count, dtype=np.float32) / np.float32(count / base) / np.float32(scale)
        angles = np.outer(positions.astype(np.float64), frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    table = np.empty((rows, columns, hidden))
    table[..., : hidden // 2] = axis(columns)[None, :]
    table[..., hidden // 2 :] = axis(rows)[:, None]
    return table.reshape(1, rows * columns, hidden)
