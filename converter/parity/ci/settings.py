"""`parity.toml`: the checkpoints that a team holds to parity, with what each is expected to be.

profile = "quick"                        # defaults for all

[[checkpoint]]
original = "runs/*/epoch_*.pth"          # relative to this file
converted = "converted/{stem}"
family = "pixart"                        # another one is refused
weights = "ema"
given = { num_attention_heads = 16 }     # what a checkpoint does not show

[[waiver]]                               # see waiver_files.py
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
from ..choices import MOST_THREADS, PRECISIONS, PROFILES, SELF_TESTS, WEIGHTS
from ..waivers import Waiver
from .tomlfile import Reader, accepting, one_of, read_toml, refusal, strict, tables, text
from .waiver_files import parse_waivers

_DTYPE = one_of(*PRECISIONS)


def _dtypes(value: Any) -> Any:
    """One dtype, or a list of those to run."""
    if not isinstance(value, list):
        return _DTYPE(value)
    if not value:
        raise ValueError("a dtype, or a list of them")
    return [_DTYPE(item) for item in value]


def _given(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a table such as { num_attention_heads = 16 }")
    for name, item in value.items():
        if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in _CHECKPOINT:
            raise ValueError(f"names of hyper-parameters ({printable(name)} is not one)")
        if not isinstance(item, str | int | float) or (isinstance(item, float) and not math.isfinite(item)):
            raise ValueError(f"one value each ({name})")
    return value


OPTIONS: dict[str, Reader] = {
    "profile": one_of(*PROFILES),
    "family": text,
    "weights": one_of(*WEIGHTS),
    "state_dict_key": text,
    "device": text,
    "dtype": _dtypes,
    "cast": _DTYPE,
    "self_test": one_of(*SELF_TESTS),
    "threads": accepting(
        f"a whole number from 1 to {MOST_THREADS}", lambda value: type(value) is int and 0 < value <= MOST_THREADS
    ),
    "given": _given,
    "require_evidence": accepting("true or false", lambda value: isinstance(value, bool)),
}
_CHECKPOINT: dict[str, Reader] = {"original": text, "converted": text, **OPTIONS, "cases": text}


@dataclass(frozen=True)
class Settings:
    """The content of a `parity.toml`: `defaults` and each of `checkpoints` are options of `check`, by name, and the
    hyper-parameters that are `given`."""

    path: str
    defaults: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    waivers: list[Waiver] = field(default_factory=list)

    def pairs(
        self, flags: Mapping[str, Any] | None = None, hyper_parameters: Mapping[str, Any] | None = None
    ) -> list[Pair]:
        """All that is listed. A flag that was given (is not None) fills what a [[checkpoint]] does not state."""
        if not self.checkpoints:
            raise refusal(self.path, "", "lists no [[checkpoint]]")
        base, pairs = os.path.dirname(self.path), list[Pair]()
        for number, listed in enumerate(self.checkpoints, 1):
            options, given = _merged(self.defaults, _stated(flags, hyper_parameters), listed)
            sides = options.pop("original"), options.pop("converted")
            try:
                pairs += expand(*sides, base=base, options=options, hyper_parameters=given)
            except UsageError as error:
                raise refusal(self.path, f"[[checkpoint]] {number}", str(error)) from None
        return pairs


def load_settings(path: str | os.PathLike[str], today: date | None = None) -> Settings:
    """Read a `parity.toml`; `UsageError` in one line for what it may not state.

    >>> _ = (tmp / "parity.toml").write_text('weights = "ema"\\n[[checkpoint]]\\noriginal = "a"\\nconverted = "b"')
    >>> load_settings(tmp / "parity.toml").checkpoints
    [{'original': 'a', 'converted': 'b'}]
    """
    content, folder = read_toml(path), os.path.dirname(os.fspath(path))
    later = accepting("tables, which are read by themselves", lambda value: True)
    defaults = strict(path, "", content, {**OPTIONS, "checkpoint": later, "waiver": later})
    checkpoints = [
        _located(folder, strict(path, where, table, _CHECKPOINT, needed=("original", "converted")))
        for where, table in tables(path, content, "checkpoint")
    ]
    defaults = _located(folder, {name: value for name, value in defaults.items() if name in OPTIONS})
    return Settings(os.fspath(path), defaults, checkpoints, parse_waivers(path, content, today))


def _located(folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """Saved cases and a family that is named by its file are relative to the settings, as all their paths are."""
    files = [name for name in ("cases", "family") if name == "cases" or is_file(options.get(name, ""))]
    return options | {name: os.path.join(folder, options[name]) for name in files if name in options}


def chosen(
    originals: Sequence[str],
    converted: Sequence[str],
    settings: Settings | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
) -> list[Pair]:
    """The pairs of a command line: those that it names, else those of its `parity.toml`.

    With both, the file gives defaults and waivers only, so that one checkpoint can be held to a team's settings.

    Args:
        flags: options of `check`, by name; None is what was not given.
    """
    if originals or converted:
        stated = _stated(flags, hyper_parameters)
        return pair_up(originals, converted, *_merged(settings.defaults if settings else {}, stated))
    if settings is None:
        raise UsageError("nothing to compare: give `orig_ckpt_path` and `converted_path`, or `config` parity.toml")
    return settings.pairs(flags, hyper_parameters)


def _stated(flags: Mapping[str, Any] | None, hyper_parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    flags, given = (
        {name: value for name, value in (values or {}).items() if value is not None}
        for values in (flags, hyper_parameters)
    )
    return {**flags, "given": given}


def _merged(*layers: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and hyper-parameters of several layers, the later ones over the earlier ones."""
    options: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for layer in layers:
        options |= layer
        given |= layer.get("given", {})
    options.pop("given", None)
    return options, given
