"""Self attention of the tokens of an image, and the attention itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from .embeddings import linear
from .net import Probe, no_probe


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of (B, N, D) queries to (B, M, D) keys and values, head by head: (B, N, D)."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def self_attention(
    weights: Mapping[str, Tensor],
    x: Tensor,
    heads: int,
    alter: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None,
    probe: Probe = no_probe,
) -> Tensor:
    """Attention of (B, N, D) to itself, as timm and DiT have it: (B, N, D).

    Args:
        weights: `qkv.*`, `proj.*`.
        alter: queries, keys and values, (B, N, D) each -> what is attended with, before it is split into heads.
        probe: told "attn1 q", "attn1 k", "attn1 v" (projections, before `alter`), "attn1 out".
    """
    q, k, v = linear(weights, "qkv", x).chunk(3, dim=-1)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        probe(f"attn1 {name}", tensor)
    if alter:
        q, k, v = alter(q, k, v)
    out = linear(weights, "proj", attend(q, k, v, heads))
    probe("attn1 out", out)
    return out
