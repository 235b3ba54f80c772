"""What a PixArt file shows of its hyper-parameters, what only its user can say, and what is convention: that of the
released models, by which a file is measured, and which diffusers' pipelines and ComfyUI take all PixArts for."""

from __future__ import annotations

from typing import Any

from ...errors import UsageError
from ...families import evidence, positions
from ...families.base import Findings, Flag, State
from ...mapping import Plan, fold
from .compression import FORM, Compression, describe_compression, parse

MICRO = "micro_condition"  # the hyper-parameter that says whether there are micro-conditions
VAE_FACTOR, MLP_RATIO = 8, 4  # pixels per latent position; the feed-forward layers over the hidden size
TOKENS = {120: "alpha", 300: "sigma"}  # caption length -> which PixArt
# (version, pixels) -> positional scale of the released models. Sources disagree on alpha at 256: its training
# configs say 1.
RELEASED = {("alpha", 256): 1.0, ("alpha", 512): 1.0, ("alpha", 1024): 2.0,
            ("sigma", 256): 0.5, ("sigma", 512): 1.0, ("sigma", 1024): 2.0, ("sigma", 2048): 4.0}  # fmt: skip
# The sizes at which an alpha has micro-conditions; at 512 px there is one with and one without. Sigma has none.
WITH_MICRO, WITHOUT_MICRO = {("alpha", 512), ("alpha", 1024)}, RELEASED.keys() - {("alpha", 1024)}
HEAD_SIZE = 72  # 1152 / 16, in every released model
WIDTH, DEPTHS = 1152, (28, 42)  # of XL/2, and of a published model made deeper
PIPELINE_SIDE = 128  # the only `sample_size` at which the stock alpha pipeline passes micro-conditions on
# OneTrainer writes the table of this latent side and scale into every PixArt file, whatever the model is.
PLACEHOLDER = (128, 1.0)
# What ComfyUI does not read off a file but takes for granted; the output has the variance too.
_FIXED = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 2, "in_channels": 4, "out_channels": 8,
          "caption_channels": 4096}  # fmt: skip
_NATIVE = 64  # latent side whose scale it takes for 1; other scales are whole multiples

QK_NORM, KV_COMPRESS, REL_POS = "qk_norm", "kv_compress", "use_rel_pos"
FLAGS = (
    positions.IMAGE_SIZE,
    Flag("version", str, "Which PixArt it is.", choices=("alpha", "sigma")),
    Flag("multi_scale_train", bool, "Whether it is of the class PixArtMS."),
    Flag(MICRO, bool, "Whether it is given size and aspect ratio."),
    Flag(QK_NORM, bool, "Whether it normalises queries and keys."),
    Flag(KV_COMPRESS, None, f"How it compresses keys and values, such as {FORM}, or false.", metavar="HOW"),
    evidence.NUM_ATTENTION_HEADS,
    Flag("interpolation_scale", float, "Scale of the positions.", metavar="X"),
)


def describe(plan: Plan, state: State, findings: Findings) -> None:
    """Fill `findings`: what names, shapes and the positional table show, then the user's word, then convention."""
    evidence.sizes(plan, findings, {"caption_channels": "K"}, mlp_ratio=MLP_RATIO)
    _features(plan, state.config, findings)
    _version(plan, findings)
    _heads(state, findings)
    positions.check_width(findings)
    table = positions.read_table(plan, state, findings)
    doubt = _doubt(table, findings) if table else ""
    if doubt:
        findings.distrusted[positions.STORED] = doubt
        findings.notes.append(doubt)
    positions.resolution(findings, state.config, table, doubt, vae_factor=VAE_FACTOR)
    _scale(findings, state.config, table, doubt)
    if findings["multi_scale_train"].value:
        findings.unused_buffers.add(positions.STORED)  # its class computes the table of each size anew
    _remarks(findings)
    more = {"caption_channels": "caption_channels", "use_additional_conditions": MICRO}
    evidence.check_config(state.config, findings, **more)


