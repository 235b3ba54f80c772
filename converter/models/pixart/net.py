"""The PixArt nets, fixed and multi-scale, of the alpha and the sigma training code."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nets.adaln_single import embed_caption, final_layer, modulations
from ...nets.layers import cross_attention, embed_numbers, feed_forward, linear, modulated_norm
from ...nets.net import Probe, Stage, Staged, Values, Weights
from ...nets.patches import FINAL, PATCHES, LatentShape, embed_patches, to_weights_dtype
from ...parts import below
from .attention import pixart_attention
from .compression import Compression


@dataclass(frozen=True, kw_only=True)
class PixArtShape(LatentShape):
    """Of a PixArt. The class is PixArtMS where it is `multi_scale`, and else PixArt, which takes latents of
    `input_size` only and stores its positional table (where the state dict lacks it, it is computed)."""

    in_channels: int  # of the latent
    micro_condition: bool = False  # the timestep embedding includes the image's size and aspect ratio
    qk_norm: bool = False  # queries and keys of the self attention are normalised
    compression: Compression | None = None  # of keys and values, in some blocks
    float64_tables: bool = True


def pixart(weights: Weights, shape: PixArtShape) -> Staged:
    """The net of a state dict in the original layout (arXiv 2310.00426, 2403.04692).

    Its source is PixArt.py and PixArtMS.py in diffusion/model/nets of the PixArt-alpha and PixArt-sigma repositories.
    Inputs are cast to the dtype of `weights` first, the timestep too, of which bfloat16 can represent every value only
    up to 256: the original does the same. Weights are read when a stage runs.

    Inputs: "latent" (B, C, H, W); "timestep" (B,), of 1000 steps; "caption" (B, L, K), text features; "caption_mask"
    (B, L), nonzero where a token is kept, or absent to keep all; with micro-conditions "img_hw" (B, 2), height and
    width in pixels, and "aspect_ratio" (B, 1), height over width.

    Stages, and what they add:
        "patch embedding": "x" (B, N, D), positional table included; N patches, row by row.
        "timestep embedding": "t" (B, D), micro-conditions included, and "t0" (B, 6 * D), the output of `t_block`.
        "caption embedding": "y" (B, L, D), padding included.
        "block 0" and so on: "x".
        "final layer": "output" (B, out_channels, H, W).

    Example:
        >>> state = torch.load("fixtures/golden/sigma-ms.pth", weights_only=True)
        >>> shape = PixArtShape(depth=3, hidden_size=48, num_heads=4, patch_size=2, in_channels=4, out_channels=8,
        ...                     input_size=64, scale=1.0, multi_scale=True)
        >>> net = pixart(Weights(state, torch.float32), shape)
        >>> [stage.name for stage in net.stages][2:5]
        ['caption embedding', 'block 0', 'block 1']
        >>> latent, timestep, caption = torch.zeros(1, 4, 16, 24), torch.tensor([500]), torch.zeros(1, 20, 32)
        >>> net.forward({"latent": latent, "timestep": timestep, "caption": caption}).shape
        torch.Size([1, 8, 16, 24])
    """

    def patches(values: Values, probe: Probe) -> Values:
        return {"x": embed_latent(weights, shape, values["latent"])}

    def block(i: int, values: Values, probe: Probe) -> Values:
        return {"x": run_block(weights, shape, values, probe, index=i, key=f"blocks.{i}.", x=values["x"])}

    blocks = [Stage(f"block {i}", partial(block, i)) for i in range(shape.depth)]
    timestep = Stage("timestep embedding", partial(embed_timestep, weights, shape))
    caption = Stage("caption embedding", partial(embed_caption, weights))
    final = Stage(FINAL, partial(final_layer, weights, shape))
    return Staged([Stage(PATCHES, patches), timestep, caption, *blocks, final])


def embed_latent(weights: Weights, shape: PixArtShape, latent: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, N, D), the positional table included."""
    return embed_patches(weights, shape, latent, projection="x_embedder.proj", table="pos_embed")


def embed_timestep(weights: Weights, shape: PixArtShape, values: Values, probe: Probe) -> Values:
    """ "t" (B, D), of the timestep and of the image's size, and "t0" (B, 6 * D), which all blocks are modulated by."""

    def embedded(name: str, numbers: Tensor) -> Tensor:
        return embed_numbers(weights.under(f"{name}."), to_weights_dtype(weights, numbers))

    t = embedded("t_embedder", values["timestep"][:, None])
    if shape.micro_condition:
        sizes, ratio = embedded("csize_embedder", values["img_hw"]), embedded("ar_embedder", values["aspect_ratio"])
        t = t + torch.cat([sizes, ratio], dim=1)
    return {"t": t, "t0": linear(weights, "t_block.1", F.silu(t))}


def run_block(
    weights: Weights, shape: PixArtShape, values: Values, probe: Probe, *, index: int, key: str, x: Tensor
) -> Tensor:
    """Block `index`, or a copy of it, with the weights under `key`, on x (B, N, D): adaLN-single (arXiv 2310.00426,
    section 2.3).

    Its source is PixArtBlock and PixArtMSBlock in diffusion/model/nets of the PixArt repositories, which are the same.

    Args:
        values: of them "y" (B, L, D), the caption, which has no norm and no modulation of its own, with its mask; and
            "t0" (B, 6 * D), the same for all blocks: shift, scale and gate of the attention, then of the MLP, to which
            the block's own table is added.
        probe: told "norm1 modulated", "after self-attention", "after cross-attention", "norm2 modulated", and what the
            layers tell it ("attn1 q" and so on, before any norm and compression).
    """
    x, y, t0 = (to_weights_dtype(weights, tensor) for tensor in (x, values["y"], values["t0"]))
    own, grid, heads = weights.scratch(key), shape.grid(values["latent"]), shape.num_heads
    how = shape.compression if shape.compression is not None and index in shape.compression.blocks else None
    table = own["scale_shift_table"]
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulations(table, t0)

    modulated = modulated_norm(x, shift_attn, scale_attn)
    probe("norm1 modulated", modulated)
    x = x + gate_attn * pixart_attention(
        below(own, "attn."), modulated, grid, heads, qk_norm=shape.qk_norm, compression=how, probe=probe
    )
    probe("after self-attention", x)

    mask = values.get("caption_mask")
    x = x + cross_attention(below(own, "cross_attn."), x, y, mask, heads=heads, probe=probe)
    probe("after cross-attention", x)

    modulated = modulated_norm(x, shift_mlp, scale_mlp)
    probe("norm2 modulated", modulated)
    return x + gate_mlp * feed_forward(own, modulated, probe)
