"""What a team writes for its CI. `parity.toml`: the checkpoints that it holds to parity, and what each is to be.

profile = "quick"                        # defaults for all

[[checkpoint]]
original = "runs/*/checkpoints/epoch_*.pth"  # relative to this file
converted = "converted/{run}/{stem}"
family = "pixart"                        # another one is refused
weights = "ema"
given = { num_attention_heads = 16 }     # what a checkpoint does not show

Waivers, there or in a file of their own:

[[waiver]]
case = "t999"                            # exactly this case; "t999 / epsilon" for one part of its output
statistic = "float32 relative L2"
bound = 3.4                              # in the report's own unit: times the noise floor, or times the limit
reason = "fused attention of the new kernel, see the review of 12 May"
expires = 2027-01-31                     # the last day on which it holds, at most a year ahead
checkpoint = "9f86d0...0a08"             # optional: SHA-256 of the only original that it is for
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from ...conversion.pairs import Pair, expand, pair_up
from ...errors import UsageError, printable
from ...families.from_file import is_file
from ..choices import RULES, Rule, wanted
from ..waivers import MOST, WAIVABLE, Waiver, unit_of
from .tomlfile import read_toml, refusal, strict, tables, text

LONGEST = 366  # days that a waiver may hold


def _given(value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError("a table such as { num_attention_heads = 16 }")
    for name, item in value.items():
        if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in CHECKPOINT:
            raise ValueError(f"names of hyper-parameters ({printable(name)} is not one)")
        if not isinstance(item, str | int | float) or (isinstance(item, float) and not math.isfinite(item)):
            raise ValueError(f"one value each ({name})")


TEXTS = dict.fromkeys(("family", "weights", "state_dict_key", "device"), text)
OPTIONS: dict[str, Rule] = {"profile": RULES["profile"], **TEXTS, **RULES, "given": _given}
CHECKPOINT: dict[str, Rule] = {"original": text, "converted": text, **OPTIONS, "cases": text}
TABLES = dict.fromkeys(("checkpoint", "waiver"), wanted("tables, which are read by themselves", lambda value: True))
WAIVER: dict[str, Rule] = {
    "case": text,
    "statistic": wanted(
        f"one of the statistics that have a tolerance ({', '.join(WAIVABLE)})", lambda value: value in WAIVABLE
    ),
    "bound": wanted("a number above zero and below 1e9", lambda value: type(value) in (int, float) and 0 < value < 1e9),
    "reason": text,
    "expires": wanted("a day, written 2027-01-31 without quotes", lambda value: type(value) is date),
    "checkpoint": wanted(
        "the 64 lower-case hexadecimal digits of a SHA-256",
        lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value),
    ),
}


@dataclass(frozen=True)
class Settings:
    """The content of a `parity.toml`: `defaults` and each of `checkpoints` are options of `check`, by name, and the
    hyper-parameters that are `given`."""

    path: str
    defaults: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    waivers: list[Waiver] = field(default_factory=list)


def load_settings(path: str | os.PathLike[str], today: date | None = None) -> Settings:
    """Read a `parity.toml`; `UsageError` in one line for what it may not state.

    >>> _ = (tmp / "parity.toml").write_text('weights = "ema"\\n[[checkpoint]]\\noriginal = "a"\\nconverted = "b"')
    >>> load_settings(tmp / "parity.toml").checkpoints
    [{'original': 'a', 'converted': 'b'}]
    """
    content = read_toml(path)
    defaults = strict(path, "", content, {**OPTIONS, **TABLES})
    checkpoints = [
        _located(path, strict(path, where, table, CHECKPOINT, needed=("original", "converted")))
        for where, table in tables(path, content, "checkpoint")
    ]
    defaults = _located(path, {name: value for name, value in defaults.items() if name in OPTIONS})
    return Settings(os.fspath(path), defaults, checkpoints, _waivers(path, content, today or date.today()))


def _located(path: str | os.PathLike[str], options: dict[str, Any]) -> dict[str, Any]:
    """Saved cases and a family that is named by its file are relative to the settings, as all their paths are."""
    files = [name for name in ("cases", "family") if name == "cases" or is_file(options.get(name, ""))]
    return options | {name: os.path.join(os.path.dirname(path), options[name]) for name in files if name in options}


def load_waivers(path: str | os.PathLike[str], today: date | None = None) -> list[Waiver]:
    """The waivers of a TOML file that holds nothing else; `UsageError` for one that should not be granted."""
    content = read_toml(path)
    if other := [key for key in content if key != "waiver"]:
        raise refusal(path, printable(other[0]), "unknown; a file of waivers holds [[waiver]] tables only")
    return _waivers(path, content, today or date.today())


def _waivers(path: str | os.PathLike[str], content: dict[str, Any], today: date) -> list[Waiver]:
    waivers: dict[tuple[str, str, str], Waiver] = {}
    for where, table in tables(path, content, "waiver"):
        waiver = Waiver(**strict(path, where, table, WAIVER, needed=[key for key in WAIVER if key != "checkpoint"]))
        limit = unit_of(waiver.statistic)
        if not limit < waiver.bound <= MOST * limit:
            unit = "the noise floor" if limit > 1 else "the limit"
            rule = f"more than {limit:g} and at most {MOST * limit:g} times {unit}, not {waiver.bound:g}"
            raise refusal(path, where, f"bound: {rule}")
        if (waiver.expires - today).days > LONGEST:
            raise refusal(path, where, f"expires: at most a year ahead, not {waiver.expires}: then look at it again")
        if waivers.setdefault((waiver.case, waiver.statistic, waiver.checkpoint), waiver) is not waiver:
            raise refusal(path, where, "the same case, statistic and checkpoint as a waiver before it")
    return [*waivers.values()]


def chosen(
    originals: Sequence[str],
    converted: Sequence[str],
    settings: Settings | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
) -> list[Pair]:
    """The pairs of a command line: those that it names, else those of its `parity.toml`, in which a flag fills what a
    [[checkpoint]] does not state.

    With both, the file gives defaults and waivers only, so that one checkpoint can be held to a team's settings.

    Args:
        flags: options of `check`, by name; None is what was not given.
    """
    stated, given = (
        {name: value for name, value in (values or {}).items() if value is not None}
        for values in (flags, hyper_parameters)
    )
    layers = [settings.defaults if settings else {}, {**stated, "given": given}]
    if originals or converted:
        return pair_up(originals, converted, *_merged(*layers))
    if settings is None:
        raise UsageError("nothing to compare: give `orig_ckpt_path` and `converted_path`, or `config` parity.toml")
    if not settings.checkpoints:
        raise refusal(settings.path, "", "lists no [[checkpoint]]")
    pairs = list[Pair]()
    for number, listed in enumerate(settings.checkpoints, 1):
        options, given = _merged(*layers, listed)
        sides, base = (options.pop("original"), options.pop("converted")), os.path.dirname(settings.path)
        try:
            pairs += expand(*sides, base=base, options=options, hyper_parameters=given)
        except UsageError as error:
            raise refusal(settings.path, f"[[checkpoint]] {number}", str(error)) from None
    return pairs


def _merged(*layers: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and hyper-parameters of several layers, the later ones over the earlier ones."""
    options = {name: value for layer in layers for name, value in layer.items() if name != "given"}
    return options, {name: value for layer in layers for name, value in layer.get("given", {}).items()}
