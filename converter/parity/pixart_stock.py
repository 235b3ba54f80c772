"""The converted PixArt as stock diffusers runs it, its weights read part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..reference import Probe, Stage, Values, Weights
from .stock import (
    FEED_FORWARD,
    SELF_ATTENTION,
    Streamed,
    from_folder,
    listening,
    skeleton,
    unpatchified,
    written_out,
)

# What the reference tells of the inside of a block -> where the stock block has it.
INSIDE = {
    **SELF_ATTENTION,
    "after self-attention": ("attn2.to_q", "input"),
    "attn2 q": ("attn2.to_q", "output"),
    "attn2 k": ("attn2.to_k", "output"),
    "attn2 v": ("attn2.to_v", "output"),
    "attn2 out": ("attn2.to_out.0", "output"),
    "after cross-attention": ("norm2", "input"),
    **FEED_FORWARD,
}


def effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `PixArtTransformer2DModel` takes each field for, its defaults put in (diffusers 0.42.1, its `__init__`)."""
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    made = written_out(PixArtTransformer2DModel, config)
    # Of a size that is no number the class makes nothing at all.
    if made["interpolation_scale"] is None and isinstance(made["sample_size"], int | float):
        made["interpolation_scale"] = max(made["sample_size"] // 64, 1)
    if made["use_additional_conditions"] is None:
        made["use_additional_conditions"] = made["sample_size"] == 128
    if made["out_channels"] is None:
        made["out_channels"] = made["in_channels"]
    return made


def converted(config: Mapping[str, Any], weights: Weights) -> Streamed:
    """The net of a `config.json`, in the dtype of `weights`. Raises whatever the class makes of a wrong config."""
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    model = skeleton(PixArtTransformer2DModel, config, {"caption_channels": None})
    blocks = range(len(model.transformer_blocks))
    embedders = ["pos_embed.proj", "adaln_single"] + ["caption_projection"] * (model.caption_projection is not None)
    parts = [*embedders, *(f"transformer_blocks.{i}" for i in blocks), "proj_out"]
    model.pos_embed.to(weights.device)

    def block(i: int) -> Callable[[Values, Probe], Values]:
        return lambda values, probe: {"x": _block(model.transformer_blocks[i], values, probe)}

    stages = [
        Stage("patch embedding", lambda values, probe: {"x": model.pos_embed(values["latent"])}),
        Stage("timestep embedding", lambda values, probe: _timestep(model, values)),
        Stage("caption embedding", lambda values, probe: {"y": _caption(model, values)}),
        *(Stage(f"block {i}", block(i)) for i in blocks),
        Stage("final layer", lambda values, probe: {"output": _final(model, values)}),
    ]
    watched: dict[str, tuple[str, Callable[[Any], Values]]] = {
        "patch embedding": ("pos_embed", lambda x: {"x": x}),
        "timestep embedding": ("adaln_single", lambda made: {"t0": made[0], "t": made[1]}),
    }
    if model.caption_projection is not None:
        watched["caption embedding"] = ("caption_projection", lambda y: {"y": y})
    watched |= {f"block {i}": (f"transformer_blocks.{i}", lambda x: {"x": x}) for i in blocks}
    return Streamed(model, parts, weights, call, stages, watched)


def call(model: Any, inputs: Values) -> Tensor:
    """The stock forward, whole, on a case's inputs."""
    output: Tensor = model(
        inputs["latent"],
        encoder_hidden_states=inputs["caption"],
        encoder_attention_mask=inputs.get("caption_mask"),
        timestep=inputs["timestep"],
        added_cond_kwargs=_conditions(inputs),
        return_dict=False,
    )[0]
    return output


def _conditions(values: Values) -> dict[str, Tensor | None]:
    return {"resolution": values.get("img_hw"), "aspect_ratio": values.get("aspect_ratio")}


def _timestep(model: Any, values: Values) -> Values:
    latent = values["latent"]
    t0, t = model.adaln_single(
        values["timestep"], _conditions(values), batch_size=latent.shape[0], hidden_dtype=latent.dtype
    )
    return {"t0": t0, "t": t}


def _caption(model: Any, values: Values) -> Tensor:
    caption = values["caption"]
    y: Tensor = model.caption_projection(caption) if model.caption_projection is not None else caption
    return y


def _block(block: Any, values: Values, probe: Probe) -> Tensor:
    mask = values.get("caption_mask")
    bias = None if mask is None else ((1 - mask.to(values["x"].dtype)) * -10000.0).unsqueeze(1)
    hooks = listening(block, INSIDE, probe)
    try:
        x: Tensor = block(
            values["x"], encoder_hidden_states=values["y"], encoder_attention_mask=bias, timestep=values["t0"]
        )
    finally:
        for hook in hooks:
            hook.remove()
    return x


def _final(model: Any, values: Values) -> Tensor:
    """What the stock forward does after its blocks; it has no module of its own for it."""
    shift, scale = (model.scale_shift_table[None] + values["t"][:, None]).chunk(2, dim=1)
    x = model.proj_out(model.norm_out(values["x"]) * (1 + scale) + shift)
    return unpatchified(x, values["latent"], model.config.patch_size, model.out_channels)


def loaded(folder: Path, inputs: Values) -> Tensor:
    """The output of what `from_pretrained` makes of a folder, whole in memory, in float32.

    A variant, or shards of the older kind, are asked for where there is nothing else.
    """
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    model = from_folder(PixArtTransformer2DModel, folder)
    with torch.inference_mode():
        return call(model, inputs)
