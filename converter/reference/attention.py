"""The two attentions of a block: of the image to itself, and of the image to the caption."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .compression import NORM_EPS, Compression, compress
from .embeddings import linear
from .net import Probe, unheard


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of (B, N, D) queries to (B, M, D) keys and values, head by head: (B, N, D)."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def self_attention(
    weights: Mapping[str, Tensor],
    x: Tensor,
    grid: tuple[int, int],
    heads: int,
    qk_norm: bool = False,
    compression: Compression | None = None,
    probe: Probe = unheard,
) -> Tensor:
    """`blocks.i.attn` (PixArt-sigma repository, diffusion/model/nets/PixArt_blocks.py, AttentionKVCompress).

    Args:
        weights: `qkv.*`, `proj.*`; with qk-norm `q_norm.*`, `k_norm.*`; with compression 'conv' `sr.*`, `norm.*`.
        x: (B, N, D), the tokens row by row; N = rows * columns of `grid`.
        qk_norm: normalise queries and keys over all of D, not head by head, and before the keys are compressed.

    Returns: (B, N, D).
    """
    q, k, v = linear(weights, "qkv", x).chunk(3, dim=-1)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        probe(f"attn1 {name}", tensor)
    if qk_norm:
        q, k = (
            F.layer_norm(t, t.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], NORM_EPS)
            for name, t in (("q_norm", q), ("k_norm", k))
        )
    if compression is not None:
        k, v = (compress(weights, t, grid, compression) for t in (k, v))
    out = linear(weights, "proj", attend(q, k, v, heads))
    probe("attn1 out", out)
    return out


def cross_attention(
    weights: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    heads: int,
    probe: Probe = unheard,
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
    if probe is not unheard:  # for the listener only, so that listening does not change what is computed
        for name, tensor in zip("kv", linear(weights, "kv_linear", y).chunk(2, dim=-1), strict=True):
            probe(f"attn2 {name}", tensor)

    keep = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device) if mask is None else mask.to(y.device) != 0
    lengths = keep.sum(dim=1).tolist()
    k, v = (part.split(lengths) for part in linear(weights, "kv_linear", y[keep]).chunk(2, dim=-1))
    samples = [attend(q[i : i + 1], k[i][None], v[i][None], heads) for i in range(len(lengths))]
    out = linear(weights, "proj", torch.cat(samples))
    probe("attn2 out", out)
    return out
