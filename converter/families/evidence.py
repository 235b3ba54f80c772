"""What the families of this project have in common: patches of a latent, blocks, a table of positions. What a file
shows of these, what a `config.json` says, and what only the user can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf, isfinite, isqrt, nextafter
from typing import Any

from ..errors import InputError, UsageError, printable
from ..mapping import Plan
from .base import Findings, Flag, State
from .sincos import DRIFT, ROUNDING, ROUNDINGS, NoPositions, SinCosTable, fit, scale_of
from .travelling import CLASS

DIFFUSERS = "0.42.1"  # the release whose classes the configs are written for
POSITIONS = "pos_embed"  # the stored table
SCALE, PLACED, NONE = "interpolation_scale", "positions", "none"  # in a config; the hyper-parameter; its other value
LIMIT = 1 << 20  # far above any side, scale or number of heads, and its inverse far below any scale

IMAGE_SIZE = Flag("image_size", int, "Resolution.", minimum=8, metavar="PIXELS")
NUM_ATTENTION_HEADS = Flag("num_attention_heads", int, "Number of attention heads.", minimum=1, metavar="N")
PLACED_OR_NOT = Flag(PLACED, None, "Scale of the positions, or none for a model that has none.", metavar="none|SCALE")
# Of a `config.json`, what changes no output: at most training, or a part that these classes do not have.
INERT: dict[str, tuple[Any, ...] | None] = {
    CLASS: ("Transformer2DModel",),
    **dict.fromkeys(("_diffusers_version", "dropout", "norm_num_groups", "upcast_attention")),
}
# What every such config says, as the class calls it -> the hyper-parameter.
SHOWN = {"num_layers": "depth"} | {name: name for name in ("patch_size", "in_channels", "out_channels")}


def latent_config(findings: Findings, **own: Any) -> dict[str, Any]:
    """`config.json` of a transformer of diffusers: every field that it would otherwise guess is written."""
    hidden, count, _ = findings.values_of("hidden_size", "num_attention_heads", "image_size")
    fields = {
        "_diffusers_version": DIFFUSERS,
        "attention_head_dim": hidden // count,
        "dropout": 0.0,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,  # of a block's second norm, where the default is 1e-5; the others have 1e-6 anyway
        "num_attention_heads": count,
        "sample_size": findings.value("sample_size"),
        **{field: findings.value(name) for field, name in SHOWN.items()},
        **own,
    }
    return dict(sorted(fields.items()))


def stock_config(findings: Findings, **own: Any) -> dict[str, Any]:
    """The same of one whose blocks are diffusers' `BasicTransformerBlock`s."""
    block = {"activation_fn": "gelu-approximate", "attention_bias": True, "norm_num_groups": 32}
    return latent_config(findings, **block, upcast_attention=False, **own)


def sizes(plan: Plan, findings: Findings, more: Mapping[str, str] | None = None, *, mlp_ratio: float | None) -> None:
    """What the shapes show.

    Args:
        plan: its symbols are D hidden size, C latent channels, p patch size, F width of the feed-forward layers, R rows
            of the output layer (patch^2 times output channels).
        more: further hyper-parameters, name -> symbol.
        mlp_ratio: the width of the feed-forward layers over the hidden size that the target's class is fixed at; None
            where it takes any, and then it is a hyper-parameter, of which the class takes the whole part of its product
            with the hidden size.
    """
    dims, evidence = plan.dims, plan.evidence
    for name, symbol in ({"hidden_size": "D", "patch_size": "p", "in_channels": "C"} | dict(more or {})).items():
        findings.file(name, dims.get(symbol), evidence.get(symbol, "no tensor shows it"))
    counted = f"blocks 0 to {plan.blocks - 1}" if plan.blocks else "there are no blocks"
    findings.file("depth", plan.blocks or None, counted)
    if {"R", "p", "C"} <= dims.keys():
        channels, latent = Fraction(dims["R"], dims["p"] ** 2), dims["C"]
        counted = f"{evidence['R']}: {dims['R']} rows / patch {dims['p']} squared"
        if channels in (latent, 2 * latent):
            findings.file("out_channels", int(channels), counted)
            findings.file("pred_sigma", channels > latent, f"{channels} output channels for {latent} latent channels")
        else:
            findings.problems.append(f"{counted} are {channels} output channels: neither {latent} nor twice as many")
    feed_forward(plan, findings, mlp_ratio)
    if dims.get("D", 0) % 4:
        findings.problems.append(f"hidden size {dims['D']}: sines and cosines on two axes need a multiple of 4")


