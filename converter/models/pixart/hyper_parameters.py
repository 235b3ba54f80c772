"""What a PixArt file shows of its hyper-parameters, what only its user can say, and what is convention."""

from __future__ import annotations

from typing import Any

from ...errors import UsageError
from ...families import evidence
from ...families.base import Findings, Flag, State
from ...mapping import Plan
from .released import HEAD_SIZE, MICRO, MLP_RATIO, PLACEHOLDER, RELEASED, TOKENS, VAE_FACTOR, remarks, stock

QK_NORM, KV_COMPRESS, REL_POS = "qk_norm", "kv_compress", "use_rel_pos"
FLAGS = (
    evidence.IMAGE_SIZE,
    Flag("version", str, "Which PixArt, if the file does not show it.", choices=("alpha", "sigma")),
    Flag("multi_scale_train", bool, "Whether the model is of the multi-scale class (PixArtMS)."),
    Flag(MICRO, bool, "Whether the model must have micro-conditions (size, aspect ratio)."),
    Flag(QK_NORM, bool, "Whether the model must normalise queries and keys."),
    Flag(KV_COMPRESS, bool, "Whether the model compresses keys and values, which a file may not show."),
    evidence.NUM_ATTENTION_HEADS,
    Flag("interpolation_scale", float, "Scale of the positions, if the file does not show it.", metavar="X"),
)


def describe(plan: Plan, state: State, findings: Findings) -> None:
    """Fill `findings`: what names, shapes and the positional table show, then the user's word, then convention."""
    evidence.sizes(plan, findings, {"caption_channels": "K"}, mlp_ratio=MLP_RATIO)
    _features(plan, state.config, findings)
    _version(plan, findings)
    hidden = findings["hidden_size"].value or 0
    count, why = hidden // HEAD_SIZE or None, f"hidden {hidden} / {HEAD_SIZE}, as in the released models"
    if hidden % HEAD_SIZE:
        count = None
        why = f"; the released models have hidden size / {HEAD_SIZE}, and {hidden} does not divide by {HEAD_SIZE}"
    evidence.heads(findings, state, count, why if hidden else "")
    table = evidence.read_table(plan, state, findings)
    doubt = _doubt(table, findings) if table else ""
    if doubt:
        findings.distrusted[evidence.POSITIONS] = doubt
        findings.notes.append(doubt)
    evidence.resolution(findings, state.config, table, doubt, vae_factor=VAE_FACTOR)
    _scale(findings, state.config, table, doubt)
    if findings["multi_scale_train"].value:
        findings.unused_buffers.add(evidence.POSITIONS)  # its class computes the table of each size anew
    findings.notes += remarks(findings)
    findings.diffusers_notes += stock(findings)
    more = {"caption_channels": "caption_channels", "use_additional_conditions": MICRO}
    evidence.held_against(state.config, findings, **more)


def _features(plan: Plan, config: dict[str, Any], findings: Findings) -> None:
    there = "" if MICRO in plan.groups else "not "
    findings.file(MICRO, MICRO in plan.groups, f"the embedders of size and aspect ratio are {there}there")
    findings.file(QK_NORM, QK_NORM in plan.features, ", ".join(plan.features.get(QK_NORM, ["no query or key norms"])))
    if KV_COMPRESS in plan.features:
        findings.file(KV_COMPRESS, True, ", ".join(plan.features[KV_COMPRESS]))
    elif config and not findings.given.get(KV_COMPRESS):
        findings.file(KV_COMPRESS, False, "config.json: the class that it is of has none")
    elif findings.given_or_assumed(
        KV_COMPRESS, False, "no convolutions; sampling 'uniform' or 'ave' would leave no trace in a file"
    ):
        raise UsageError(
            "`kv_compress`: stock diffusers' PixArt class cannot hold KV compression, so nothing is converted"
        )


def _version(plan: Plan, findings: Findings) -> None:
    tokens = plan.dims.get("L")
    if tokens:
        findings.file("caption_tokens", tokens, plan.evidence["L"])
    if tokens in TOKENS:
        findings.file("version", TOKENS[tokens], f"{tokens} caption tokens")
    elif findings[MICRO].value:
        findings.file("version", "alpha", "micro-conditions, which sigma does not have")
    else:
        findings.given_or_assumed(
            "version", None, f"{tokens or 'no'} caption tokens tell neither alpha (120) nor sigma (300)"
        )
    version = findings["version"].value
    if findings[MICRO].value:
        findings.file("multi_scale_train", True, "micro-conditions exist in the multi-scale class only")
    elif version:
        why = f"as in the released {version} models without micro-conditions"
        findings.given_or_assumed("multi_scale_train", {"alpha": False, "sigma": True}.get(version), why)
    else:
        findings.given_or_assumed("multi_scale_train", None, "the file does not show its class")


def _doubt(table: evidence.StoredTable, findings: Findings) -> str:
    """Why a table is not believed; '' where it is."""
    if (table.side, table.scale) != PLACEHOLDER:
        return ""
    pixels = table.side * VAE_FACTOR
    stated = findings.given.keys() & {"image_size", "interpolation_scale"}
    asked = "say what the model was trained with (--image_size, --interpolation_scale)"
    return (
        f"{table.seen}: scale {table.scale:g}, but every released {pixels} px model has "
        f"{RELEASED['sigma', pixels]:g}, and OneTrainer writes this table into every file: "
        + ("what the flags say is taken instead" if stated else asked)
    )


def _scale(findings: Findings, config: dict[str, Any], table: evidence.StoredTable | None, doubt: str) -> None:
    name, version, pixels = "interpolation_scale", findings["version"].value, findings["image_size"].value
    latent, written = evidence.configured(config, "sample_size", int), evidence.configured(config, name, float, int)
    stated, rejected = findings.given.get(name), doubt or (table.rejected_evidence if table else "")
    if stated is not None and not evidence.sensible(stated):
        raise UsageError(f"`{name}` {stated}: not a sensible positive number")
    if table and table.scale and not doubt:
        findings.file(name, table.scale, table.seen)
        usual = {scale for (_, size), scale in RELEASED.items() if size == pixels}
        if usual and table.scale not in usual:
            findings.notes.append(
                f"{table.seen}: scale {table.scale:g}, where the released {pixels} px models have "
                f"{' or '.join(f'{s:g}' for s in sorted(usual))}; the file decides"
            )
        return
    if written:
        findings.file(name, written, "config.json")
        return
    default = None
    if table and table.side and table.rejected_evidence:
        why = f"{table.rejected_evidence}: it shows none"
    elif latent:
        default, why = max(latent // 64, 1), "what diffusers takes where config.json does not say"
    elif pixels and (version, pixels) in RELEASED:
        default, why = RELEASED[version, pixels], f"as in the released {version} {pixels} px models"
    else:
        model = f"no released {version or '(version unknown)'} model at {pixels} px" if pixels else "no image size"
        why = f"no positional table shows it, and there is {model} to tell it by"
    findings.given_or_assumed(name, default, why, rejected)
    if default and not latent and (version, pixels) == ("alpha", 256) and findings[name].source == "assumed":
        findings.notes.append(
            "alpha 256 px without a positional table: scale 1 is assumed, as in its training configs (another source "
            "says 0.5)"
        )
