"""The self attention of a PixArt block, with normalised queries and keys, or with compressed keys and values."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from ...nets.attention import self_attention
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
