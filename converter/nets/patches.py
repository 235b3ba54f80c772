"""From a latent to tokens and back: patches, and the fixed table that says where each of them was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .net import Net, Probe, Stage, Staged, Values, Weights

PATCHES, FINAL = "patch embedding", "final layer"  # the first stage, which makes tokens, and the last


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """What the arguments of an original class fix and a state dict may not show."""

    depth: int  # number of blocks
    hidden_size: int  # D, channels of a token
    num_heads: int  # of every attention
    patch_size: int  # side of a patch, in pixels of the latent
    out_channels: int  # of the output; twice those of the latent where the variance is predicted too
    input_size: int  # side of the latents that the model was made for, in their pixels
    scale: float | None = 1.0  # of the positions; None where the model has none
    multi_scale: bool = False  # latents of any size, with the table of positions computed for each, not the stored one
    float64_tables: bool = False  # whether tables computed for each size are not rounded, as stored ones are

    @property
    def base(self) -> int:
        """Side of the grid that the model was made for, in patches."""
        return self.input_size // self.patch_size

    def grid(self, latent: Tensor) -> tuple[int, int]:
        """(rows, columns) of the patches of a latent (B, C, H, W)."""
        height, width = latent.shape[-2:]
        return height // self.patch_size, width // self.patch_size


def position_table(grid: tuple[int, int], hidden: int, base: int, scale: float) -> np.ndarray[Any, np.dtype[Any]]:
    """The sin-cos table of a grid of patches, float64.

    Whatever the grid, its rows and its columns span `base / scale` units each: a wider image has its positions closer
    together (arXiv 2310.00426 and 2403.04692, positional interpolation; PixArt-sigma repository,
    diffusion/model/nets/PixArt.py, get_2d_sincos_pos_embed).

    Args:
        grid: (rows, columns), in patches.
        hidden: D, a multiple of 4.
        base: side of the grid that the model was made for, in patches.
        scale: 1, or 2 where the grid is twice that of the model it was fine-tuned from, and so on.

    Returns: (1, rows * columns, D), row by row, a quarter of D each: [sin(column), cos(column), sin(row), cos(row)].

    >>> position_table((2, 3), 4, 3, 1.0)[0, :, 0].round(4).tolist()  # sines of columns 0, 1, 2, in both rows
    [0.0, 0.8415, 0.9093, 0.0, 0.8415, 0.9093]
    """
    frequencies = 1.0 / 10000 ** (np.arange(hidden // 4, dtype=np.float64) / (hidden / 4.0))

    def axis(count: int) -> np.ndarray[Any, np.dtype[Any]]:
        # Positions are rounded to float32 after each quotient, all that follows is float64.
        positions = np.arange(count, dtype=np.float32) / np.float32(count / base) / np.float32(scale)
        angles = np.outer(positions.astype(np.float64), frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    table, (rows, columns) = np.empty((*grid, hidden)), map(axis, grid)
    table[..., : hidden // 2], table[..., hidden // 2 :] = columns[None, :], rows[:, None]
    return table.reshape(1, -1, hidden)


def to_weights_dtype(weights: Weights, tensor: Tensor) -> Tensor:
    """A value in the net's dtype, on its device."""
    return tensor.to(weights.device, weights.dtype)


def embed_patches(weights: Weights, shape: LatentShape, latent: Tensor, *, projection: str, table: str) -> Tensor:
    """(B, C, H, W) -> (B, N, D), a linear map of each patch plus its place in the positional table, if there is one.

    Args:
        projection, table: where `weights` have the map and, if at all, the table.
    """
    kernel, bias = weights[f"{projection}.weight"], weights[f"{projection}.bias"]
    patches = F.conv2d(to_weights_dtype(weights, latent), kernel, bias, stride=shape.patch_size)
    tokens = patches.flatten(2).transpose(1, 2)
    return tokens if shape.scale is None else tokens + _positions(weights, shape, shape.grid(latent), table)


def _positions(weights: Weights, shape: LatentShape, grid: tuple[int, int], key: str) -> Tensor:
    assert shape.scale is not None
    if key in weights.state and not shape.multi_scale:
        # A buffer and no weight: a conversion that rounds the weights drops it, and has it computed afresh.
        table = Weights(weights.state, weights.dtype, weights.device)[key]
    else:
        # Never the stored one of a multi-scale class, which has it only because it inherits it.
        own = grid if shape.multi_scale else (shape.base, shape.base)
        table = torch.from_numpy(position_table(own, shape.hidden_size, shape.base, shape.scale))
        table = table if shape.multi_scale and shape.float64_tables else table.float()
    rows, columns = grid
    if table.shape[1] != rows * columns:
        raise ValueError(f"the fixed class has {table.shape[1]} positions, and a grid of {rows} x {columns} was given")
    return to_weights_dtype(weights, table)


def unpatchify(shape: LatentShape, patches: Tensor, latent: Tensor) -> Tensor:
    """(B, N, patch^2 * out_channels) -> (B, out_channels, H, W), N the patches of a latent of that size."""
    # The numbers of a token are its patch, pixel by pixel, the channels of a pixel side by side.
    (rows, columns), side = shape.grid(latent), shape.patch_size
    image = patches.reshape(len(patches), rows, columns, side, side, shape.out_channels).permute(0, 5, 1, 3, 2, 4)
    return image.reshape(len(patches), shape.out_channels, rows * side, columns * side)


def of_any_size(net: Net, other: Net, shape: LatentShape) -> Staged:
    """A net that takes one size of latents only, run on others too, which are cheaper: there its blocks see the patches
    of `other`, the same net with the table of positions computed for each size. The stored table is tried by itself.
    """
    first, *rest = net.stages

    def embed(values: Values, probe: Probe) -> Values:
        fits = shape.grid(values["latent"]) == (shape.base, shape.base)
        return (first if fits else other.stages[0]).run(values, probe)

    return Staged([Stage(first.name, embed), *rest])
