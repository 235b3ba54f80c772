"""SANA (arXiv 2410.10629), SANA-1.5 (2501.18427) and SANA-Sprint (2503.09641): original training code to diffusers.

Symbols in the shape patterns: D hidden size, C latent channels, p patch size, K caption channels, L caption tokens,
N positions, F width of the feed-forward layers, R rows of the output layer (patch^2 times output channels).
"""

from __future__ import annotations

from typing import Any

from ...families import evidence, positions
from ...families.base import Family, Findings, State
from ...families.sincos import DRIFT
from ...mapping import Computed, Extra, KeyMapping, Parameter, Plan, ZeroInit
from . import conventions
from .conventions import AMENDED, CROSS_HEADS, GUIDANCE, GUIDANCE_SCALE, QK_NORM, TIMESTEP_SCALE, TRAINED_IN

VAE_FACTOR = 32  # pixels per latent position
B, T, TIME = "blocks.{}.", "transformer_blocks.{}.", "time_embed."
# Of a model with guidance; the two have the same shapes.
OF_TIMESTEP, OF_GUIDANCE = TIME + "timestep_embedder.", TIME + "guidance_embedder."

KEYS = KeyMapping({
    "x_embedder.proj [D C p p]":        "patch_embed.proj",
    "y_embedder.y_proj.fc1 [D K]":      "caption_projection.linear_1",
    "y_embedder.y_proj.fc2 [D D]":      "caption_projection.linear_2",
    "attention_y_norm.weight [D]":      "caption_norm.weight",
    "t_embedder.mlp.0 [D 256]":         TIME + "emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2 [D D]":           TIME + "emb.timestep_embedder.linear_2",
    "t_block.1 [6D D]":                 TIME + "linear",
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
    positions.STORED + " [1 N D]":  Computed(positions.table_or_zeros),
    "y_embedder.y_embedding [L K]":     Extra(without="the null caption, which its guidance and training need"),
    "logvar_linear [1 D]":              Extra(
        without="what weighs a Sprint's loss in training", may_be_given=False, of_group=GUIDANCE
    ),
}, optional={QK_NORM: {
    f"{B}{ours}.{one}_norm.weight [D]": f"{T}{theirs}.norm_{one}.weight"
    for ours, theirs in (("attn", "attn1"), ("cross_attn", "attn2")) for one in "qk"
}, GUIDANCE: {
    "t_embedder.mlp.0 [D 256]":         OF_TIMESTEP + "linear_1",
    "t_embedder.mlp.2 [D D]":           OF_TIMESTEP + "linear_2",
    "cfg_embedder.mlp.0 [D 256]":       OF_GUIDANCE + "linear_1",
    "cfg_embedder.mlp.2 [D D]":         ZeroInit(OF_GUIDANCE + "linear_2"),
}})  # fmt: skip


def describe(plan: Plan, state: State, findings: Findings) -> None:
    """Fill `findings`: what names, shapes and the positional table show, then the user's word, then convention."""
    captions = {"caption_channels": "K", "caption_tokens": "L"}
    evidence.sizes(plan, findings, captions, mlp_ratio=None, config=state.config)
    conventions.norms(plan, state.config, findings)
    findings.file(GUIDANCE, GUIDANCE in plan.groups, "by the embedder of the guidance that is there, or not")
    table = positions.read_table(plan, state, findings)
    positions.resolution(findings, state.config, table, vae_factor=VAE_FACTOR)
    positions.none_or_scale(findings, state.config, table)
    findings.unused_buffers.add(positions.STORED)  # the multi-scale class computes the table of each size anew
    conventions.describe(state, findings)
    evidence.check_config(state.config, findings, caption_channels="caption_channels")


def config(findings: Findings) -> dict[str, Any]:
    """`config.json` for diffusers' class or for ours: every field that diffusers would otherwise guess is written."""
    asked = ["num_attention_heads", CROSS_HEADS.name, "image_size", positions.POSITIONS, TIMESTEP_SCALE.name]
    if findings.source_class is None or AMENDED.ours(findings):  # a folder for diffusers' own class stays one
        asked.append(TRAINED_IN.name)
    findings.values_of(*asked)
    hidden, cross = findings.values_of("hidden_size", CROSS_HEADS.name)
    kind = AMENDED.class_name(findings)
    fields = ["caption_channels", "mlp_ratio", CROSS_HEADS.name, TIMESTEP_SCALE.name, GUIDANCE, GUIDANCE_SCALE.name]
    fields += [TRAINED_IN.name] if kind == AMENDED.exact else []
    return evidence.common_config(
        findings, _class_name=kind, attention_bias=False,
        cross_attention_dim=hidden, cross_attention_head_dim=hidden // cross,
        interpolation_scale=positions.scale_in_use(findings),
        qk_norm="rms_norm_across_heads" if findings.value(QK_NORM) else None,
        **{name: findings.value(name) for name in fields},
    )  # fmt: skip


def buffer_mismatch(findings: Findings, difference: float) -> tuple[bool, str]:
    """Words for a `pos_embed` that recomputing does not give bit for bit."""
    return difference <= DRIFT, f"is not the table of its size and scale (by up to {difference:.2g})"


FLAGS = (
    positions.IMAGE_SIZE, evidence.NUM_ATTENTION_HEADS, positions.FLAG,
    CROSS_HEADS, TIMESTEP_SCALE, GUIDANCE_SCALE, TRAINED_IN, conventions.EXACT,
)  # fmt: skip
# Which of the two classes a folder is for, `trained_in` shows, and otherwise the nets.
IGNORABLE_CONFIG = {"_diffusers_version": None, "dropout": None, "_class_name": (AMENDED.stock, AMENDED.exact)}

SANA = Family(
    "sana", "SANA", KEYS, describe, config, flags=FLAGS, marks=("attention_y_norm", "caption_norm"),
    classes=(f"converter.models.sana.sana_transformer:{AMENDED.exact}",), ignorable_config=IGNORABLE_CONFIG,
    buffer_mismatch=buffer_mismatch, storing=DRIFT, parity="converter.models.sana.parity:PARITY",
)  # fmt: skip
