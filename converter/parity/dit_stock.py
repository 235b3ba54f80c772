"""The converted DiT as stock diffusers runs it, its weights read part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
INSIDE = {**SELF_ATTENTION, "after self-attention": ("norm3", "input"), **FEED_FORWARD}
TIMESTEP, CLASS = "norm1.emb.timestep_embedder", "norm1.emb.class_embedder"
# Of a block, what runs one after the other. The embedders of block 0 run once more before the last layer.
PARTS = (TIMESTEP, CLASS, "norm1.linear", "attn1", "ff")


def effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `DiTTransformer2DModel` takes each field for, its defaults put in (diffusers 0.42.1, its `__init__`)."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    made = written_out(DiTTransformer2DModel, config)
    if made["out_channels"] is None:
        made["out_channels"] = made["in_channels"]
    return made


def exact(model: Any) -> Any:
    """The model with the timestep frequencies of the original, which is `EXACT_LINE` carried out."""
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return model


def as_loaded(model: Any) -> Any:
    """The model as `from_pretrained` makes it."""
    return model


def converted(config: Mapping[str, Any], weights: Weights, amend: Callable[[Any], Any] = as_loaded) -> Streamed:
    """The net of a `config.json`, in the dtype of `weights`. Raises whatever the class makes of a wrong config.

    Args:
        amend: what is done to the model after loading, `as_loaded` or `exact`.
    """
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    model = amend(skeleton(DiTTransformer2DModel, config, {}))
    blocks = range(len(model.transformer_blocks))
    within = [f"transformer_blocks.{i}.{part}" for i in blocks for part in PARTS]
    model.pos_embed.to(weights.device)

    def block(i: int) -> Callable[[Values, Probe], Values]:
        return lambda values, probe: {"x": _block(model.transformer_blocks[i], i, values, probe)}

    stages = [
        Stage("patch embedding", lambda values, probe: {"x": model.pos_embed(values["latent"])}),
        Stage("timestep embedding", lambda values, probe: _timesteps(model, values, probe)),
        Stage("class embedding", lambda values, probe: _classes(model, values, probe)),
        *(Stage(f"block {i}", block(i)) for i in blocks),
        Stage("final layer", lambda values, probe: {"output": _final(model, values)}),
    ]
    watched: dict[str, tuple[str, Callable[[Any], Values]]] = {
        "patch embedding": ("pos_embed", lambda x: {"x": x}),
        "timestep embedding": (f"transformer_blocks.0.{TIMESTEP}", lambda t: {"t0": t}),
        "class embedding": (f"transformer_blocks.0.{CLASS}", lambda y: {"y0": y}),
    }
    watched |= {f"block {i}": (f"transformer_blocks.{i}", lambda x: {"x": x}) for i in blocks}
    return Streamed(model, ["pos_embed.proj", *within, "proj_out_1", "proj_out_2"], weights, call, stages, watched)


def call(model: Any, inputs: Values) -> Tensor:
    """The stock forward, whole, on a case's inputs."""
    output: Tensor = model(
        inputs["latent"], timestep=inputs["timestep"], class_labels=inputs["class_label"], return_dict=False
    )[0]
    return output


def _timesteps(model: Any, values: Values, probe: Probe) -> Values:
    """What each block's own embedder makes of the timestep."""
    made = {}
    for i, block in enumerate(model.transformer_blocks):
        emb = block.norm1.emb
        made[f"t{i}"] = emb.timestep_embedder(emb.time_proj(values["timestep"]).to(values["latent"].dtype))
        probe(f"block {i}", made[f"t{i}"])
    return made


def _classes(model: Any, values: Values, probe: Probe) -> Values:
    """What each block's own embedder makes of the class."""
    made = {}
    for i, block in enumerate(model.transformer_blocks):
        made[f"y{i}"] = block.norm1.emb.class_embedder(values["class_label"])
        probe(f"block {i}", made[f"y{i}"])
    return made


class _Given(nn.Module):
    """Embedders that say what they are told to, so that a block is tried without its own."""

    def __init__(self, condition: Tensor) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.condition


@contextmanager
def _given(norm: Any, condition: Tensor) -> Iterator[None]:
    own, norm.emb = norm.emb, _Given(condition)
    try:
        yield
    finally:
        norm.emb = own


def _block(block: Any, index: int, values: Values, probe: Probe) -> Tensor:
    hooks = listening(block, INSIDE, probe)
    try:
        with _given(block.norm1, values[f"t{index}"] + values[f"y{index}"]):
            x: Tensor = block(values["x"], timestep=values["timestep"], class_labels=values["class_label"])
    finally:
        for hook in hooks:
            hook.remove()
    return x


def _final(model: Any, values: Values) -> Tensor:
    """What the stock forward does after its blocks; it has no module of its own for it."""
    shift, scale = model.proj_out_1(F.silu(values["t0"] + values["y0"])).chunk(2, dim=1)
    x = model.proj_out_2(model.norm_out(values["x"]) * (1 + scale[:, None]) + shift[:, None])
    return unpatchified(x, values["latent"], model.config.patch_size, model.out_channels)


def loaded(folder: Path, inputs: Values, amend: Callable[[Any], Any] = as_loaded) -> Tensor:
    """The output of what `from_pretrained` makes of a folder, whole in memory, in float32, and amended."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    model = amend(from_folder(DiTTransformer2DModel, folder))
    with torch.inference_mode():
        return call(model, inputs)
