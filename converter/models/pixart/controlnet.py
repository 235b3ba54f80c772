"""PixArt-delta's ControlNet: copies of the first blocks look at a second latent and add to what the base net makes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ...nets.layers import linear
from ...nets.net import Probe, Stage, Staged, Values, Weights
from ...nets.patches import to_weights_dtype
from ...parts import below
from .net import PixArtShape, embed_latent, pixart, run_block


def controlnet(weights: Weights, shape: PixArtShape, copied_blocks: int) -> Staged:
    """ControlPixArtHalf or ControlPixArtMSHalf (arXiv 2401.05252, "ControlNet-Transformer"; PixArt-alpha
    repository, diffusion/model/nets/pixart_controlnet.py).

    The base net has its weights under `base_model.`, copy j under `controlnet.{j}.`. Block 0 runs as in the base net;
    before block j = 1 to `copied_blocks`, copy j - 1 turns the control tokens c into new ones, of which a linear map is
    added to what block j gets. The first copy gets x + before_proj(c), each further one only the c of the one before.

    Args:
        shape: of the base net.
        copied_blocks: number of copies, at most depth - 1; 13 in the published ones.

    Inputs: those of the base net, and "control" (B, C, H, W), a latent as large as "latent" (published: the HED edges
    of an image, encoded by the VAE and scaled like any latent), which is taken as it is.

    Stages: those of the base net; "patch embedding" also gives "c" (B, N, D), the tokens of the control with their
    positional table. After "block 0" come "control block 0" and so on: "c", and "skip 0" and so on (B, N, D), what is
    added to the x that the next block of the base gets.
    """
    if not 0 < copied_blocks < shape.depth:
        raise ValueError(f"{copied_blocks} copied blocks: a net of {shape.depth} has room for 1 to {shape.depth - 1}")
    base = Weights(below(weights.state, "base_model."), weights.dtype, weights.device, weights.rounded, weights.memory)
    # The original computes the control's table in either class. The stored one is the same but for its float32, which
    # a float64 run can tell from it.
    computed = replace(shape, multi_scale=True)

    def patches(stage: Stage, values: Values, probe: Probe) -> Values:
        return stage.run(values, probe) | {"c": embed_latent(base, computed, values["control"])}

    def copy(j: int, values: Values, probe: Probe) -> Values:
        key, c = f"controlnet.{j}.", to_weights_dtype(weights, values["c"])
        if j == 0:
            c = to_weights_dtype(weights, values["x"]) + linear(weights, f"{key}before_proj", c)
        c = run_block(weights, shape, values, probe, index=j, key=f"{key}copied_block.", x=c)
        return {"c": c, f"skip {j}": linear(weights, f"{key}after_proj", c)}

    def controlled(stage: Stage, skip: str, values: Values, probe: Probe) -> Values:
        return stage.run(values | {"x": values["x"] + values[skip]}, probe)

    first, timestep, caption, *blocks, final = pixart(base, shape).stages
    copies = [Stage(f"control block {j}", partial(copy, j)) for j in range(copied_blocks)]
    for j, stage in enumerate(blocks[1 : copied_blocks + 1]):
        blocks[j + 1] = Stage(stage.name, partial(controlled, stage, f"skip {j}"))
    first = Stage(first.name, partial(patches, first))
    return Staged([first, timestep, caption, blocks[0], *copies, *blocks[1:], final])