def describe_blocks(plan: Plan, state: State, findings: Findings) -> None:
    """The same of blocks alone: their width and heads."""
    findings.file("hidden_size", *plan.shown("D"))
    evidence.feed_forward(plan, findings, MLP_RATIO, {})
    _heads(state, findings)


def _heads(state: State, findings: Findings) -> None:
    hidden = findings["hidden_size"].value or 0
    count, why = hidden // HEAD_SIZE or None, f"hidden {hidden} / {HEAD_SIZE}, as in the released models"
    if hidden % HEAD_SIZE:
        count = None
        why = f"; the released models have hidden size / {HEAD_SIZE}, and {hidden} is not a multiple of {HEAD_SIZE}"
    evidence.heads(findings, state, count, why if hidden else "")


def _features(plan: Plan, config: dict[str, Any], findings: Findings) -> None:
    there = "" if MICRO in plan.groups else "not "
    findings.file(MICRO, MICRO in plan.groups, f"the embedders of size and aspect ratio are {there}there")
    norms = [key for move in plan.moves if move.row.group == QK_NORM for key in move.sources]
    findings.file(QK_NORM, bool(norms), ", ".join(fold(norms)) or "no query or key norms")
    describe_compression(plan, config, findings, KV_COMPRESS)


def compression(findings: Findings) -> Compression | None:
    """How keys and values are compressed, None where they are not."""
    return parse(KV_COMPRESS, findings.value(KV_COMPRESS))


def _version(plan: Plan, findings: Findings) -> None:
    tokens = plan.dims.get("L")
    if tokens:
        findings.file("caption_tokens", tokens, plan.evidence["L"])
    if tokens in TOKENS:
        findings.file("version", TOKENS[tokens], f"{tokens} caption tokens")
    elif findings[MICRO].value:
        findings.file("version", "alpha", "micro-conditions, which sigma does not have")
    else:
        seen = f"{tokens or 'no'} caption tokens are there, where alpha has 120 and sigma 300"
        findings.given_or_assumed("version", None, seen)
    version = findings["version"].value
    if findings[MICRO].value:
        findings.file("multi_scale_train", True, "micro-conditions exist in the multi-scale class only")
    elif version:
        why = f"as in the released {version} models without micro-conditions"
        findings.given_or_assumed("multi_scale_train", {"alpha": False, "sigma": True}.get(version), why)
    else:
        findings.given_or_assumed("multi_scale_train", None, "the file does not show its class")


def other_version(findings: Findings, caption: tuple[int, ...]) -> str:
    """Why a null caption of this shape is of the other PixArt, by its length; '' where it may be of this one."""
    theirs, ours = TOKENS.get(caption[0]), findings["version"].value
    if None in (theirs, ours) or theirs == ours:
        return ""
    usual = next(tokens for tokens, version in TOKENS.items() if version == ours)
    return f"{caption[0]} tokens, as in PixArt-{theirs}, and this is PixArt-{ours}, which has {usual}"


def _doubt(table: positions.StoredTable, findings: Findings) -> str:
    """Why a table is not believed; '' where it is."""
    if (table.side, table.scale) != PLACEHOLDER:
        return ""
    pixels = table.side * VAE_FACTOR
    stated = findings.given.keys() & {"image_size", "interpolation_scale"}
    asked = "say what the model was trained with (--image_size, --interpolation_scale)"
    return (
        f"{table.seen}: scale {table.scale:g}, but every released {pixels} px model has "
        f"{RELEASED['sigma', pixels]:g}, and OneTrainer writes this table into every file: "
        + ("the flags are used instead" if stated else asked)
    )


def _scale(findings: Findings, config: dict[str, Any], table: positions.StoredTable | None, doubt: str) -> None:
    name, version, pixels = "interpolation_scale", findings["version"].value, findings["image_size"].value
    latent, written = evidence.configured(config, "sample_size", int), evidence.configured(config, name, float, int)
    stated, rejected = findings.given.get(name), doubt or (table.rejected_evidence if table else "")
    if stated is not None and not evidence.sensible(stated):
        raise UsageError(f"`{name}` {stated}: not a sensible positive number")
    if table and table.scale and not doubt:
        findings.file(name, table.scale, table.seen)
        _unlike_released(findings, table.scale, table.seen)
        return
    if written:
        findings.file(name, written, "config.json")
        _unlike_released(findings, written, "config.json")
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


