"""PixArt-delta's ControlNet: copies of the first blocks look at a second latent and add to what the base net makes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ...nets.layers import linear
from ...nets.net import Probe, Stage, Staged, Values, Weights, no_probe
from ...nets.patches import PATCHES, to_weights_dtype
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

    Stages: those of the base net. "patch embedding" also gives "c" (B, N, D), the tokens of the control with their
    positional table; "block j" also gives the new "c" where copy j - 1 runs. There a probe is told of the copy first,
    under the names of a block with "control " before them, and of "control skip" (B, N, D), what is added to x.
    """
    if not 0 < copied_blocks < shape.depth:
        raise ValueError(f"{copied_blocks} copied blocks: a net of {shape.depth} has room for 1 to {shape.depth - 1}")
    prefix = "base_model."
    base_state = {key[len(prefix) :]: held for key, held in weights.state.items() if key.startswith(prefix)}
    base = Weights(base_state, weights.dtype, weights.device, weights.rounded)
    # The original computes the control's table in either class. The stored one is the same but for its float32, which
    # a float64 run can tell from it.
    computed = replace(shape, multi_scale=True)

    def control(values: Values, probe: Probe) -> Values:
        return {"c": embed_latent(base, computed, values["control"])}

    def copy(j: int, values: Values, probe: Probe) -> Values:
        key = f"controlnet.{j}."
        x, c = to_weights_dtype(weights, values["x"]), to_weights_dtype(weights, values["c"])
        if j == 0:
            c = x + linear(weights, f"{key}before_proj", c)
        heard: Probe = probe if probe is no_probe else lambda name, value: probe(f"control {name}", value)
        c = run_block(weights, shape, values, heard, index=j, key=f"{key}copied_block.", x=c)
        skip = linear(weights, f"{key}after_proj", c)
        probe("control skip", skip)
        return {"c": c, "x": x + skip}

    added = {PATCHES: control} | {f"block {j + 1}": partial(copy, j) for j in range(copied_blocks)}

    def both(stage: Stage, values: Values, probe: Probe) -> Values:
        """What is added is what the stage gets, and what the stage does not replace is given on beside its own."""
        new = added[stage.name](values, probe)
        return {**new, **stage.run({**values, **new}, probe)}

    stages = pixart(base, shape).stages
    return Staged([Stage(one.name, partial(both, one)) if one.name in added else one for one in stages])
