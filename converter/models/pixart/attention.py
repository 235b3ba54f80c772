"""The two attentions of a PixArt block: of the image to itself, and of the image to the caption."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nets.attention import attend, self_attention
from ...nets.embeddings import linear
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


def cross_attention(
    weights: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    *,
    heads: int,
    probe: Probe = no_probe,
) -> Tensor:
    """`blocks.i.cross_attn` (PixArt-alpha repository, diffusion/model/nets/PixArt_blocks.py).

    As in the original the captions are packed: padding is left out, not masked, and costs nothing. A sample of which
    no token is kept gets an attention of 0.

    Args:
        weights: `q_linear.*`, `kv_linear.*` (rows of the keys, then of the values), `proj.*`.
        x: (B, N, D), the image.
        y: (B, L, D), the caption.
        mask: (B, L), nonzero where a token is kept; None keeps all.

    Returns: (B, N, D).
    """
    q = linear(weights, "q_linear", x)
    probe("attn2 q", q)
    if probe is not no_probe:  # for the listener only, so that listening does not change what is computed
        for name, tensor in zip("kv", linear(weights, "kv_linear", y).chunk(2, dim=-1), strict=True):
            probe(f"attn2 {name}", tensor)

    keep = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device) if mask is None else mask.to(y.device) != 0
    lengths = keep.sum(dim=1).tolist()
    k, v = (part.split(lengths) for part in linear(weights, "kv_linear", y[keep]).chunk(2, dim=-1))
    samples = [attend(q[i : i + 1], k[i][None], v[i][None], heads) for i in range(len(lengths))]
    out = linear(weights, "proj", torch.cat(samples))
    probe("attn2 out", out)
    return out
