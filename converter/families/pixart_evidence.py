"""What a PixArt file shows of its hyper-parameters, what only its user can say, and what is convention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf, isqrt
from typing import Any

from ..errors import InputError, UsageError, printable
from ..mapping import Plan
from .base import Findings, State
from .pixart_released import HEAD_SIZE, PLACEHOLDER, RELEASED, TOKENS, VAE_FACTOR, remarks
from .sincos import scale_of

POSITIONS = "pos_embed"
MICRO, QK_NORM, KV_COMPRESS, REL_POS = "micro_condition", "qk_norm", "kv_compress", "use_rel_pos"
FLAGS = {
    "image_size": int, "version": str, "multi_scale_train": bool, MICRO: bool, QK_NORM: bool, KV_COMPRESS: bool,
    "num_attention_heads": int, "interpolation_scale": float,
}  # fmt: skip

# In a folder's config.json -> what the tensors show of it. A last block that is lost shows nowhere else.
CONFIGURED = {
    "num_layers": "depth",
    "patch_size": "patch_size",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "caption_channels": "caption_channels",
    "use_additional_conditions": MICRO,
}
CONFIG_LIMIT = 1 << 20  # far above any side, scale or number of heads


def describe(plan: Plan, state: State, found: Findings) -> None:
    """Fill `found`: first what names, shapes and the positional table show, then the user's word, then convention."""
    _sizes(plan, found)
    _features(plan, found)
    _version(plan, found)
    _heads(found, state.config)
    _resolution(found, state.config, _read_table(plan, state, found))
    found.notes += remarks(found, MICRO)
    for key, name in CONFIGURED.items():
        said, shown = state.config.get(key), found.get(name)
        if said is not None and shown and shown.source == "file" and said != shown.value:
            found.problems.append(f"config.json: {key}: {printable(said)} contradicts the tensors: {shown.evidence}")


def _sizes(plan: Plan, found: Findings) -> None:
    dims, evidence = plan.dims, plan.evidence
    for name, symbol in (
        ("hidden_size", "D"),
        ("patch_size", "p"),
        ("in_channels", "C"),
        ("caption_channels", "K"),
    ):
        found.file(name, dims.get(symbol), evidence.get(symbol, "no tensor shows it"))
    found.file("depth", plan.blocks or None, f"blocks 0 to {plan.blocks - 1}" if plan.blocks else "there are no blocks")
    if {"R", "p", "C"} <= dims.keys():
        channels, latent = Fraction(dims["R"], dims["p"] ** 2), dims["C"]
        counted = f"{evidence['R']}: {dims['R']} rows / patch {dims['p']} squared"
        if channels in (latent, 2 * latent):
            found.file("out_channels", int(channels), counted)
            found.file("pred_sigma", channels > latent, f"{channels} output channels for {latent} latent channels")
        else:
            found.problems.append(f"{counted} are {channels} output channels: neither {latent} nor twice as many")
    # What the original code lets a model choose and the diffusers class does not.
    if {"F", "D"} <= dims.keys() and dims["F"] != 4 * dims["D"]:
        found.problems.append(
            f"its feed-forward layers are {dims['F'] / dims['D']:g} times as wide as the model, "
            f"and the diffusers class is fixed at 4: {evidence['F']}"
        )
    if dims.get("D", 0) % 4:
        found.problems.append(f"hidden size {dims['D']}: sines and cosines on two axes need a multiple of 4")


def _features(plan: Plan, found: Findings) -> None:
    there = "" if MICRO in plan.groups else "not "
    found.file(MICRO, MICRO in plan.groups, f"the embedders of size and aspect ratio are {there}there")
    found.file(QK_NORM, QK_NORM in plan.features, ", ".join(plan.features.get(QK_NORM, ["no query or key norms"])))
    if KV_COMPRESS in plan.features:
        found.file(KV_COMPRESS, True, ", ".join(plan.features[KV_COMPRESS]))
    elif found.settle(
        KV_COMPRESS, False, "no convolutions; sampling 'uniform' or 'ave' would leave no trace in a file"
    ):
        raise UsageError(
            "--kv_compress: stock diffusers' PixArt class cannot hold KV compression, so nothing is converted"
        )


def _configured(config: dict[str, Any], name: str, *kinds: type) -> Any:
    """A positive number from `config.json`, None where it does not say; anyone may have written that file."""
    value = config.get(name)
    if value is not None and (type(value) not in kinds or not 0 < value < CONFIG_LIMIT):
        raise InputError(f"config.json: {name}: {printable(value)} is not a sensible positive {kinds[0].__name__}")
    return value


def _version(plan: Plan, found: Findings) -> None:
    tokens = plan.dims.get("L")
    if tokens:
        found.file("caption_tokens", tokens, plan.evidence["L"])
    if tokens in TOKENS:
        found.file("version", TOKENS[tokens], f"{tokens} caption tokens")
    elif found[MICRO].value:
        found.file("version", "alpha", "micro-conditions, which sigma does not have")
    else:
        found.settle("version", None, f"{tokens or 'no'} caption tokens tell neither alpha (120) nor sigma (300)")
    version = found["version"].value
    if found[MICRO].value:
        found.file("multi_scale_train", True, "micro-conditions exist in the multi-scale class only")
    else:
        found.settle(
            "multi_scale_train",
            {"alpha": False, "sigma": True}.get(version),
            f"as in the released {version} models without micro-conditions"
            if version
            else "the file does not show its class",
        )


