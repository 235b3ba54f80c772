"""The table of positions that a file holds: its resolution, its scale, or that there is none; and the table that the
target computes in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite, isqrt
from typing import Any

from ..errors import InputError, UsageError, printable
from ..mapping import Plan
from .base import Findings, Flag, State
from .evidence import configured, sensible
from .sincos import DRIFT, ROUNDING, ROUNDINGS, SinCosTable, fit, scale_of

STORED = "pos_embed"  # the key of the table
POSITIONS = "positions"  # the hyper-parameter of models that may have none: their scale, or
NONE = "none"
SCALE = "interpolation_scale"  # what the target calls it in its config, and a PixArt's user

IMAGE_SIZE = Flag("image_size", int, "Resolution.", minimum=8, metavar="PIXELS")
FLAG = Flag(POSITIONS, None, "Scale of the positions, or none for a model that has none.", metavar="none|SCALE")


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
    if not count or STORED not in plan.computed:
        return None
    side, seen = isqrt(count), f"{STORED} [1, {count}, {hidden}]"
    if side**2 != count:
        why = f"{count} positions, which is not a square"
        findings.notes.append(f"{STORED} has {why}: it tells no resolution")
        return StoredTable(0, None, f"{seen} has {why}", f"{seen} has {why}")
    seen += f" has {side} x {side} positions"
    tells = side > 1 and hidden % 4 == 0
    sampled = _from_samples(state, hidden, side) if tells else None
    if not tells and any(state.elements(STORED, *range(hidden))[0]):  # of the first token, which has ones
        return StoredTable(side * patch, None, seen)
    if not sampled and not any(values.any() for _, values in state.rows(STORED)):
        seen += ", and is zero throughout"
        return StoredTable(side * patch, None, seen, seen, zero=True)
    if not tells:
        return StoredTable(side * patch, None, seen)
    scale, words, rounding = sampled or _from_whole(state, hidden, side)
    findings.rounded[STORED] = rounding
    seen += f", {words}"
    return StoredTable(side * patch, scale, seen, "" if scale else seen)


def _from_samples(state: State, hidden: int, side: int) -> tuple[float, str, float] | None:
    """(scale, how it shows, how far rounding moves an element) off token 1, if the outermost tokens have it too."""
    quarter = hidden // 4
    channels = sorted({part * quarter + j for part in range(4) for j in (0, quarter // 2, quarter - 1)})
    places = [
        (token, channel) for token in sorted({1, side - 1, (side - 1) * side, side**2 - 1}) for channel in channels
    ]
    values, rounding = state.elements(STORED, *(token * hidden + channel for token, channel in places))
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
    fitted = fit(lambda: state.rows(STORED), hidden, side)
    if fitted is None:
        return None, "and is no sin-cos table", 0.0
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
    elif table and side and SCALE in findings.given:
        findings.given_or_assumed("image_size", side * vae_factor, table.seen, doubt)
    else:
        nothing = f"there is no usable {STORED}, and nothing else in a file shows the resolution"
        rejected = doubt or (table.rejected_evidence if table else "")
        findings.given_or_assumed("image_size", None, doubt or nothing, rejected)
    pixels, patch = findings["image_size"].value, vae_factor * (findings["patch_size"].value or 1)
    if latent and pixels < patch:
        raise InputError(f"config.json: sample_size: {latent} is less than a patch")
    if findings["image_size"].source == "given" and (pixels < 1 or pixels % patch):
        raise UsageError(f"`image_size` {pixels}: not a multiple of {patch}, the pixels that one patch covers")
    findings["sample_size"] = replace(findings["image_size"], value=pixels and pixels // vae_factor)


def none_or_scale(findings: Findings, config: Mapping[str, Any], table: StoredTable | None) -> None:
    """`positions` of a model that may have none: their scale, or "none". Nothing else in a file shows them, and without
    its table they are never assumed.

    Raises: `UsageError` for a user's word that is neither.
    """
    if POSITIONS in findings.given:
        findings.given[POSITIONS] = _stated(findings.given[POSITIONS])
    written = configured(config, SCALE, float, int)
    if table and (table.zero or table.scale):
        findings.file(POSITIONS, NONE if table.zero else table.scale, table.seen)
    elif SCALE in config:
        findings.file(POSITIONS, NONE if written is None else float(written), f"config.json: {SCALE}")
    else:
        rejected = table.rejected_evidence if table else ""
        nothing = f"there is no {STORED}, and nothing else in a file shows whether there are positions"
        older = f"config.json has no {SCALE}, as those have not that were written before positions became optional"
        findings.given_or_assumed(POSITIONS, None, rejected or (older if config else nothing), rejected)
    if findings[POSITIONS].value not in (None, NONE):
        check_width(findings)


def check_width(findings: Findings) -> None:
    """That there can be such a table."""
    if (hidden := findings["hidden_size"].value or 0) % 4:
        findings.problems.append(f"hidden size {hidden}: sines and cosines on two axes need a multiple of 4")


def _stated(value: Any) -> str | float:
    """A user's word: "none", or a positive number, as a number or in words."""
    if isinstance(value, str) and value.strip().lower() == NONE:
        return NONE
    try:
        plain = re.fullmatch(r"[0-9.eE+-]+", value) if isinstance(value, str) else type(value) in (int, float)
        scale = float(value) if plain else 0.0
        if sensible(scale):
            return scale
    except (OverflowError, ValueError):
        pass
    raise UsageError(f"`{POSITIONS}` {printable(value, 60)}: {NONE}, or the scale, a positive number such as 1")