def _unlike_released(findings: Findings, scale: float, seen: str) -> None:
    """Note a scale that no released model of this size has."""
    pixels = findings["image_size"].value
    usual = {released for (_, size), released in RELEASED.items() if size == pixels}
    if usual and scale not in usual:
        findings.notes.append(
            f"{seen}: scale {scale:g}, where the released {pixels} px models have "
            f"{' or '.join(f'{s:g}' for s in sorted(usual))}; the file decides"
        )


def _remarks(findings: Findings) -> None:
    """Note what is unlike every released model, and may mean that part of the file is lost, which is no reason to
    refuse it; and what diffusers' own pipelines do with such a model."""
    version, pixels = (findings[name].value for name in ("version", "image_size"))
    conditioned, side = findings[MICRO].value, findings["sample_size"].value
    if version and pixels and (version, pixels) not in (WITH_MICRO if conditioned else WITHOUT_MICRO):
        findings.notes.append(
            f"no released {version} model of {pixels} px is {'with' if conditioned else 'without'} micro-conditions"
            + (": part of the file may be missing" if (version, pixels) in WITH_MICRO else "")
        )
    usual = DEPTHS if findings["hidden_size"].value == WIDTH else ()
    evidence.check_depth(findings, usual, f"the released models of hidden size {WIDTH} have")
    if needs_own_pipeline(findings):
        findings.diffusers_notes.append(
            f"the stock PixArtAlphaPipeline passes micro-conditions on at sample_size {PIPELINE_SIDE} only, and this "
            f"model has {side}: PixArtAlphaMSPipeline, in a whole pipeline (--only_transformer=False), always does"
        )


def needs_own_pipeline(findings: Findings) -> bool:
    """Whether it has micro-conditions that diffusers' own pipeline does not pass on."""
    return bool(findings[MICRO].value) and findings["sample_size"].value not in (None, PIPELINE_SIDE)


def comfyui_warnings(findings: Findings) -> list[str]:
    """In words, everything that ComfyUI would take for something else: it guesses the model from the keys.

    comfyanonymous/ComfyUI, `comfy/model_detection.py` (the branch that asks for `t_block.1.weight`),
    `comfy/supported_models.py` (which latents a model has) and `comfy/ldm/pixart/pixartms.py` (the rest).
    """
    warnings = []
    version = findings["version"].value
    if version != "sigma" and not findings[MICRO].value:
        warnings.append(
            ("" if version else "if this is an alpha, which nothing in the model shows (--version): ")
            + "ComfyUI takes an alpha without micro-conditions for a sigma, and so its latents for SDXL's (scaling "
            "0.13025 in place of 0.18215): images will be wrong until that is overridden there"
        )
    side, scale = findings["sample_size"].value, findings["interpolation_scale"].value
    if side and scale and side // _NATIVE != scale:
        guess = side // _NATIVE
        warnings.append(
            f"ComfyUI guesses the scale of the positions as latent side / {_NATIVE}, which is {guess} for {side}, and "
            f"this model was trained with {scale:g}: "
            + ("its positions will be off" if guess else "it divides by that, so it makes no image")
        )
    for name, does in ((QK_NORM, "norms of queries and keys"), (KV_COMPRESS, "KV compression")):
        if findings[name].value:
            warnings.append(f"ComfyUI does not see {does} in a file, and leaves it out: images will be wrong")
    for name, fixed in _FIXED.items():
        value = findings[name].value if name in findings else None
        if value not in (None, fixed):
            warnings.append(f"ComfyUI has {name} = {fixed} fixed, and this model has {value}: it will not run there")
    return warnings
