"""The converted PixArt as stock diffusers runs it, its weights read part by part."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..reference import Probe, Stage, Values, Weights
from . import provenance
from .stock import Streamed, listening

# What the reference tells of the inside of a block -> where the stock block has it.
INSIDE = {
    "norm1 modulated": ("attn1.to_q", "input"),
    "attn1 q": ("attn1.to_q", "output"),
    "attn1 k": ("attn1.to_k", "output"),
    "attn1 v": ("attn1.to_v", "output"),
    "attn1 out": ("attn1.to_out.0", "output"),
    "after self-attention": ("attn2.to_q", "input"),
    "attn2 q": ("attn2.to_q", "output"),
    "attn2 k": ("attn2.to_k", "output"),
    "attn2 v": ("attn2.to_v", "output"),
    "attn2 out": ("attn2.to_out.0", "output"),
    "after cross-attention": ("norm2", "input"),
    "norm2 modulated": ("ff.net.0.proj", "input"),
    "ff hidden": ("ff.net.0.proj", "output"),
    "ff out": ("ff.net.2", "output"),
}


def effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `PixArtTransformer2DModel` takes each field for, its defaults put in (diffusers 0.42.1, its `__init__`)."""
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    arguments = inspect.signature(PixArtTransformer2DModel.__init__).parameters
    made = {name: argument.default for name, argument in arguments.items() if name != "self"}
    unused = config.get("_use_default_values")  # what diffusers' own loader passes over
    if isinstance(unused, list):
        config = {name: value for name, value in config.items() if name not in unused}
    made |= {name: value for name, value in config.items() if name in made or name.startswith("_")}
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
    model = _skeleton(config)
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


def _skeleton(config: Mapping[str, Any]) -> Any:
    """The stock class with all parameters on the meta device, and the one buffer that it computes for itself."""
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    with _quiet():
        with torch.device("meta"):
            model = PixArtTransformer2DModel.from_config(dict(config))
        with torch.random.fork_rng(devices=[]):  # making parameters draws numbers, which are the caller's
            shell = PixArtTransformer2DModel.from_config(dict(config) | {"num_layers": 0, "caption_channels": None})
    model.pos_embed = shell.pos_embed
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars, and without what diffusers logs of a config that it does not understand: all of it, be it
    megabytes. The config is audited, and the report tells of it."""
    from diffusers.utils import logging as bars

    logger = logging.getLogger("diffusers")
    before, shown = logger.level, bars.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if shown:
            bars.enable_progress_bar()


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
    patch, channels = model.config.patch_size, model.out_channels
    height, width = (side // patch for side in values["latent"].shape[-2:])
    shift, scale = (model.scale_shift_table[None] + values["t"][:, None]).chunk(2, dim=1)
    x = model.proj_out(model.norm_out(values["x"]) * (1 + scale) + shift)
    x = x.reshape(-1, height, width, patch, patch, channels)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, channels, height * patch, width * patch)


def loaded(folder: Path, inputs: Values) -> Tensor:
    """The output of what `from_pretrained` makes of a folder, whole in memory, in float32.

    A variant, or shards of the older kind, are asked for where there is nothing else.
    """
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    with _quiet():
        told, _ = provenance.loading(folder)
        model = PixArtTransformer2DModel.from_pretrained(folder, low_cpu_mem_usage=False, local_files_only=True, **told)
    with torch.inference_mode():
        return call(model.eval(), inputs)
