"""The SANA net, multi-scale: with and without positions, norms of queries and keys (SANA-1.5) and guidance (Sprint)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nets import layers
from ...nets.adaln_single import embed_caption, final_layer, modulations
from ...nets.depthwise import depthwise
from ...nets.layers import cross_attention, linear, modulated_norm, self_attention
from ...nets.net import Probe, Stage, Staged, Values, Weights, no_probe
from ...nets.patches import FINAL, PATCHES, LatentShape, embed_patches, to_weights_dtype
from ...parts import below

LARGEST = 65504.0  # of float16
NORM_EPS, CROSS_NORM_EPS = 1e-5, 1e-6


@dataclass(frozen=True, kw_only=True)
class SanaShape(LatentShape):
    """The shape of a net on latents, `num_heads` those of the cross attention.

    Attributes:
        linear_heads: of the self attention.
        timestep_scale: what the timesteps that it takes were multiplied by; where that is 1, it takes whole ones.
        multi_scale: as all released models are.
        clipped: whether the self attention is kept within float16, as in models that were trained in it.
    """

    linear_heads: int
    timestep_scale: float = 1.0
    clipped: bool = False
    multi_scale: bool = True


def sana(weights: Weights, shape: SanaShape) -> Staged:
    """The net of a state dict in the original layout (arXiv 2410.10629, 2501.18427, 2503.09641; Sana repository,
    diffusion/model/nets/sana_multi_scale.py).

    Inputs: "latent" (B, C, H, W); "timestep" (B,), of 1000 steps, times `timestep_scale`; "caption" (B, L, K), text
    features; "caption_mask" (B, L), nonzero where a token is kept, or absent to keep all; for Sprint "guidance" (B,),
    times its scale.

    Stages, and what they add:
        "patch embedding": "x" (B, N, D), positions included; N patches, row by row.
        "timestep embedding": "t" (B, D), of timestep and guidance, and "t0" (B, 6 * D), the output of `t_block`.
        "caption embedding", "caption norm": "y" (B, L, D), padding included.
        "block 0" and so on: "x".
        "final layer": "output" (B, out_channels, H, W).

    Example:
        >>> state = torch.load("fixtures/golden/sana-1.5.pth", weights_only=True)["state_dict"]
        >>> sizes = dict(depth=2, hidden_size=64, patch_size=1, out_channels=8, input_size=8, scale=None)
        >>> net = sana(Weights(state, torch.float32), SanaShape(**sizes, linear_heads=2, num_heads=4))
        >>> inputs = {"latent": torch.zeros(1, 8, 6, 8), "timestep": torch.tensor([500.0])}
        >>> net.forward(inputs | {"caption": torch.zeros(1, 12, 20)}).shape
        torch.Size([1, 8, 6, 8])
    """
    embed = partial(embed_patches, weights, shape, projection="x_embedder.proj", table="pos_embed")
    blocks = [Stage(f"block {i}", partial(run_block, weights, shape, i)) for i in range(shape.depth)]
    return Staged(
        [
            Stage(PATCHES, lambda values, probe: {"x": embed(values["latent"])}),
            Stage("timestep embedding", lambda values, probe: embed_timestep(weights, shape, values)),
            Stage("caption embedding", partial(embed_caption, weights)),
            Stage("caption norm", lambda values, probe: {"y": caption_norm(weights, values["y"])}),
            *blocks,
            Stage(FINAL, partial(final_layer, weights, shape)),
        ]
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over all channels of (..., D), not head by head. The mean square is float32 whatever the dtype, as it is in the
    original, where all of the norm is, and in diffusers: in float64 it would be another function."""
    return (x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def embed_timestep(weights: Weights, shape: SanaShape, values: Values) -> Values:
    """ "timestep" and, where there is one, "guidance" (B,) -> "t" (B, D) and "t0" (B, 6 * D). Timesteps of 1000 are cut
    to their whole part."""

    def embedded(name: str, numbers: Tensor) -> Tensor:
        waves = to_weights_dtype(weights, layers.sinusoid(numbers.float()))
        return layers.embed_sinusoids(weights.under(f"{name}_embedder."), waves)

    timestep = values["timestep"]
    t = embedded("t", timestep.trunc() if shape.timestep_scale == 1 else timestep)
    if "guidance" in values:
        t = t + embedded("cfg", values["guidance"])
    return {"t": t, "t0": linear(weights, "t_block.1", F.silu(t))}


def caption_norm(weights: Weights, y: Tensor) -> Tensor:
    """(B, L, D). Its weight began at 0.01 in training, so that no factor remains to be applied."""
    return rms_norm(to_weights_dtype(weights, y), weights["attention_y_norm.weight"], NORM_EPS)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """ReLU attention of (B, N, D), head by head, in time linear in N: (V K^T q) / (1 K^T q + 1e-8).

    In float32 whatever the dtype, as diffusers has it, and the original where it is trained in float16.
    """
    dtype, channels_first = q.dtype, (part.transpose(1, 2).unflatten(1, (heads, -1)) for part in (q, k, v))
    q, k, v = (part.float() for part in channels_first)
    sums = F.pad(v, (0, 0, 0, 1), value=1.0) @ k.relu().transpose(2, 3) @ q.relu()  # the last row: of the weights
    return (sums[:, :, :-1] / (sums[:, :, -1:] + 1e-8)).flatten(1, 2).transpose(1, 2).to(dtype)


def glu_conv(weights: Mapping[str, Tensor], x: Tensor, grid: tuple[int, int], probe: Probe = no_probe) -> Tensor:
    """`mlp` on the grid: 1 x 1 convolution, SiLU, depthwise 3 x 3, one half times SiLU of the other, 1 x 1: (B, N, D).

    `probe` is told "norm2 modulated", "ff hidden" and "ff out", all as images.
    """

    def layer(name: str) -> tuple[Tensor, Tensor | None]:
        return weights[f"{name}_conv.conv.weight"], weights.get(f"{name}_conv.conv.bias")

    image = x.transpose(1, 2).unflatten(2, grid)
    probe("norm2 modulated", image)
    hidden = F.conv2d(image, *layer("inverted"))
    probe("ff hidden", hidden)
    hidden, gate = depthwise(F.silu(hidden), *layer("depth"), padding=(1, 1)).chunk(2, dim=1)
    out = F.conv2d(hidden * F.silu(gate), *layer("point"))
    probe("ff out", out)
    return out.flatten(2).transpose(1, 2)


def run_block(weights: Weights, shape: SanaShape, i: int, values: Values, probe: Probe) -> Values:
    """`blocks.i`, adaLN-single: "x" (B, N, D) to the same."""
    x, y, t0 = (to_weights_dtype(weights, values[name]) for name in ("x", "y", "t0"))
    own = weights.scratch(f"blocks.{i}.")
    table = own["scale_shift_table"]
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulations(table, t0)
    attn, cross = below(own, "attn."), below(own, "cross_attn.")

    def normed(layer: Mapping[str, Tensor], name: str, projected: Tensor, eps: float) -> Tensor:
        weight = layer.get(f"{name}_norm.weight")
        return projected if weight is None else rms_norm(projected, weight, eps)

    def alter(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return normed(attn, "q", q, NORM_EPS), normed(attn, "k", k, NORM_EPS), v

    modulated = modulated_norm(x, shift_attn, scale_attn)
    probe("norm1 modulated", modulated)
    out = self_attention(attn, modulated, shape.linear_heads, alter, probe=probe, attention=linear_attention)
    x = x + gate_attn * (out.clip(-LARGEST, LARGEST) if shape.clipped else out)
    probe("after self-attention", x)
    x = x + cross_attention(
        cross, x, y, values.get("caption_mask"), heads=shape.num_heads, packed=False, probe=probe,
        alter=lambda name, projected: normed(cross, name, projected, CROSS_NORM_EPS),
    )  # fmt: skip
    mlp = glu_conv(below(own, "mlp."), modulated_norm(x, shift_mlp, scale_mlp), shape.grid(values["latent"]), probe)
    return {"x": x + gate_mlp * mlp}
