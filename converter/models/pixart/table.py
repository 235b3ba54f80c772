"""PixArt-alpha (arXiv 2310.00426) and PixArt-sigma (arXiv 2403.04692): original training code to diffusers.

Symbols in the shape patterns: D hidden size, C latent channels, p patch size, K caption channels, L caption tokens,
N positions, F width of the feed-forward layers, R rows of the output layer (patch^2 times output channels).
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any

from ...errors import UsageError
from ...families import evidence, positions
from ...families.base import Family, Findings
from ...families.sincos import DRIFT
from ...mapping import Computed, Extra, KeyMapping, Parameter, Refused, Sparse, ZeroInit
from .compression import fields as compression_fields
from .hyper_parameters import (
    FLAGS,
    KV_COMPRESS,
    MICRO,
    QK_NORM,
    REL_POS,
    comfyui_warnings,
    compression,
    describe,
    other_version,
)

B, T = "blocks.{}.", "transformer_blocks.{}."
EMB = "adaln_single.emb."
STOCK, EXTENDED = "PixArtTransformer2DModel", "PixArtExtendedTransformer2DModel"
NO_REL_POS = Refused(REL_POS, "this model has relative positions, which no released model has, nor the class to write")

NO_CAPTION = (
    "the null caption, which stands for a dropped caption: alpha's code needs it for guidance and training, and draws "
    "another one at random without it (--null_caption FILE gives it); sigma's takes T5's embedding of an empty prompt, "
    "which its train.py loads from null_embed_diffusers_300token.pth, whatever the checkpoint holds"
)

KEYS = KeyMapping({
    "x_embedder.proj [D C p p]":        "pos_embed.proj",
    "y_embedder.y_proj.fc1 [D K]":      "caption_projection.linear_1",
    "y_embedder.y_proj.fc2 [D D]":      "caption_projection.linear_2",
    "t_embedder.mlp.0 [D 256]":         EMB + "timestep_embedder.linear_1",
    "t_embedder.mlp.2 [D D]":           EMB + "timestep_embedder.linear_2",
    "t_block.1 [6D D]":                 "adaln_single.linear",
    B + "scale_shift_table [6 D]":      Parameter(T + "scale_shift_table"),
    B + "attn.qkv [3D D]":              (T + "attn1.to_q", T + "attn1.to_k", T + "attn1.to_v"),
    B + "attn.proj [D D]":              T + "attn1.to_out.0",
    B + "cross_attn.q_linear [D D]":    T + "attn2.to_q",
    B + "cross_attn.kv_linear [2D D]":  (T + "attn2.to_k", T + "attn2.to_v"),
    B + "cross_attn.proj [D D]":        ZeroInit(T + "attn2.to_out.0"),
    B + "mlp.fc1 [F D]":                T + "ff.net.0.proj",
    B + "mlp.fc2 [D F]":                T + "ff.net.2",
    "final_layer.linear [R D]":         ZeroInit("proj_out"),
    "final_layer.scale_shift_table [2 D]": Parameter("scale_shift_table"),
    positions.STORED + " [1 N D]":  Computed(partial(positions.computed_table, scale_name="interpolation_scale")),
    "y_embedder.y_embedding [L K]":     Extra("caption_projection.y_embedding", NO_CAPTION, other_version),
    **dict.fromkeys((B + "attn.rel_pos_h", B + "attn.rel_pos_w"), NO_REL_POS),
}, optional={QK_NORM: {
    B + "attn.q_norm [D]":              T + "attn1.q_norm",
    B + "attn.k_norm [D]":              T + "attn1.k_norm",
}, KV_COMPRESS: {
    B + "attn.sr [D 1 s s]":            Sparse(T + "attn1.sr"),
    B + "attn.norm [D]":                Sparse(T + "attn1.norm"),
}, MICRO: {
    "csize_embedder.mlp.0 [D/3 256]":   EMB + "resolution_embedder.linear_1",
    "csize_embedder.mlp.2 [D/3 D/3]":   ZeroInit(EMB + "resolution_embedder.linear_2"),
    "ar_embedder.mlp.0 [D/3 256]":      EMB + "aspect_ratio_embedder.linear_1",
    "ar_embedder.mlp.2 [D/3 D/3]":      ZeroInit(EMB + "aspect_ratio_embedder.linear_2"),
}})  # fmt: skip


def config(findings: Findings) -> dict[str, Any]:
    """`config.json` for diffusers' class, or for the one that adds what that lacks."""
    norm, how = findings.value(QK_NORM), compression(findings)
    own = {"qk_norm": norm, **compression_fields(how)} if norm or how else {}
    if own and findings.stock:
        does = "normalises queries and keys" if norm else "compresses keys and values"
        raise UsageError(f"`stock`: this model {does}, which diffusers' {STOCK} does not: leave it out")
    fields = evidence.stock_config(findings, _class_name=EXTENDED if own else STOCK, **own)
    scale = findings.value("interpolation_scale")  # after the size: where that is known, the scale often is
    fields |= {
        "attention_type": "default",
        "caption_channels": findings.value("caption_channels"),
        "cross_attention_dim": findings.value("hidden_size"),
        "interpolation_scale": int(scale) if scale == int(scale) else scale,
        "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000,
        "use_additional_conditions": findings.value(MICRO),
    }
    return dict(sorted(fields.items()))


