"""What DiT and its descendants have in common, with parts named as timm names them: embeddings, attention, the MLP."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .net import Probe, no_probe

CHANNELS = 256  # of the sinusoids, as in DiT
HIDDEN = -10000.0  # added to the scores of padding


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
    """(B, n) in the model's dtype -> (B, n * width of the MLP): each by itself, those of a sample side by side."""
    return embed_sinusoids(weights, sinusoid(numbers.flatten())).reshape(len(numbers), -1)


def embed_sinusoids(weights: Mapping[str, Tensor], waves: Tensor) -> Tensor:
    """(n, 256) -> (n, width of the MLP): `mlp.0`, SiLU, `mlp.2`."""
    return linear(weights, "mlp.2", F.silu(linear(weights, "mlp.0", waves)))


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters over D of (B, N, D), then times 1 + scale, plus shift, both (B, 1, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def feed_forward(weights: Mapping[str, Tensor], x: Tensor, probe: Probe = no_probe) -> Tensor:
    """`mlp.fc1`, tanh GELU, `mlp.fc2` on (B, N, D). `probe` is told "ff hidden", before the GELU, and "ff out"."""
    hidden = linear(weights, "mlp.fc1", x)
    probe("ff hidden", hidden)
    out = linear(weights, "mlp.fc2", F.gelu(hidden, approximate="tanh"))
    probe("ff out", out)
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of (B, N, D) queries to (B, M, D) keys and values, head by head: (B, N, D). `bias` (B, M) is
    added to the scores of the keys."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    added = None if bias is None else bias[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, added).transpose(1, 2).flatten(2)


def self_attention(
    weights: Mapping[str, Tensor],
    x: Tensor,
    heads: int,
    alter: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None,
    *,
    probe: Probe = no_probe,
    attention: Callable[[Tensor, Tensor, Tensor, int], Tensor] = attend,
) -> Tensor:
    """Attention of (B, N, D) to itself, as timm and DiT have it: (B, N, D).

    Args:
        weights: `qkv.*`, `proj.*`.
        alter: queries, keys and values, (B, N, D) each -> what is attended with, before it is split into heads.
        probe: told "attn1 q", "attn1 k", "attn1 v" (projections, before `alter`), "attn1 out".
        attention: of another kind than softmax.
    """
    qkv = linear(weights, "qkv", x).chunk(3, dim=-1)
    for name, tensor in zip("qkv", qkv, strict=True):
        probe(f"attn1 {name}", tensor)
    q, k, v = alter(*qkv) if alter else qkv
    out = linear(weights, "proj", attention(q, k, v, heads))
    probe("attn1 out", out)
    return out


def cross_attention(
    weights: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    *,
    heads: int,
    packed: bool = True,
    alter: Callable[[str, Tensor], Tensor] = lambda name, projected: projected,
    probe: Probe = no_probe,
) -> Tensor:
    """Attention of (B, N, D) to a caption (PixArt-alpha repository, diffusion/model/nets/PixArt_blocks.py): (B, N, D).

    Args:
        weights: `q_linear.*`, `kv_linear.*` (rows of the keys, then of the values), `proj.*`.
        y: (B, L, D), the caption.
        mask: (B, L), nonzero where a token is kept; None keeps all.
        packed: padding is left out and costs nothing, and a sample of which no token is kept gets an attention of 0.
            Else -10000 is added to the scores of padding, which hides it unless scores differ by as much: so does the
            Sana repository without xformers (diffusion/model/nets/sana_blocks.py), and diffusers.
        alter: ("q" or "k", what is projected) -> what is attended with, before it is split into heads.
        probe: told "attn2 q", "attn2 k", "attn2 v" (projections, before `alter`, padding included), "attn2 out".
    """
    q = linear(weights, "q_linear", x)
    probe("attn2 q", q)
    keep = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device) if mask is None else mask.to(y.device) != 0
    if probe is not no_probe or not packed:
        k, v = linear(weights, "kv_linear", y).chunk(2, dim=-1)
        probe("attn2 k", k)
        probe("attn2 v", v)
    if packed:  # also where somebody listens, which must not change what is computed
        lengths = keep.sum(dim=1).tolist()
        keys, values = (part.split(lengths) for part in linear(weights, "kv_linear", y[keep]).chunk(2, dim=-1))
        samples = [
            attend(query[None], alter("k", k)[None], v[None], heads)
            for query, k, v in zip(alter("q", q), keys, values, strict=True)
        ]
        attended = torch.cat(samples)
    else:
        bias = None if mask is None else (~keep).to(q.dtype) * HIDDEN
        attended = attend(alter("q", q), alter("k", k), v, heads, bias)
    out = linear(weights, "proj", attended)
    probe("attn2 out", out)
    return out
