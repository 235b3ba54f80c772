"""From a latent to tokens and back: patches, and the fixed table that says where each of them was."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .embeddings import position_table
from .net import Weights


class Patched(Protocol):
    """What of a net's shape this takes: the models' own say what each is."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def input_size(self) -> int: ...
    @property
    def scale(self) -> float | None:
        """Of the positions; None where there are none."""

    @property
    def multi_scale(self) -> bool: ...
    @property
    def float32_table(self) -> bool:
        """Whether the positional table is a buffer of float32, whatever the dtype of the model."""


def grid_of(shape: Patched, latent: Tensor) -> tuple[int, int]:
    """(rows, columns) of the patches of a latent (B, C, H, W)."""
    height, width = latent.shape[-2:]
    return height // shape.patch_size, width // shape.patch_size


def to_weights_dtype(weights: Weights, tensor: Tensor) -> Tensor:
    """A value in the net's dtype, on its device."""
    return tensor.to(weights.device, weights.dtype)


def embed_patches(weights: Weights, shape: Patched, latent: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, N, D), a linear map of each patch plus its place in the positional table, if there is one."""
    kernel, bias = weights["x_embedder.proj.weight"], weights["x_embedder.proj.bias"]
    patches = F.conv2d(to_weights_dtype(weights, latent), kernel, bias, stride=shape.patch_size)
    tokens = patches.flatten(2).transpose(1, 2)
    if shape.scale is None:
        return tokens
    return tokens + _positions(weights, shape, grid_of(shape, latent), shape.scale)


def _positions(weights: Weights, shape: Patched, grid: tuple[int, int], scale: float) -> Tensor:
    base = shape.input_size // shape.patch_size
    if "pos_embed" in weights.state and not shape.multi_scale:
        # A buffer and no weight: a conversion that rounds the weights drops it, and has it computed afresh.
        table = Weights(weights.state, weights.dtype, weights.device)["pos_embed"]
    else:
        # Never the stored one of a multi-scale class, which has it only because it inherits it.
        own = grid if shape.multi_scale else (base, base)
        table = torch.from_numpy(position_table(own, shape.hidden_size, base, scale))
        table = table.float() if shape.float32_table else table
    rows, columns = grid
    if table.shape[1] != rows * columns:
        raise ValueError(f"the fixed class has {table.shape[1]} positions, and a grid of {rows} x {columns} was given")
    return to_weights_dtype(weights, table)


def unpatchify(shape: Patched, patches: Tensor, latent: Tensor) -> Tensor:
    """(B, N, patch^2 * out_channels) -> (B, out_channels, H, W), N the patches of a latent of that size."""
    # The numbers of a token are its patch, pixel by pixel, the channels of a pixel side by side.
    (rows, columns), side = grid_of(shape, latent), shape.patch_size
    image = patches.reshape(len(patches), rows, columns, side, side, shape.out_channels).permute(0, 5, 1, 3, 2, 4)
    return image.reshape(len(patches), shape.out_channels, rows * side, columns * side)
