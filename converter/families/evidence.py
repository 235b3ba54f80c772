"""What the families of this project have in common: patches of a latent, blocks, a table of positions. What a file
shows of these, what a `config.json` says, and what only the user can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import isqrt
from typing import Any

from ..errors import InputError, UsageError, printable
from ..mapping import Plan
from .base import Findings, State
from .sincos import SinCosTable, scale_of

DIFFUSERS = "0.42.1"  # the release whose classes the configs are written for
POSITIONS = "pos_embed"  # the stored table
ROUNDING = 1e-5  # above the last bits of float32 sines, far below any other table
VAE_FACTOR = 8  # pixels per latent position
LIMIT = 1 << 20  # far above any side, scale or number of heads, and its inverse far below any scale


def sizes(plan: Plan, found: Findings, more: Mapping[str, str] | None = None) -> None:
    """What the shapes show.

    Args:
        plan: its symbols are D hidden size, C latent channels, p patch size, F width of the feed-forward layers, R rows
            of the output layer (patch^2 times output channels).
        more: further hyper-parameters, name -> symbol.
    """
    dims, evidence = plan.dims, plan.evidence
    for name, symbol in ({"hidden_size": "D", "patch_size": "p", "in_channels": "C"} | dict(more or {})).items():
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


def held_against(config: Mapping[str, Any], found: Findings, fields: Mapping[str, str]) -> None:
    """What a folder's `config.json` says otherwise than its tensors. `fields`: its key -> the hyper-parameter."""
    for key, name in fields.items():
        said, shown = config.get(key), found.get(name)
        if said is not None and shown and shown.source == "file" and said != shown.value:
            found.problems.append(f"config.json: {key}: {printable(said)} contradicts the tensors: {shown.evidence}")


def sensible(value: float) -> bool:
    """Whether a positive number can be a side, a scale or a count at all."""
    return 1 / LIMIT < value < LIMIT


def configured(config: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """A positive number from `config.json`, None where it does not say; anyone may have written that file."""
    value = config.get(name)
    if value is not None and (type(value) not in kinds or not sensible(value)):
        raise InputError(f"config.json: {name}: {printable(value)} is not a sensible positive {kinds[0].__name__}")
    return value


def heads(found: Findings, config: Mapping[str, Any], usual: int | None, why: str) -> None:
    """The number of heads, which no tensor shows.

    Args:
        usual: that of the released models, None where they have none of this hidden size; `why` that is so.
    """
    name, hidden = "num_attention_heads", found["hidden_size"].value or 0
    said = configured(config, name, int)
    if said:
        count = found.file(name, said, "config.json")
    else:
        count = found.settle(name, usual, why if usual else f"a file does not show it{why}")
    if count is not None and hidden and (type(count) is not int or count < 1 or hidden % count):
        wrong = f"{count}: the hidden size {hidden} does not divide by it"
        raise InputError(f"config.json: {name} {wrong}") if said else UsageError(f"--{name} {wrong}")


@dataclass(frozen=True, slots=True)
class StoredTable:
    """The stored positional table: latent side, scale (None where it is no sin-cos table), and both in words."""

    side: int
    scale: float | None
    seen: str


def read_table(plan: Plan, state: State, found: Findings) -> StoredTable | None:
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
    return StoredTable(side * patch, scale, seen)


def resolution(found: Findings, config: Mapping[str, Any], table: StoredTable | None, doubt: str = "") -> None:
    """`image_size` (pixels) and `sample_size` (latent side).

    Args:
        doubt: why the table is not believed, where it is not: then its side is only taken beside the user's scale.
    """
    latent = configured(config, "sample_size", int)
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


def computed_table(found: Findings, scale: float) -> SinCosTable:
    """The table that diffusers will compute from the config."""
    return SinCosTable(found.value("hidden_size"), found.value("sample_size") // found.value("patch_size"), scale)


def up_to_rounding(difference: float) -> str:
    """What a stored table is that differs from the computed one in its last bits only; '' for any other."""
    return f"is the sin-cos table up to rounding (by up to {difference:.2g})" if difference < ROUNDING else ""