def feed_forward(plan: Plan, findings: Findings, mlp_ratio: float | None) -> None:
    """The width of these layers, F, which the original code lets a model choose and a class of diffusers may not: the
    arguments are those of `sizes`."""
    dims, evidence = plan.dims, plan.evidence
    if mlp_ratio is None:
        ratio = dims["F"] / dims["D"] if {"F", "D"} <= dims.keys() else None
        if ratio and int(dims["D"] * ratio) < dims["F"]:
            ratio = nextafter(ratio, inf)
        findings.file("mlp_ratio", ratio, evidence.get("F", "no tensor shows it"))
    elif {"F", "D"} <= dims.keys() and dims["F"] != mlp_ratio * dims["D"]:
        findings.problems.append(
            f"its feed-forward layers are {dims['F'] / dims['D']:g} times as wide as the model, "
            f"and the diffusers class is fixed at {mlp_ratio:g}: {evidence['F']}"
        )


def check_config(config: Mapping[str, Any], findings: Findings, **more: str) -> None:
    """What a folder's `config.json` says otherwise than its tensors: a last block that is lost shows nowhere else.
    `more`: further keys of it, and the hyper-parameters that they are."""
    for key, name in {**SHOWN, **more}.items():
        stated, shown = config.get(key), findings.get(name)
        if stated is not None and shown and shown.source == "file" and stated != shown.value:
            problem = f"{printable(stated)} contradicts the tensors: {shown.evidence}"
            findings.problems.append(f"config.json: {key}: {problem}")


def sensible(value: float) -> bool:
    """Whether a positive number can be a side, a scale or a count at all."""
    return 1 / LIMIT < value < LIMIT