def scale_in_use(findings: Findings) -> float | None:
    """The scale of the positions of such a model; None where it has none."""
    placed: str | float = findings.value(POSITIONS)
    return None if isinstance(placed, str) else placed


def table_or_zeros(findings: Findings) -> Any:
    """What such a model stores: the table of its size and scale, or zeros."""
    import numpy as np

    scale = scale_in_use(findings)
    table = computed_table(findings, POSITIONS if scale else "")
    return table if scale else np.broadcast_to(np.float32(0), table.shape)


def computed_table(findings: Findings, scale_name: str = "") -> SinCosTable:
    """The table that diffusers will compute from the config, of scale 1 where no hyper-parameter says another."""
    findings.value("image_size")  # asked for first: where it is known, the scale often is
    scale = findings.value(scale_name) if scale_name else 1.0
    side = findings.value("sample_size") // findings.value("patch_size")
    return SinCosTable(findings.value("hidden_size"), side, scale)


def up_to_rounding(findings: Findings, difference: float) -> str:
    """Words for a stored table that differs from the computed one by rounding; '' for any other."""
    near = difference < max(findings.rounded.get(STORED, 0.0), ROUNDING)
    return f"is the sin-cos table up to rounding (by up to {difference:.2g})" if near else ""


def drifted(difference: float) -> str:
    """Words for a stored table that differs from the computed one by averaging; '' for any other."""
    return f"is the sin-cos table up to a drift of {difference:.2g}, as by averaging" if difference <= DRIFT else ""


def use_exact_table(findings: Findings, drift: str, flag: str) -> str:
    """Words for a drifted table that the net adds to its input: the converted model adds the exact one.

    Raises: `UsageError` where no flag says to use the exact one.
    """
    stated = findings.given.keys() & {IMAGE_SIZE.name, SCALE}
    for name in stated:  # the file says the same, but it is the user's word that counts: records pass it on
        findings[name] = replace(findings[name], source="given")
    if not stated:
        value = findings.value(flag)
        raise UsageError(
            f"`{flag}` is needed: {STORED} {drift}, the original adds it to its input as it is, and the "
            f"converted model would add the exact one: `{flag}` {value} accepts it"
        )
    return f"{drift}: the exact one, by the flags, is taken instead"
