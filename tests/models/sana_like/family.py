"""SANA (arXiv 2410.10629) and SANA-1.5 (arXiv 2501.18427): original training code to diffusers, as a file of a user's.

Symbols in the shape patterns: D hidden size, C latent channels, p patch size, K caption channels, L caption tokens,
N positions, F width of the feed-forward layers, R rows of the output layer.
"""

from __future__ import annotations

from math import inf, nextafter
from typing import Any

import numpy as np

from converter import Computed, Extra, Family, Findings, Flag, KeyMapping, Parameter, Refused, UsageError
from converter.families import State, evidence
from converter.mapping import Plan

VAE_FACTOR, LINEAR_HEAD, CROSS_HEADS = 32, 32, {1152: 16, 2240: 20}  # hidden size -> heads of the cross attention
CROSS, USE_PE, SCALE, QK_NORM = "num_cross_attention_heads", "use_pe", "interpolation_scale", "qk_norm"
SHOWN = ("patch_size", "in_channels", "out_channels", "caption_channels")  # and called as the class calls them
EXACT_EPS, B, T = "exact_eps", "blocks.{}.", "transformer_blocks.{}."
EXACT_LINE = "for block in model.transformer_blocks: block.attn2.norm_q.eps = block.attn2.norm_k.eps = 1e-6"
WHY = "stock SanaTransformer2DModel normalises queries and keys of the caption with eps 1e-5, where SANA-1.5 has 1e-6"


def positions(found: Findings) -> Any:
    """What the class adds to its patches: a sin-cos table, or nothing."""
    if found.value(USE_PE):
        return evidence.computed_table(found, SCALE)
    side = found.value("sample_size") // found.value("patch_size")
    return np.broadcast_to(np.float32(0), (1, side**2, found.value("hidden_size")))


KEYS = KeyMapping({
    "x_embedder.proj [D C p p]":        "patch_embed.proj",
    "y_embedder.y_proj.fc1 [D K]":      "caption_projection.linear_1",
    "y_embedder.y_proj.fc2 [D D]":      "caption_projection.linear_2",
    "attention_y_norm.weight [D]":      "caption_norm.weight",
    "t_embedder.mlp.0 [D 256]":         "time_embed.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2 [D D]":           "time_embed.emb.timestep_embedder.linear_2",
    "t_block.1 [6D D]":                 "time_embed.linear",
    B + "scale_shift_table [6 D]":      Parameter(T + "scale_shift_table"),
    B + "attn.qkv.weight [3D D]":       (T + "attn1.to_q.weight", T + "attn1.to_k.weight", T + "attn1.to_v.weight"),
    B + "attn.proj [D D]":              T + "attn1.to_out.0",
    B + "cross_attn.q_linear [D D]":    T + "attn2.to_q",
    B + "cross_attn.kv_linear [2D D]":  (T + "attn2.to_k", T + "attn2.to_v"),
    B + "cross_attn.proj [D D]":        T + "attn2.to_out.0",
    B + "mlp.inverted_conv.conv [2F D 1 1]": T + "ff.conv_inverted",
    B + "mlp.depth_conv.conv [2F 1 3 3]": T + "ff.conv_depth",
    B + "mlp.point_conv.conv.weight [D F 1 1]": T + "ff.conv_point.weight",
    "final_layer.linear [R D]":         "proj_out",
    "final_layer.scale_shift_table [2 D]": Parameter("scale_shift_table"),
    "pos_embed [1 N D]":               Computed(positions),
    "y_embedder.y_embedding [L K]":     Extra(without="the null caption, which the original's guidance needs"),
    "logvar_linear [1 D]":              Extra(without="the weighing of the loss, which only training needs"),
    **dict.fromkeys(("cfg_embedder.mlp.0", "cfg_embedder.mlp.2"), Refused("guidance", "SANA-Sprint is not converted")),
}, optional={QK_NORM: {
    f"{B}{ours}.{one}_norm.weight [D]": f"{T}{theirs}.norm_{one}.weight"
    for ours, theirs in (("attn", "attn1"), ("cross_attn", "attn2")) for one in "qk"
}})  # fmt: skip


