"""One transformer block: self attention, cross attention, MLP; the first and the last modulated by the timestep."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from .attention import cross_attention, self_attention
from .compression import Compression
from .embeddings import linear
from .net import Probe, unheard


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters over D of (B, N, D), then times 1 + scale, plus shift, both (B, 1, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a sub-module, by the rest of their keys."""
    return {key[len(prefix) :]: tensor for key, tensor in weights.items() if key.startswith(prefix)}


def feed_forward(weights: Mapping[str, Tensor], x: Tensor, probe: Probe = unheard) -> Tensor:
    """`mlp.fc1`, tanh GELU, `mlp.fc2` on (B, N, D). `probe` is told "ff hidden", before the GELU, and "ff out"."""
    hidden = linear(weights, "mlp.fc1", x)
    probe("ff hidden", hidden)
    out = linear(weights, "mlp.fc2", F.gelu(hidden, approximate="tanh"))
    probe("ff out", out)
    return out


def block(
    weights: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    t0: Tensor,
    mask: Tensor | None,
    grid: tuple[int, int],
    heads: int,
    qk_norm: bool = False,
    compression: Compression | None = None,
    probe: Probe = unheard,
) -> Tensor:
    """`blocks.i`, adaLN-single (arXiv 2310.00426, section 2.3).

    Its source is PixArtBlock and PixArtMSBlock in diffusion/model/nets of the PixArt repositories, which are the same.

    Args:
        weights: of this block, keys from `scale_shift_table` and `attn.qkv.weight` on.
        x: (B, N, D), the image, N = rows * columns of `grid`.
        y: (B, L, D), the caption, which has no norm and no modulation of its own.
        t0: (B, 6 * D), the same for all blocks: shift, scale and gate of the attention, then of the MLP, to which the
            block's own table is added.
        mask: (B, L), nonzero where a caption token is kept; None keeps all.
        probe: told "norm1 modulated", "attn1 q", "attn1 k", "attn1 v" (projections, before any norm and compression),
            "attn1 out", "after self-attention", "attn2 q", "attn2 out", "after cross-attention", "norm2 modulated",
            "ff out", all (B, N, D); "attn2 k", "attn2 v", (B, L, D), padding included; "ff hidden", (B, N, 4 * D),
            before the GELU.

    Returns: (B, N, D).
    """
    modulation = weights["scale_shift_table"][None] + t0.reshape(len(t0), 6, -1)
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)

    modulated = modulated_norm(x, shift_attn, scale_attn)
    probe("norm1 modulated", modulated)
    x = x + gate_attn * self_attention(below(weights, "attn."), modulated, grid, heads, qk_norm, compression, probe)
    probe("after self-attention", x)

    x = x + cross_attention(below(weights, "cross_attn."), x, y, mask, heads, probe)
    probe("after cross-attention", x)

    modulated = modulated_norm(x, shift_mlp, scale_mlp)
    probe("norm2 modulated", modulated)
    return x + gate_mlp * feed_forward(weights, modulated, probe)
