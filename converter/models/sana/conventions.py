"""What no file of a SANA shows: heads, how its inputs are scaled, whether its self attention is clipped; and what
diffusers' own class cannot hold, or computes otherwise whatever the weights are.

Both were measured on the original nets: diffusion/model/nets/sana_blocks.py in the Sana repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...families import evidence, positions
from ...families.amended import Amended, Amendment
from ...families.base import Findings, Flag, State
from ...mapping import Plan

LINEAR_HEAD = 32  # channels of a head of the self attention
RELEASED = {1152: (16, (28,)), 2240: (20, (20, 40, 60))}  # hidden size -> heads of the cross attention, depths
USUAL = "as in the released models"
QK_NORM, GUIDANCE, FP16, BF16 = "qk_norm", "guidance_embeds", "fp16", "bf16"

CROSS_HEADS = Flag("num_cross_attention_heads", int, "Heads of SANA's cross attention.", minimum=1, metavar="N")
TIMESTEP_SCALE = Flag("timestep_scale", float, "What SANA's timesteps, of 1000, are multiplied by.")
GUIDANCE_SCALE = Flag("guidance_embeds_scale", float, "What the guidance of a SANA-Sprint is multiplied by.")
TRAINED_IN = Flag(
    "trained_in", str, "Precision of its training: fp16 clips SANA's self attention.", choices=(FP16, BF16)
)
EXACT = Flag("exact_attention", bool, "SANA with diffusers' own class: true if whoever loads it runs the note's line.")

EPS = Amendment(
    "eps 1e-5 in the norms of the cross attention, where the original has 1e-6",
    "block.attn2.norm_q.eps = block.attn2.norm_k.eps = 1e-6",
    lambda findings: bool(findings[QK_NORM].value),
)
CLIP = Amendment(
    "a self attention that is clipped at 65504 in float16 alone, where an original trained in fp16 always clips it",
    "block.attn1.register_forward_hook(lambda _, __, out: out.clip(-65504, 65504))",
    lambda findings: findings[TRAINED_IN.name].value == FP16,
)
AMENDED = Amended(
    "SanaTransformer2DModel", "SanaExactTransformer2DModel", EXACT.name, (EPS, CLIP), said_by=TRAINED_IN.name
)


def norms(plan: Plan, config: Mapping[str, Any], findings: Findings) -> None:
    """Of queries and keys: diffusers has one field for those of both attentions, and None where none are there."""
    findings.file(QK_NORM, QK_NORM in plan.groups, "by the norms of queries and keys that are there, or not")
    normed = {move.row.source.rsplit(".", 2)[0] for move in plan.moves if move.row.group == QK_NORM}
    if len(normed) == 1:
        findings.problems.append(
            f"norms of queries and keys in {normed.pop()} alone: the original allows that, and diffusers' class has "
            f"one field, {QK_NORM}, for both attentions"
        )
    elif normed and config and config.get(QK_NORM) is None:
        null = QK_NORM in config
        absent = "null contradicts the tensors" if null else "it is not there"
        words = f"config.json: {QK_NORM}: {absent}: diffusers would pass over the norms of queries and keys"
        (findings.problems if null else findings.notes).append(words)


def describe(state: State, findings: Findings) -> None:
    """Fill `findings`, in which what the tensors show stands already."""
    hidden, config = findings["hidden_size"].value or 0, state.config
    cross, depths = RELEASED.get(hidden, (None, ()))
    evidence.check_depth(findings, depths, f"the released models of hidden size {hidden} have")
    whole = hidden // LINEAR_HEAD if hidden % LINEAR_HEAD == 0 else 0
    why = USUAL if whole else f", and hidden size {hidden} / {LINEAR_HEAD} channels of a head is not whole"
    evidence.heads(findings, state, whole or None, why, recorded={evidence.NUM_ATTENTION_HEADS.name})
    theirs = " and ".join(f"{count} at hidden size {width}" for width, (count, _) in RELEASED.items())
    why = USUAL if cross else f"; the released models have {theirs}, and a training config calls it num_heads"
    recorded = {CROSS_HEADS.name, *evidence.HEADS} - {evidence.NUM_ATTENTION_HEADS.name}
    evidence.heads(findings, state, cross, why, name=CROSS_HEADS.name, recorded=recorded)

    normed, guided = findings[QK_NORM].value, findings[GUIDANCE].value
    if guided:
        evidence.convention(findings, config, TIMESTEP_SCALE, 0.001, USUAL)
        evidence.convention(findings, config, GUIDANCE_SCALE, 0.1, USUAL)
    else:
        either = "no file shows it: SANA-1.5 has 1, and Sprint's teachers, whose keys are the same, have 0.001"
        evidence.convention(findings, config, TIMESTEP_SCALE, None if normed else 1.0, either if normed else USUAL)
        unused = evidence.configured(config, GUIDANCE_SCALE.name, float, int) or 0.1
        findings.file(GUIDANCE_SCALE.name, unused, "it takes no guidance")

    if normed or findings[positions.POSITIONS].value not in (None, positions.NONE):
        evidence.convention(findings, config, TRAINED_IN, BF16, USUAL)
    else:
        why = "no file shows it: fp16 for the released 0.6B, and 1.6B of 512 and 1024 px without BF16 in their name"
        evidence.convention(findings, config, TRAINED_IN, None, f"{why}, else bf16")
    if findings[TIMESTEP_SCALE.name].value == 1:
        findings.diffusers_notes.append(
            "flow-Euler passes fractional timesteps, of which the original takes the whole part (DPM-Solver has those)"
        )
    AMENDED.describe(findings)