def configured(config: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """A positive number from `config.json`, None where it does not say; anyone may have written that file."""
    value = config.get(name)
    if value is not None and (type(value) not in kinds or not sensible(value)):
        raise InputError(f"config.json: {name}: {printable(value)} is not a sensible positive {kinds[0].__name__}")
    return value


_HEADS = {"num_attention_heads", "num_heads", "n_heads", "heads", "num_head"}  # as programs call them


def heads(findings: Findings, state: State, usual: int | None, why: str, *, name: str = "num_attention_heads") -> None:
    """A number of heads, which no tensor shows. Counts of heads recorded beside the weights may be another net's
    (a text encoder's): they are reported, but not relied on.

    Args:
        name: of the hyper-parameter, where a model has several.
        usual: that of the released models, None where they have none of this hidden size; `why` that is so.
    """
    hidden = findings["hidden_size"].value or 0
    stated = configured(state.config, name, int)
    others = {
        place: n for place, n in state.recorded_integers.items() if place.rpartition(".")[2] in _HEADS and n != usual
    }
    rejected = ", ".join(f"{place} is {n}" for place, n in list(others.items())[:4])
    if stated:
        count = findings.file(name, stated, "config.json")
    else:
        count = findings.given_or_assumed(name, usual, why if usual else f"a file does not show it{why}", rejected)
        if rejected and findings[name].source == "assumed":
            findings.notes.append(f"{rejected}, and {usual} heads are assumed: --{name} sets the number")
    if count is not None and hidden and (type(count) is not int or count < 1 or hidden % count):
        wrong = f"{count}: the hidden size {hidden} is not a multiple of it"
        raise InputError(f"config.json: {name} {wrong}") if stated else UsageError(f"`{name}` {wrong}")


@dataclass(frozen=True, slots=True)
class StoredTable:
    """The stored positional table."""

    side: int  # of the latent; 0 where its positions make no square
    scale: float | None  # None where it shows none
    seen: str  # both in words
    rejected_evidence: str = ""  # why it shows no scale that it ought to show
    zero: bool = False  # it is zero throughout: what a model without positions has


def read_table(plan: Plan, state: State, findings: Findings) -> StoredTable | None:
    """What the file's `pos_embed` says, None where there is none: its side follows from its length, its scale from a
    few of its elements, or, where these explain none, from all of them."""
    count, patch, hidden = plan.dims.get("N", 0), plan.dims.get("p", 1), plan.dims.get("D", 0)
    if not count or POSITIONS not in plan.computed:
        return None
    side, seen = isqrt(count), f"{POSITIONS} [1, {count}, {hidden}]"
    if side**2 != count:
        why = f"{count} positions, which is not a square"
        findings.notes.append(f"{POSITIONS} has {why}: it tells no resolution")
        return StoredTable(0, None, f"{seen} has {why}", f"{seen} has {why}")
    seen += f" has {side} x {side} positions"
    if side == 1 or hidden % 4:
        return StoredTable(side * patch, None, seen)
    sampled = _from_samples(state, hidden, side)
    if not sampled and not any(values.any() for _, values in state.rows(POSITIONS)):
        seen += ", and is zero throughout"
        return StoredTable(side * patch, None, seen, seen, zero=True)
    scale, words, rounding = sampled or _from_whole(state, hidden, side)
    findings.rounded[POSITIONS] = rounding
    seen += f", {words}"
    return StoredTable(side * patch, scale, seen, "" if scale else seen)


def _from_samples(state: State, hidden: int, side: int) -> tuple[float, str, float] | None:
    """(scale, how it shows, how far rounding moves an element) off token 1, if the outermost tokens have it too."""
    quarter = hidden // 4
    channels = sorted({part * quarter + j for part in range(4) for j in (0, quarter // 2, quarter - 1)})
    places = [
        (token, channel) for token in sorted({1, side - 1, (side - 1) * side, side**2 - 1}) for channel in channels
    ]
    values, rounding = state.elements(POSITIONS, *(token * hidden + channel for token, channel in places))
    there = dict(zip(places, values, strict=True))
    sine, cosine = there[1, 0], there[1, quarter]
    scale = scale_of(sine, cosine, rounding)
    if scale is None:
        return None
    table = SinCosTable(hidden, side, scale)
    # Far from the origin, positions in float32 move it too. What is not finite is refused for that when it is read.
    off = [abs(table.element(*place) - value) for place, value in there.items() if isfinite(value)]
    if max(off, default=0.0) > rounding + ROUNDING:
        return None
    return scale, f"token 1 at ({sine:.6g}, {cosine:.6g})", max(rounding, ROUNDING)


def _from_whole(state: State, hidden: int, side: int) -> tuple[float | None, str, float]:
    """The same off every element; the scale is None where none is beyond doubt."""
    fitted = fit(lambda: state.rows(POSITIONS), hidden, side)
    if fitted is None:
        return None, "and is no sin-cos table: it is not finite", 0.0
    off, name = f"off by up to {fitted.difference:.2g}", f"the sin-cos table of scale {fitted.nearest:g}"
    if fitted.scale is None:
        doubt = f"the closest is of {fitted.nearest:g}, {off}"
        return None, f"and is no sin-cos table whose scale is beyond doubt ({doubt})", 0.0
    if fitted.rounded:
        return fitted.scale, f"and is {name}, rounded to {fitted.rounded} ({off})", ROUNDINGS[fitted.rounded]
    return fitted.scale, f"and is {name} up to a drift, as by averaging ({off})", ROUNDING


def resolution(
    findings: Findings, config: Mapping[str, Any], table: StoredTable | None, doubt: str = "", *, vae_factor: int
) -> None:
    """`image_size` (pixels) and `sample_size` (latent side).

    Args:
        vae_factor: pixels per latent position.
        doubt: why the table is not believed, where it is not: then its side is only taken beside the user's scale.
    """
    latent, side = configured(config, "sample_size", int), table.side if table else 0
    if table and side and not doubt:
        findings.file("image_size", side * vae_factor, table.seen)
    elif latent:
        findings.file("image_size", latent * vae_factor, "config.json: sample_size")
    elif table and side and "interpolation_scale" in findings.given:
        findings.given_or_assumed("image_size", side * vae_factor, table.seen, doubt)
    else:
        nothing = f"there is no usable {POSITIONS}, and nothing else in a file shows the resolution"
        rejected = doubt or (table.rejected_evidence if table else "")
        findings.given_or_assumed("image_size", None, doubt or nothing, rejected)
    pixels, patch = findings["image_size"].value, vae_factor * (findings["patch_size"].value or 1)
    if latent and pixels < patch:
        raise InputError(f"config.json: sample_size: {latent} is less than a patch")
    if findings["image_size"].source == "given" and (pixels < 1 or pixels % patch):
        raise UsageError(f"`image_size` {pixels}: not a multiple of {patch}, the pixels that one patch covers")
    findings["sample_size"] = replace(findings["image_size"], value=pixels and pixels // vae_factor)


def convention(findings: Findings, config: Mapping[str, Any], name: str, usual: str | float | None, why: str) -> None:
    """What only a `config.json` shows, a positive number or a word; else the user's word, or what is usual (None: it is
    asked)."""
    written = config.get(name) if isinstance(config.get(name), str) else configured(config, name, float, int)
    if written is not None:
        findings.file(name, written, f"config.json: {name}")
    else:
        findings.given_or_assumed(name, usual, why)


def positions(findings: Findings, config: Mapping[str, Any], table: StoredTable | None) -> None:
    """`positions` of a model that may have none: their scale, or "none". Nothing else in a file shows them, and without
    its table they are never assumed.

    Raises: `UsageError` for a user's word that is neither.
    """
    if PLACED in findings.given:
        findings.given[PLACED] = _none_or_scale(findings.given[PLACED])
    written = configured(config, SCALE, float, int)
    if table and (table.zero or table.scale):
        findings.file(PLACED, NONE if table.zero else table.scale, table.seen)
    elif SCALE in config:
        findings.file(PLACED, NONE if written is None else float(written), f"config.json: {SCALE}")
    else:
        rejected = table.rejected_evidence if table else ""
        nothing = f"there is no {POSITIONS}, and nothing else in a file shows whether there are positions"
        older = f"config.json has no {SCALE}, as those have not that were written before positions became optional"
        findings.given_or_assumed(PLACED, None, rejected or (older if config else nothing), rejected)


def _none_or_scale(value: Any) -> str | float:
    """A user's word: "none", or a positive number, as a number or in words."""
    if isinstance(value, str) and value.strip().lower() == NONE:
        return NONE
    try:
        scale = float(value)
        if not isinstance(value, bool) and sensible(scale):
            return scale
    except (TypeError, ValueError):
        pass
    raise UsageError(f"`{PLACED}` {printable(value, 60)}: {NONE}, or the scale, a positive number such as 1")


def scale_of_positions(findings: Findings) -> float | None:
    """The scale of the positions of such a model; None where it has none."""
    placed: str | float = findings.value(PLACED)
    return None if isinstance(placed, str) else placed


def positions_table(findings: Findings) -> SinCosTable | NoPositions:
    """What such a model stores: the table of its size and scale, or zeros."""
    scale = scale_of_positions(findings)
    table = computed_table(findings, PLACED if scale else "")
    return table if scale else NoPositions(table.hidden, table.side)


def computed_table(findings: Findings, scale_name: str = "") -> SinCosTable:
    """The table that diffusers will compute from the config, of scale 1 where no hyper-parameter says another."""
    findings.value("image_size")  # asked for first: where it is known, the scale often is
    scale = findings.value(scale_name) if scale_name else 1.0
    side = findings.value("sample_size") // findings.value("patch_size")
    return SinCosTable(findings.value("hidden_size"), side, scale)


def up_to_rounding(findings: Findings, difference: float) -> str:
    """Words for a stored table that differs from the computed one by rounding; '' for any other."""
    near = difference < max(findings.rounded.get(POSITIONS, 0.0), ROUNDING)
    return f"is the sin-cos table up to rounding (by up to {difference:.2g})" if near else ""


def drifted(difference: float) -> str:
    """Words for a stored table that differs from the computed one by averaging; '' for any other."""
    return f"is the sin-cos table up to a drift of {difference:.2g}, as by averaging" if difference <= DRIFT else ""


def use_exact_table(findings: Findings, drift: str, flag: str) -> str:
    """Words for a drifted table that the net adds to its input: the converted model adds the exact one.

    Raises: `UsageError` where no flag says to use the exact one.
    """
    stated = findings.given.keys() & {"image_size", "interpolation_scale"}
    for name in stated:  # the file says the same, but it is the user's word that counts: records pass it on
        findings[name] = replace(findings[name], source="given")
    if not stated:
        value = findings.value(flag)
        raise UsageError(
            f"`{flag}` is needed: {POSITIONS} {drift}, the original adds it to its input as it is, and the "
            f"converted model would add the exact one: `{flag}` {value} accepts it"
        )
    return f"{drift}: the exact one, by the flags, is taken instead"
