"""What the blocks of DiT and of its descendants have in common, with parts named as timm names them."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from .embeddings import linear
from .net import Probe, no_probe


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters over D of (B, N, D), then times 1 + scale, plus shift, both (B, 1, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a sub-module, by the rest of their keys."""
    return {key[len(prefix) :]: tensor for key, tensor in weights.items() if key.startswith(prefix)}


def feed_forward(weights: Mapping[str, Tensor], x: Tensor, probe: Probe = no_probe) -> Tensor:
    """`mlp.fc1`, tanh GELU, `mlp.fc2` on (B, N, D). `probe` is told "ff hidden", before the GELU, and "ff out"."""
    hidden = linear(weights, "mlp.fc1", x)
    probe("ff hidden", hidden)
    out = linear(weights, "mlp.fc2", F.gelu(hidden, approximate="tanh"))
    probe("ff out", out)
    return out