def buffer_mismatch(findings: Findings, difference: float) -> tuple[bool, str]:
    """Words for a `pos_embed` that recomputing does not give. Only the fixed-size class ever uses it."""
    if rounded := positions.up_to_rounding(findings, difference):
        return True, rounded
    # The class first: no flag for the size makes a table superfluous that the net adds to its input.
    if findings["multi_scale_train"].value:
        findings.used.add("multi_scale_train")
        return True, _unused(findings, difference)
    if drift := positions.drifted(difference):
        return True, positions.use_exact_table(findings, drift, "interpolation_scale")
    doubted = positions.STORED in findings.distrusted
    if doubted and findings.given.keys() & {"image_size", "interpolation_scale"}:
        return True, (
            "is the table that OneTrainer writes into every file, and the flags are used instead: if this "
            "fixed-size model was trained with it, the converted model is another one"
        )
    what = "is not the table of the size and scale" if doubted else "is no sin-cos table of the original's kind"
    return False, (
        f"{what}, and the fixed-size class uses it where diffusers computes its own: the converted model would be "
        "another one (a multi-scale model never uses it: --multi_scale_train true)"
    )


def _unused(findings: Findings, difference: float) -> str:
    """What the table of a multi-scale model is. The net does without it, but the scale may have been read off it."""
    scale = findings["interpolation_scale"]
    if drift := positions.drifted(difference):
        return f"{drift}, and the multi-scale class never uses it"
    if positions.STORED in findings.distrusted:
        return "is not the table of the size and scale that were given, and the multi-scale class never uses it"
    # An element that is not finite is refused for that, and shows nothing about the others.
    if scale.source == "file" and "interpolation_scale" not in findings.given and difference < inf:
        raise UsageError(
            f"`interpolation_scale` is needed: {positions.STORED} only begins like the sin-cos table of scale "
            f"{scale.value:g} and is off by up to {difference:.2g} further on, so it shows none"
        )
    return "is no sin-cos table, and the multi-scale class never uses it"


IGNORABLE_CONFIG = evidence.INERT | {"num_embeds_ada_norm": None}

CLASSES = (f"converter.models.pixart.pixart_transformer:{EXTENDED}",)

PIXART = Family(
    "pixart", "PixArt", KEYS, describe, config=config, classes=CLASSES, flags=FLAGS, buffer_mismatch=buffer_mismatch,
    storing=DRIFT, ignorable_config=IGNORABLE_CONFIG, comfyui=comfyui_warnings,
    parity="converter.models.pixart.parity:PARITY", pipeline="converter.models.pixart.pipeline:PIPELINE",
)  # fmt: skip
