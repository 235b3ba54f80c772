"""The class-conditional DiT, of any size and patch."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from ...nets.layers import embed_sinusoids, feed_forward, linear, modulated_norm, self_attention, sinusoid
from ...nets.net import Probe, Stage, Staged, Values, Weights
from ...nets.patches import FINAL, PATCHES, LatentShape, embed_patches, to_weights_dtype, unpatchify
from ...parts import below


class DiTShape(LatentShape):
    """Of a DiT. The original takes latents of `input_size` only and knows no scale but 1; `multi_scale` computes the
    table for each size, as diffusers does."""


def dit(weights: Weights, shape: DiTShape) -> Staged:
    """The net of a state dict in the original layout (arXiv 2212.09748; facebookresearch/DiT, models.py).

    Inputs are cast to the dtype of `weights`, but for timesteps and labels, which the original never casts. Weights
    are read when a stage runs.

    Inputs: "latent" (B, C, H, W); "timestep" (B,), of 1000 steps; "class_label" (B,), whole numbers, the last of which
    is no class where the model was trained to have one.

    Stages, and what they add:
        "patch embedding": "x" (B, N, D), positional table included; N patches, row by row.
        "timestep embedding": "t0", "t1" and so on (B, D), what each block is told of the timestep: all the same here,
            and in diffusers of as many embedders as there are blocks. A probe is told of each as "block 0" and so on.
        "class embedding": "y0", "y1" and so on (B, D), likewise.
        "block 0" and so on: "x".
        "final layer": "output" (B, out_channels, H, W). It is told what block 0 is told.

    Example:
        >>> state = torch.load("fixtures/golden/dit.pt", weights_only=True)
        >>> shape = DiTShape(depth=3, hidden_size=48, num_heads=4, patch_size=2, out_channels=8, input_size=16)
        >>> net = dit(Weights(state, torch.float32), shape)
        >>> [stage.name for stage in net.stages][:4]
        ['patch embedding', 'timestep embedding', 'class embedding', 'block 0']
        >>> inputs = {"latent": torch.zeros(1, 4, 16, 16), "timestep": torch.tensor([500])}
        >>> net.forward(inputs | {"class_label": torch.tensor([3])}).shape
        torch.Size([1, 8, 16, 16])
    """

    def patches(values: Values, probe: Probe) -> Values:
        latent = values["latent"]
        return {"x": embed_patches(weights, shape, latent, projection="x_embedder.proj", table="pos_embed")}

    def for_each_block(name: str, embedded: Tensor, probe: Probe) -> Values:
        """The same for every block."""
        for i in range(shape.depth):
            probe(f"block {i}", embedded)
        return {f"{name}{i}": embedded for i in range(shape.depth)}

    def timestep(values: Values, probe: Probe) -> Values:
        waves = to_weights_dtype(weights, sinusoid(values["timestep"].float()))
        return for_each_block("t", embed_sinusoids(weights.under("t_embedder."), waves), probe)

    def label(values: Values, probe: Probe) -> Values:
        table = weights["y_embedder.embedding_table.weight"]
        return for_each_block("y", F.embedding(values["class_label"].to(weights.device), table), probe)

    blocks = [Stage(f"block {i}", partial(run_block, weights, shape, i)) for i in range(shape.depth)]
    first = [Stage(PATCHES, patches), Stage("timestep embedding", timestep), Stage("class embedding", label)]
    return Staged([*first, *blocks, Stage(FINAL, partial(final_layer, weights, shape))])


def conditioned(weights: Weights, values: Values, index: int) -> Tensor:
    """(B, D): what block `index` is told of timestep and class, added up."""
    return to_weights_dtype(weights, values[f"t{index}"]) + to_weights_dtype(weights, values[f"y{index}"])


def run_block(weights: Weights, shape: DiTShape, index: int, values: Values, probe: Probe) -> Values:
    """`blocks.{index}` on "x" (B, N, D): adaLN-Zero (arXiv 2212.09748, section 3.2).

    Args:
        probe: told "norm1 modulated", "after self-attention", "norm2 modulated", and what the layers tell it.
    """
    x, condition = to_weights_dtype(weights, values["x"]), conditioned(weights, values, index)
    own = weights.scratch(f"blocks.{index}.")
    modulation = linear(own, "adaLN_modulation.1", F.silu(condition))[:, None]
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=-1)

    modulated = modulated_norm(x, shift_attn, scale_attn)
    probe("norm1 modulated", modulated)
    x = x + gate_attn * self_attention(below(own, "attn."), modulated, shape.num_heads, probe=probe)
    probe("after self-attention", x)

    modulated = modulated_norm(x, shift_mlp, scale_mlp)
    probe("norm2 modulated", modulated)
    return {"x": x + gate_mlp * feed_forward(own, modulated, probe)}


def final_layer(weights: Weights, shape: DiTShape, values: Values, probe: Probe) -> Values:
    """(B, N, D) -> (B, out_channels, H, W)."""
    x, condition = to_weights_dtype(weights, values["x"]), conditioned(weights, values, 0)
    shift, scale = linear(weights, "final_layer.adaLN_modulation.1", F.silu(condition))[:, None].chunk(2, dim=-1)
    patches = linear(weights, "final_layer.linear", modulated_norm(x, shift, scale))
    return {"output": unpatchify(shape, patches, values["latent"])}
