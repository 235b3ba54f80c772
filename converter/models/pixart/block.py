"""One block of PixArt: self attention, cross attention, MLP; the first and the last modulated by the timestep."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from ...nets.attention import cross_attention, self_attention
from ...nets.block import below, feed_forward, modulated_norm
from ...nets.net import Probe, no_probe
from .compression import NORM_EPS, Compression, compress


def altered_attention(
    weights: Mapping[str, Tensor],
    x: Tensor,
    grid: tuple[int, int],
    heads: int,
    *,
    qk_norm: bool = False,
    compression: Compression | None = None,
    probe: Probe = no_probe,
) -> Tensor:
    """`blocks.i.attn` (PixArt-sigma repository, diffusion/model/nets/PixArt_blocks.py, AttentionKVCompress).

    Args:
        weights: `qkv.*`, `proj.*`; with qk-norm `q_norm.*`, `k_norm.*`; with compression 'conv' `sr.*`, `norm.*`.
        x: (B, N, D), the tokens row by row; N = rows * columns of `grid`.
        qk_norm: normalise queries and keys over all of D, not head by head, and before the keys are compressed.

    Returns: (B, N, D).
    """

    def alter(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if qk_norm:
            q, k = (
                F.layer_norm(t, t.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], NORM_EPS)
                for name, t in (("q_norm", q), ("k_norm", k))
            )
        if compression is not None:
            k, v = (compress(weights, t, grid, compression) for t in (k, v))
        return q, k, v

    return self_attention(weights, x, heads, alter, probe)


def block(
    weights: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    t0: Tensor,
    *,
    mask: Tensor | None,
    grid: tuple[int, int],
    heads: int,
    qk_norm: bool = False,
    compression: Compression | None = None,
    probe: Probe = no_probe,
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
    x = x + gate_attn * altered_attention(
        below(weights, "attn."), modulated, grid, heads, qk_norm=qk_norm, compression=compression, probe=probe
    )
    probe("after self-attention", x)

    x = x + cross_attention(below(weights, "cross_attn."), x, y, mask, heads=heads, probe=probe)
    probe("after cross-attention", x)

    modulated = modulated_norm(x, shift_mlp, scale_mlp)
    probe("norm2 modulated", modulated)
    return x + gate_mlp * feed_forward(weights, modulated, probe)