def _heads(found: Findings, config: dict[str, Any]) -> None:
    name, hidden = "num_attention_heads", found["hidden_size"].value or 0
    configured = _configured(config, name, int)
    if configured:
        heads = found.file(name, configured, "config.json")
    elif hidden and hidden % HEAD_SIZE == 0:
        heads = found.settle(name, hidden // HEAD_SIZE, f"hidden {hidden} / {HEAD_SIZE}, as in the released models")
    else:
        usual = f"; the released models have hidden size / {HEAD_SIZE}, and {hidden} does not divide by {HEAD_SIZE}"
        heads = found.settle(name, None, "a file does not show it" + (usual if hidden else ""))
    if heads is not None and hidden and (type(heads) is not int or heads < 1 or hidden % heads):
        wrong = f"{heads}: the hidden size {hidden} does not divide by it"
        raise InputError(f"config.json: {name} {wrong}") if configured else UsageError(f"--{name} {wrong}")


@dataclass(frozen=True, slots=True)
class _Table:
    """The stored positional table: latent side, scale (None where it is no sin-cos table), and both in words."""

    side: int
    scale: float | None
    seen: str

    @property
    def placeholder(self) -> bool:
        return (self.side, self.scale) == PLACEHOLDER


def _read_table(plan: Plan, state: State, found: Findings) -> _Table | None:
    """What the file's `pos_embed` says; its side follows from its length, its scale from two of its elements."""
    count, patch, hidden = plan.dims.get("N", 0), plan.dims.get("p", 1), plan.dims.get("D", 0)
    side = isqrt(count)
    if POSITIONS not in plan.computed or not side or side**2 != count:
        if count:
            found.notes.append(f"{POSITIONS} has {count} positions, which is not a square: it tells no resolution")
        return None
    scale, seen = None, f"{POSITIONS} [1, {count}, {hidden}] has {side} x {side} positions"
    if side > 1 and hidden % 4 == 0:
        (sine, cosine), rounding = state.elements(POSITIONS, hidden, hidden + hidden // 4)
        scale = scale_of(sine, cosine, rounding)
        seen += f", token 1 at ({sine:.6g}, {cosine:.6g})" if scale else ", and is no sin-cos table"
    return _Table(side * patch, scale, seen)


def _doubt(table: _Table, found: Findings) -> str:
    """Why a table is not believed; '' where it is."""
    if not table.placeholder:
        return ""
    pixels = table.side * VAE_FACTOR
    said = found.given.keys() & {"image_size", "interpolation_scale"}
    return (
        f"{table.seen}: scale {table.scale:g}, but every released {pixels} px model has "
        f"{RELEASED['sigma', pixels]:g}, and OneTrainer writes this table into every file: "
        + (
            "what the flags say is taken instead"
            if said
            else "say what the model was trained with (--image_size, --interpolation_scale)"
        )
    )


def _resolution(found: Findings, config: dict[str, Any], table: _Table | None) -> None:
    """`image_size` (pixels), `sample_size` (latent side) and `interpolation_scale`."""
    doubt, latent = _doubt(table, found) if table else "", _configured(config, "sample_size", int)
    if doubt:
        found.doubted[POSITIONS] = doubt
        found.notes.append(doubt)
    if table and not doubt:
        found.file("image_size", table.side * VAE_FACTOR, table.seen)
    elif latent:
        found.file("image_size", latent * VAE_FACTOR, "config.json: sample_size")
    elif table and "interpolation_scale" in found.given:
        found.settle("image_size", table.side * VAE_FACTOR, table.seen)
    else:
        found.settle(
            "image_size",
            None,
            doubt or f"there is no usable {POSITIONS}, and nothing else in a file shows the resolution",
        )
    pixels, patch = found["image_size"].value, VAE_FACTOR * (found["patch_size"].value or 1)
    if latent and pixels < patch:
        raise InputError(f"config.json: sample_size: {latent} is less than a patch")
    if found["image_size"].source == "given" and (pixels < 1 or pixels % patch):
        raise UsageError(f"--image_size {pixels}: not a multiple of {patch}, the pixels that one patch covers")
    found["sample_size"] = replace(found["image_size"], value=pixels and pixels // VAE_FACTOR)
    _scale(found, config, pixels, None if doubt or not table else table)


def _scale(found: Findings, config: dict[str, Any], pixels: int | None, table: _Table | None) -> None:
    name, version = "interpolation_scale", found["version"].value
    latent, configured = _configured(config, "sample_size", int), _configured(config, name, float, int)
    said = found.given.get(name)
    if said is not None and not 0 < said < inf:
        raise UsageError(f"--{name} {said}: a positive number is needed")
    if table and table.scale:
        found.file(name, table.scale, table.seen)
        usual = {scale for (_, size), scale in RELEASED.items() if size == pixels}
        if usual and table.scale not in usual:
            found.notes.append(
                f"{table.seen}: scale {table.scale:g}, where the released {pixels} px models have "
                f"{' or '.join(f'{s:g}' for s in sorted(usual))}; the file decides"
            )
    elif configured:
        found.file(name, configured, "config.json")
    elif latent:
        found.settle(name, max(latent // 64, 1), "what diffusers takes where config.json does not say")
    elif pixels and (version, pixels) in RELEASED:
        found.settle(name, RELEASED[version, pixels], f"as in the released {version} {pixels} px models")
        if (version, pixels) == ("alpha", 256) and found[name].source == "assumed":
            found.notes.append(
                "alpha 256 px without a positional table: scale 1 is assumed, as in its training configs "
                "(another source says 0.5)"
            )
    else:
        model = f"no released {version or '(version unknown)'} model at {pixels} px" if pixels else "no image size"
        found.settle(name, None, f"no positional table shows it, and there is {model} to tell it by")
