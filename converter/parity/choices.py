"""What may be chosen of a comparison: the words for flags, keys of a `parity.toml` and fields of `CheckOptions`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, printable

FLOAT64, FLOAT32 = "float64", "float32"
GATING_PRECISIONS = (FLOAT64, FLOAT32)
HALF = ("float16", "bfloat16")
PRECISIONS = (*GATING_PRECISIONS, *HALF)  # to run the nets in, or that a conversion rounds weights to

PROFILES = ("quick", "standard", "full")
SELF_TESTS = ("quick", "full")
WEIGHTS = ("raw", "ema")
MOST_THREADS = 1024
Rule = Callable[[Any], None]  # raises `ValueError` with what is wanted, if a value is something else


def wanted(words: str, test: Callable[[Any], object]) -> Rule:
    """The rule of a value that passes a test.

    >>> wanted("true or false", lambda value: isinstance(value, bool))(1)
    Traceback (most recent call last):
    ValueError: true or false
    """

    def rule(value: Any) -> None:
        if not test(value):
            raise ValueError(words)

    return rule


def one_of(*choices: str) -> Rule:
    """The rule of a word out of several."""
    return wanted(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def dtypes(value: Any) -> None:
    """One dtype, or a list of those to run."""
    if value in ([], ()):
        raise ValueError("a dtype, or a list of them")
    for item in value if isinstance(value, list | tuple) else [value]:
        one_of(*PRECISIONS)(item)


RULES = {
    "profile": one_of(*PROFILES),
    "weights": one_of(*WEIGHTS),
    "dtype": dtypes,
    "cast": one_of(*PRECISIONS),
    "self_test": one_of(*SELF_TESTS),
    "threads": wanted(
        f"a whole number from 1 to {MOST_THREADS}", lambda value: type(value) is int and 0 < value <= MOST_THREADS
    ),
    "require_evidence": wanted("true or false", lambda value: isinstance(value, bool)),
}


@dataclass(frozen=True)
class CheckOptions:
    """The options of `check`.

    Attributes:
        profile: 'quick' (one batch of four samples), 'standard' (more cases, and sampler steps) or 'full' (also the
            model's own size and the stock loader).
        family: the family that the checkpoint has to be of.
        weights: 'raw' or 'ema'; default: what the conversion record says was taken.
        state_dict_key: where in the original the weights lie, where it holds several state dicts; default likewise.
        device: where the nets run.
        dtype: one or several of 'float64', 'float32' (both by default), 'float16', 'bfloat16' (reported; both
            gates are run all the same).
        cast: the dtype that the conversion rounded to, where it did.
        cases: a file of saved inputs to run instead of the profile's.
        save_failing: a folder for the inputs and outputs of failing cases.
        self_test: 'quick', or 'full' for the whole catalogue of deliberate faults.
        threads: of the CPU, for the whole run; default: as many as torch would use. They are part of the report.
        require_evidence: refuse (`UsageError`) a comparison that rests on an assumption, and name what to state.
        adapters, lora_alpha, allow_partial: of a converted model that has adapters merged into it: these, as
            `merge_lora` took them.
    """

    profile: str = "quick"
    family: str | None = None
    weights: str | None = None
    state_dict_key: str | None = None
    device: str = "cpu"
    dtype: str | Sequence[str] | None = None
    cast: str | None = None
    cases: str | os.PathLike[str] | None = None
    save_failing: str | os.PathLike[str] | None = None
    self_test: str = "quick"
    threads: int | None = None
    require_evidence: bool = False
    adapters: Mapping[Any, float] | Sequence[Any] = ()
    lora_alpha: float | int | None = None
    allow_partial: bool = False

    @property
    def precisions(self) -> tuple[str, ...]:
        """The dtypes to run: always float64, the sharpest gate, and the one that the self-test vouches for; half
        precision gates nothing, and takes the place of no gate."""
        asked = [self.dtype] if isinstance(self.dtype, str) else [*(self.dtype or ())]
        gates = (FLOAT64,) if {*asked} & {*GATING_PRECISIONS} else GATING_PRECISIONS
        return tuple(dict.fromkeys((*gates, *asked)))

    def validate(self) -> None:
        """Raises: `UsageError` for a value that is none of those to choose from; asked before anything is read."""
        for name, rule in RULES.items():
            if (value := getattr(self, name)) not in (None, (), []):
                try:
                    rule(value)
                except ValueError as error:
                    raise UsageError(f"`{name}` {printable(value)}: {error}") from None
        for flag in ("lora_alpha", "allow_partial"):
            if getattr(self, flag) and not self.adapters:
                raise UsageError(f"`{flag}` requires `lora`")
        folder = self.save_failing
        if folder is not None and os.path.lexists(folder) and not os.path.isdir(folder):
            raise UsageError(f"`save_failing` {printable(folder)}: not a folder")
