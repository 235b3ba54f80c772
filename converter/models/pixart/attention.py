"""The self attention of a PixArt block, with normalised queries and keys, or with compressed keys and values."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from ...nets.layers import self_attention
from ...nets.net import Probe, no_probe
from .compression import AVE, CONV, EVERY, UNIFORM, Compression

NORM_EPS = 1e-5  # of the norms with parameters: `attn.norm`, `attn.q_norm`, `attn.k_norm`


def _normed(weights: Mapping[str, Tensor], name: str, tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], NORM_EPS)


def compress(weights: Mapping[str, Tensor], tokens: Tensor, grid: tuple[int, int], how: Compression) -> Tensor:
    """Fewer keys or values (B, N, D) of a grid of (rows, columns), before they are split into heads (PixArt-sigma
    repository, diffusion/model/nets/PixArt_blocks.py): (B, M, D), M = floor(rows / factor) * floor(columns / factor)
    ('uniform_every': N / factor). Of the attention's weights 'conv' reads `sr.*` and `norm.*`, the same for both."""
    count, (rows, columns), factor = tokens.shape[1], grid, how.factor
    if factor == 1:
        return tokens
    # Where the factor leaves a remainder, both keep more tokens than the original then has room for: it fails.
    if how.sampling == EVERY and count % factor:
        raise ValueError(f"KV compression 'uniform_every': {count} tokens are not a multiple of {factor}")
    if how.sampling == UNIFORM and (rows % factor or columns % factor):
        raise ValueError(f"KV compression 'uniform': a grid of {rows} x {columns} is not a multiple of {factor}")
    if how.sampling == EVERY:
        return tokens[:, ::factor]
    image: Tensor = tokens.transpose(1, 2).unflatten(2, grid)
    if how.sampling == CONV:
        image = F.conv2d(image, weights["sr.weight"], weights["sr.bias"], stride=factor, groups=image.shape[1])
        return _normed(weights, "norm", image.flatten(2).transpose(1, 2))
    if how.sampling == AVE:
        image = F.interpolate(image, scale_factor=1 / factor, mode="nearest")
    elif how.sampling == UNIFORM:
        image = image[:, :, ::factor, ::factor]
    else:
        raise ValueError(f"no such KV compression: {how.sampling!r}")
    return image.flatten(2).transpose(1, 2)


def pixart_attention(
    weights: Mapping[str, Tensor],
    x: Tensor,
    grid: tuple[int, int],
    heads: int,
    *,
    qk_norm: bool = False,
    compression: Compression | None = None,
    probe: Probe = no_probe,
) -> Tensor:
    """`blocks.i.attn` (PixArt-sigma repository, diffusion/model/nets/PixArt_blocks.py, AttentionKVCompress) on tokens
    (B, N, D), row by row of a `grid` of (rows, columns): (B, N, D).

    Args:
        weights: `qkv.*`, `proj.*`; with qk-norm `q_norm.*`, `k_norm.*`; with compression 'conv' `sr.*`, `norm.*`.
        qk_norm: normalise queries and keys over all of D, not head by head, and before the keys are compressed.
    """

    def alter(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if qk_norm:
            q, k = _normed(weights, "q_norm", q), _normed(weights, "k_norm", k)
        if compression is not None:
            k, v = (compress(weights, t, grid, compression) for t in (k, v))
        return q, k, v

    return self_attention(weights, x, heads, alter, probe=probe)
