"""SANA brought to be compared: where stock diffusers has the stages of the net, inputs, and deliberate faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from converter.families import Findings
from converter.mapping import Plan
from converter.nets import shared_faults as shared
from converter.nets.faults import Fault
from converter.nets.inputs import Case
from converter.nets.latents import LatentInputs, described, image_size_hint, latent_spec
from converter.nets.net import Weights
from converter.nets.patches import FINAL, PATCHES
from converter.nets.spec import PostLoadFix
from converter.nets.stock import CROSS_ATTENTION, SELF_ATTENTION, Stock, StockStage

from .family import CROSS, EXACT_EPS, EXACT_LINE, QK_NORM, SCALE, USE_PE, VAE_FACTOR, WHY
from .net import SanaShape, Staged, sana

MASK = "caption_mask"
UNHEEDED = ("dropout", "guidance_embeds_scale", "timestep_scale")  # change no output of the transformer itself


def exact_eps(model: Any) -> Any:
    """The model with the original's norms, which is `EXACT_LINE` carried out."""
    for block in model.transformer_blocks:
        block.attn2.norm_q.eps = block.attn2.norm_k.eps = 1e-6
    return model


STOCK = Stock(
    kind="diffusers.models.transformers.sana_transformer:SanaTransformer2DModel",
    arguments={"hidden_states": "latent", "encoder_hidden_states": "caption",
               "encoder_attention_mask": MASK, "timestep": "timestep"},
    stages=(
        StockStage(PATCHES, "patch_embed", ("x",)),
        StockStage("timestep embedding", "time_embed", ("t0", "t")),
        StockStage("caption embedding", "caption_projection", ("y",)),
        StockStage("caption norm", "caption_norm", ("y",)),
        StockStage("block {}", "transformer_blocks.{}", ("x",)),
        StockStage(FINAL, "", ("output",)),
    ),
    probes={
        **SELF_ATTENTION, **CROSS_ATTENTION,
        "norm2 modulated": ("ff.conv_inverted", "input"),
        "ff hidden": ("ff.conv_inverted", "output"),
        "ff out": ("ff.conv_point", "output"),
    },
)  # fmt: skip


def reference(found: Findings, weights: Weights) -> Staged:
    """The original net, from what its file shows."""
    shape = described(found) | {"num_heads": found.value(CROSS), "linear_heads": found.value("num_attention_heads")}
    scale, factor = found.value(SCALE) if found.value(USE_PE) else None, found.value("timestep_scale")
    return sana(weights, SanaShape(**shape, multi_scale=True, scale=scale, timestep_scale=factor))


def cases(found: Findings, profile: str, left: Mapping[str, Any]) -> list[Case]:
    """The inputs of a profile. Timesteps are whole: of others the original takes the whole part."""
    make, width, tokens = LatentInputs(found), found.value("caption_channels"), found["caption_tokens"].value or 300
    scale = found.value("timestep_scale")

    def case(name: str, axes: str, grid: tuple[int, int], timesteps: Sequence[int], lengths: Sequence[int]) -> Case:
        batch, kept = len(timesteps), np.minimum(np.array(lengths), tokens)[:, None]
        arrays = {"latent": make.latent(batch, *grid), "timestep": np.float32(timesteps) * np.float32(scale)}
        mask = (np.arange(tokens)[None] < kept).astype(np.float32)
        return Case(name, arrays | {"caption": make.draw(batch, tokens, width), MASK: mask}, axes)

    listed = [
        case("t999-t321", "a grid of 8 x 6, captions of 5 and of all tokens", (8, 6), (999, 321), (5, 999)),
        case("t0-t20", "a grid of 4 x 12, captions of 1 and of 9 tokens", (4, 12), (0, 20), (1, 9)),
        case("t700-t1000", "a grid of 16 x 16", (16, 16), (700, 1000), (999, 3)),
    ]
    return listed[:1] if profile == "quick" else listed


def config_hints(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` says of what an original file may not show, by flag name."""
    have, same = STOCK.resolve_config(config), ("num_attention_heads", CROSS, SCALE, "timestep_scale")
    size = image_size_hint(have["sample_size"], VAE_FACTOR)
    return {name: have[name] for name in same} | {USE_PE: have[SCALE] is not None, "image_size": size}


def faults(found: Findings, config: Mapping[str, Any], plan: Plan) -> list[Fault]:
    """Faults of the config, of conventions between the two code bases, and of what only a whole net shows."""
    have, placed = STOCK.resolve_config(config), found.value(USE_PE)
    wrong = [("positions left out", None), ("half the scale", (have[SCALE] or 1) / 2)] if placed else []
    seen = shared.BY_BOTH if placed else shared.BY_CONFIG
    return [
        *shared.field_faults(config, STOCK.resolve_config, [
            shared.more_heads(found, have["num_attention_heads"]),
            shared.more_heads(found, have[CROSS], "cross_"),
            *((name, {SCALE: scale}, shared.BY_BOTH, False) for name, scale in wrong or [("positions added", 1.0)]),
            ("twice the sample size", {"sample_size": have["sample_size"] * 2}, seen, False),
            ("eps 1e-5 for 1e-6", {"norm_eps": 1e-5}, shared.BY_BOTH, True),
        ], UNHEEDED),
        *shared.timestep_faults(),
        *(shared.position_faults(found, found.value(SCALE)) if placed else ()),
        Fault("mask ignored", shared.BY_NETS, inputs=lambda v: v | {MASK: torch.ones_like(v[MASK])}),
    ]  # fmt: skip


AS_LOADED = latent_spec(
    reference, STOCK, cases, config_hints=config_hints, faults=faults, optional=(MASK,),
    # No softmax sees a shift of all keys, no linear attention a scale; products of channels have no order.
    invisible_biases=("attn2.to_k",), invisible_scales=("attn1.to_q", "attn1.to_k", "attn1.norm_q", "attn1.norm_k"),
    invisible_swaps=(("attn1.norm_q", "attn1.norm_k"), ("attn2.norm_q", "attn2.norm_k")),
)  # fmt: skip
MENDED = replace(STOCK, post_load=exact_eps)
EXACT = replace(AS_LOADED, converted=MENDED.net, loaded=MENDED.loaded)
FIX = PostLoadFix(EXACT_EPS, lambda found, _: bool(found.value(QK_NORM)), WHY, EXACT_LINE, EXACT)
PARITY = replace(AS_LOADED, fix=FIX)
