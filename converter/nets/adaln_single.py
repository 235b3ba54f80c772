"""What PixArt and its successor SANA have in common: adaLN-single (arXiv 2310.00426, section 2.3), the embedding of the
caption and the last layer.

Source: diffusion/model/nets/PixArt.py in the PixArt-alpha repository.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .layers import linear, modulated_norm
from .net import Probe, Values, Weights
from .patches import LatentShape, to_weights_dtype, unpatchify


def embed_caption(weights: Weights, values: Values, probe: Probe) -> Values:
    """The text features "caption" (B, L, K) to "y" (B, L, D): `y_embedder.y_proj`, which is `fc1`, tanh GELU, `fc2`."""
    mlp = weights.under("y_embedder.y_proj.")
    hidden = F.gelu(linear(mlp, "fc1", to_weights_dtype(weights, values["caption"])), approximate="tanh")
    return {"y": linear(mlp, "fc2", hidden)}


def modulations(table: Tensor, t0: Tensor) -> tuple[Tensor, ...]:
    """Shift, scale and gate of the attention, then of the MLP, (B, 1, D) each: the block's own table (6, D), added to
    t0 (B, 6 * D), which is the same for all blocks."""
    chunks: tuple[Tensor, ...] = (table[None] + t0.unflatten(1, (6, -1))).chunk(6, dim=1)
    return chunks


def final_layer(weights: Weights, shape: LatentShape, values: Values, probe: Probe) -> Values:
    """ "x" (B, N, D) to "output" (B, out_channels, H, W), modulated by "t" (B, D) itself and not by `t_block` of it."""
    x, t = to_weights_dtype(weights, values["x"]), to_weights_dtype(weights, values["t"])
    shift, scale = (weights["final_layer.scale_shift_table"][None] + t[:, None]).chunk(2, dim=1)
    patches = linear(weights, "final_layer.linear", modulated_norm(x, shift, scale))
    return {"output": unpatchify(shape, patches, values["latent"])}
