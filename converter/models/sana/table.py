"""SANA (arXiv 2410.10629), SANA-1.5 (2501.18427) and SANA-Sprint (2503.09641): original training code to diffusers.

Symbols in the shape patterns: D hidden size, C latent channels, p patch size, K caption channels, L caption tokens,
N positions, F width of the feed-forward layers, R rows of the output layer (patch^2 times output channels).
"""

from __future__ import annotations

from typing import Any

from ...families import evidence
from ...families.base import Family, Findings, Flag, State
from ...families.sincos import DRIFT
from ...mapping import Computed, Extra, KeyMapping, Parameter, Plan, ZeroInit
from .amended import AMENDED, BF16, FP16, QK_NORM, TRAINED_IN, normed

VAE_FACTOR, LINEAR_HEAD, CROSS_HEADS = 32, 32, {1152: 16, 2240: 20}  # hidden size -> heads of the cross attention
CROSS, TIMESTEP_SCALE = "num_cross_attention_heads", "timestep_scale"
GUIDANCE, GUIDANCE_SCALE = "guidance_embeds", "guidance_embeds_scale"
USUAL = "as in the released models"
SCALES = "no file shows it: SANA-1.5 has 1, and Sprint's teachers, whose keys are the same, have 0.001"
PRECISIONS = "no file shows it; fp16 are the released 0.6B, and 1.6B of 512 and 1024 px that are not called BF16"
B, T, TIME = "blocks.{}.", "transformer_blocks.{}.", "time_embed."

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
    evidence.POSITIONS + " [1 N D]":  Computed(evidence.positions_table),
    "y_embedder.y_embedding [L K]":     Extra(without="the null caption, which its guidance and training need"),
    "logvar_linear [1 D]":              Extra(without="what weighs its loss, which only training needs", given=False),
}, optional={QK_NORM: {
    f"{B}{ours}.{one}_norm.weight [D]": f"{T}{theirs}.norm_{one}.weight"
    for ours, theirs in (("attn", "attn1"), ("cross_attn", "attn2")) for one in "qk"
}, GUIDANCE: {
    "t_embedder.mlp.0 [D 256]":         TIME + "timestep_embedder.linear_1",
    "t_embedder.mlp.2 [D D]":           TIME + "timestep_embedder.linear_2",
    "cfg_embedder.mlp.0 [D 256]":       TIME + "guidance_embedder.linear_1",
    "cfg_embedder.mlp.2 [D D]":         ZeroInit(TIME + "guidance_embedder.linear_2"),
}})  # fmt: skip


def describe(plan: Plan, state: State, findings: Findings) -> None:
    """Fill `findings`: what names, shapes and the positional table show, then the user's word, then convention."""
    evidence.sizes(plan, findings, {"caption_channels": "K", "caption_tokens": "L"}, mlp_ratio=None)
    findings.file(QK_NORM, QK_NORM in plan.groups, "by the norms of queries and keys that are there, or not")
    findings.file(GUIDANCE, GUIDANCE in plan.groups, "by the embedder of the guidance that is there, or not")
    hidden = findings["hidden_size"].value or 0
    linear, cross = None if hidden % LINEAR_HEAD else hidden // LINEAR_HEAD, CROSS_HEADS.get(hidden)
    evidence.heads(findings, state, linear, USUAL if linear else f", and {hidden} / {LINEAR_HEAD} is not whole")
    evidence.heads(findings, state, cross, USUAL if cross else "", name=CROSS)
    table = evidence.read_table(plan, state, findings)
    evidence.resolution(findings, state.config, table, vae_factor=VAE_FACTOR)
    evidence.positions(findings, state.config, table)
    findings.unused_buffers.add(evidence.POSITIONS)  # the multi-scale class computes the table of each size anew
    _conventions(state.config, findings)
    evidence.check_config(state.config, findings, caption_channels="caption_channels")


def _conventions(config: dict[str, Any], findings: Findings) -> None:
    """What no tensor shows: how its inputs are scaled, and whether its self attention is clipped."""
    guided, newer = findings[GUIDANCE].value, normed(findings)
    scale = 0.001 if guided else None if newer else 1.0
    evidence.convention(findings, config, TIMESTEP_SCALE, scale, USUAL if scale else SCALES)
    if guided:
        evidence.convention(findings, config, GUIDANCE_SCALE, 0.1, USUAL)
    else:
        findings.file(GUIDANCE_SCALE, 0.1, "it takes no guidance")
    precision = BF16 if newer or findings[evidence.PLACED].value not in (None, evidence.NONE) else None
    evidence.convention(findings, config, TRAINED_IN, precision, USUAL if precision else PRECISIONS)
    if findings[TIMESTEP_SCALE].value == 1:
        findings.diffusers_notes.append("flow-Euler passes fractional timesteps; the original takes the whole part")
    AMENDED.describe(findings)


def config(findings: Findings) -> dict[str, Any]:
    """`config.json` for diffusers' class or for ours: every field that diffusers would otherwise guess is written."""
    asked = ["hidden_size", CROSS, "num_attention_heads", "image_size", evidence.PLACED, TIMESTEP_SCALE]
    hidden, cross, *_ = findings.values_of(*asked, *([TRAINED_IN] if AMENDED.ours(findings) else []))
    fields, kind = ["caption_channels", "mlp_ratio", GUIDANCE, GUIDANCE_SCALE], AMENDED.class_name(findings)
    fields += [CROSS, TIMESTEP_SCALE] + ([TRAINED_IN] if kind == AMENDED.exact else [])
    return evidence.latent_config(
        findings, _class_name=kind, cross_attention_dim=hidden, cross_attention_head_dim=hidden // cross,
        attention_bias=False, interpolation_scale=evidence.scale_of_positions(findings),
        qk_norm="rms_norm_across_heads" if normed(findings) else None,
        **{name: findings.value(name) for name in fields},
    )  # fmt: skip


SANA = Family(
    "sana", "SANA", KEYS, describe, config, marks=("attention_y_norm", "caption_norm"), storing=DRIFT,
    classes=(f"converter.models.sana.sana_transformer:{AMENDED.exact}",), parity="converter.models.sana.parity:PARITY",
    flags=(
        evidence.IMAGE_SIZE, evidence.NUM_ATTENTION_HEADS, evidence.PLACED_OR_NOT,
        Flag(CROSS, int, "Number of heads of the cross attention.", minimum=1, metavar="N"),
        Flag(TIMESTEP_SCALE, float, "What its timesteps, of 1000, are multiplied by."),
        Flag(GUIDANCE_SCALE, float, "What its guidance is multiplied by."),
        Flag(TRAINED_IN, str, "Precision of its training: fp16 clips SANA's self attention.", choices=(FP16, BF16)),
        Flag(AMENDED.flag, bool, "SANA with diffusers' own class: true if whoever loads it runs the line in the note."),
    ),
    buffer_mismatch=lambda found, off: (off <= DRIFT, f"is not the table of its size and scale (by up to {off:.2g})"),
    # Which of the two classes a folder is for, `trained_in` shows, and otherwise the nets.
    ignorable_config={"_diffusers_version": None, "dropout": None, "_class_name": (AMENDED.stock, AMENDED.exact)},
)  # fmt: skip