def describe(plan: Plan, state: State, found: Findings) -> None:
    """Fill `found`: what names, shapes and the positional table show, then the user's word, then convention."""
    evidence.sizes(plan, found, {"caption_channels": "K", "caption_tokens": "L"}, mlp_ratio=None)
    found.file(QK_NORM, QK_NORM in plan.groups, "by the norms of queries and keys that are there, or not")
    hidden, usual = found["hidden_size"].value or 0, "as in the released models"
    linear = hidden // LINEAR_HEAD if hidden % LINEAR_HEAD == 0 else None
    evidence.heads(found, state, linear, f", and {hidden} / {LINEAR_HEAD} is not whole" if linear is None else usual)
    evidence.heads(found, state, CROSS_HEADS.get(hidden), usual if hidden in CROSS_HEADS else "", name=CROSS)
    table = evidence.read_table(plan, state, found)
    evidence.resolution(found, state.config, table, vae_factor=VAE_FACTOR)
    if table:
        there = any(values.any() for _, values in state.rows("pos_embed"))
        found.file(USE_PE, there, table.seen if there else "pos_embed is zero throughout")
    elif SCALE in state.config:
        found.file(USE_PE, state.config[SCALE] is not None, f"config.json: {SCALE}")
    else:
        found.given_or_assumed(USE_PE, SCALE in found.given or None, "without pos_embed no file shows it")
    scale = table.scale if table else evidence.configured(state.config, SCALE, float, int)
    if found[USE_PE].value is not False:
        found.file(SCALE, scale, table.seen if table else "no pos_embed shows it")
    elif SCALE in found.given:
        raise UsageError(f"`{SCALE}` {found.given[SCALE]}: there are no positions: {found[USE_PE].evidence}")
    found.unused_buffers.add("pos_embed")  # the multi-scale class computes the table of each size anew
    found.given_or_assumed("timestep_scale", 1.0, "as in SANA and SANA-1.5; Sprint's teachers have 0.001")
    if found[QK_NORM].value:
        found.given_or_assumed(EXACT_EPS, False, "as from_pretrained loads it, without the note's line")
        found.diffusers_notes.append(f"{WHY}; after loading, run: {EXACT_LINE}")
    found.diffusers_notes.append("flow-Euler passes fractional timesteps, of which the original takes the whole part")
    evidence.check_config(state.config, found, caption_channels="caption_channels")


def config(found: Findings) -> dict[str, Any]:
    """`config.json` for `SanaTransformer2DModel`: every field that diffusers would otherwise guess is written."""
    asked = ("hidden_size", "num_attention_heads", CROSS, "mlp_ratio", "image_size")
    hidden, heads, cross, ratio, _ = map(found.value, asked)
    return {
        "_class_name": "SanaTransformer2DModel", "_diffusers_version": evidence.DIFFUSERS,
        "num_layers": found.value("depth"), "num_attention_heads": heads, "attention_head_dim": hidden // heads,
        CROSS: cross, "cross_attention_head_dim": hidden // cross, "cross_attention_dim": hidden,
        # The class takes the whole part of hidden size * ratio for the width.
        "mlp_ratio": ratio if int(hidden * ratio) / hidden == ratio else nextafter(ratio, inf),
        SCALE: found.value(SCALE) if found.value(USE_PE) else None,
        QK_NORM: "rms_norm_across_heads" if found.value(QK_NORM) else None,
        "attention_bias": False, "norm_elementwise_affine": False, "norm_eps": 1e-06, "dropout": 0.0,
        "guidance_embeds": False, "guidance_embeds_scale": 0.1,
        **{name: found.value(name) for name in (*SHOWN, "sample_size", "timestep_scale")},
    }  # fmt: skip


FAMILY = Family(
    "sana", "SANA", KEYS, describe, config, marks=("attention_y_norm", "caption_norm"), parity=".parity:PARITY",
    flags=(evidence.IMAGE_SIZE, evidence.NUM_ATTENTION_HEADS, Flag(CROSS, int, "Cross attention's heads.", minimum=1),
           Flag(USE_PE, bool, "Whether it has positions."), Flag(SCALE, float, "Scale of the positions."),
           Flag("timestep_scale", float, "Of the timesteps."), Flag(EXACT_EPS, bool, "Run the note's line.")),
    buffer_mismatch=lambda found, off: (off <= evidence.DRIFT, f"is not the table of its size and scale ({off:.2g})"),
    storing=evidence.DRIFT, ignorable_config=dict.fromkeys(("_diffusers_version", "dropout", "guidance_embeds_scale")),
)  # fmt: skip
