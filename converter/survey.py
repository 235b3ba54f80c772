"""What a checkpoint is: its family, layout, plan and hyper-parameters with their evidence. Moves nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import Any

from .checkpoint import Checkpoint, open_checkpoint
from .checkpoint.meaning import EMA, RAW, UNKNOWN
from .checkpoint.names import plainly_foreign
from .errors import InputError, UsageError, printable
from .families import Family, Findings, altered, find, named, recognise, stranger, tables
from .mapping import KeyMapping, MappingError, Plan, fold
from .misshapen import flat, misshapen, not_weights
from .record import RECORD, record_beside
from .state import CheckpointState


@dataclass
class Survey:
    """The outcome of looking at a checkpoint.

    `family` is None where none knows the keys, and `problem` then says what the file is instead. `diffusers` tells
    whether the keys are diffusers' already. `plan` may hold problems: `require()` raises them. `needs` is what a
    conversion would ask for first, in words; '' where nothing is lacking, or problems come before it.
    """

    checkpoint: Checkpoint
    family: Family | None = None
    diffusers: bool = False
    plan: Plan = field(default_factory=Plan)
    found: Findings = field(default_factory=lambda: Findings({}))
    problem: str = ""
    needs: str = ""

    @property
    def table(self) -> KeyMapping:
        assert self.family is not None
        return self.family.keys.targets if self.diffusers else self.family.keys

    def require(self) -> Family:
        """The family, or an `InputError` with everything that stands against a conversion."""
        path = self.checkpoint.path
        if self.family is None:
            raise InputError(f"{printable(path)}: {self.problem}")
        if self.plan.problems:
            error = MappingError(self.plan.problems)
            error.args = (f"{printable(path)}: not a {self.family.title} that can be converted: {error}",)
            raise error
        return self.family

    @cached_property
    def state(self) -> CheckpointState:
        return CheckpointState(self.checkpoint)

    def config(self) -> dict[str, Any]:
        """`config.json` of the converted model. Raises what stands against it, as `require()` does, or `UsageError`."""
        with self.state.blaming(), self.naming():
            return self.require().config(self.found)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """A family sees the content of `config.json` and not where it lies: its errors are told that here."""
        try:
            yield
        except InputError as error:
            if not str(error).startswith("config.json:"):
                raise
            raise InputError(f"{printable(self.checkpoint.path)}: {error}") from error


def open_model(
    path: str | os.PathLike[str],
    weights: str | None = None,
    state_dict_key: str | None = None,
    family: str | None = None,
) -> Checkpoint:
    """Open a checkpoint as `open_checkpoint` does, its weights found by the names that the families know: at any place
    in the file, behind any prefix, beside whatever else.

    Args:
        family: only by the names of this one.
    """
    return open_checkpoint(path, weights, state_dict_key, tables(None if family is None else find(family)))


def survey(checkpoint: Checkpoint, given: Mapping[str, Any] | None = None, family: str | None = None) -> Survey:
    """Look at a checkpoint: names, shapes and a few elements of the positional table, which is read whole where these
    do not explain it; no other tensor is read.

    Args:
        given: hyper-parameters in the user's words, by the family's flag names.
        family: insist on this family: its name, or the file (NAME.py) that makes it.

    Raises: `InputError` for a malformed state dict, `UsageError` for a word that contradicts the file.
    """
    made = Survey(checkpoint)
    recognised = recognise(checkpoint, None if family is None else find(family))
    changed = altered(key for key in checkpoint.left_out if not plainly_foreign(key))
    if recognised is None or changed:
        made.problem = _unrecognised(checkpoint, family, changed)
        return made
    made.family, made.diffusers = recognised
    if made.diffusers:
        checkpoint.take_config_beside()
        _as_recorded(checkpoint)
    made.plan = made.table.survey(checkpoint)
    made.found = Findings(given or {})
    unknown = set(made.found.given) - set(made.family.flags)
    if unknown:
        raise UsageError(
            f"{', '.join(f'--{name}' for name in sorted(unknown))}: not a flag of the family {made.family.name}, "
            f"which has {', '.join(f'--{name}' for name in made.family.flags) or 'none'}"
        )
    _check_types(made.family, made.found.given)
    with made.state.blaming(), made.naming():
        made.family.describe(made.plan, made.state, made.found)
        if not made.plan.problems:
            made.needs = _hold_against_config(made.family, made.state.config, made.found)
    # What is said of the whole comes before what is said of single tensors.
    made.plan.problems[:0] = flat(checkpoint, made.plan) + misshapen(checkpoint, made.plan) + made.found.problems
    made.plan.problems += not_weights(checkpoint)
    if made.plan.problems and (kind := stranger(checkpoint, *recognised)):  # of a family that was insisted on
        made.plan.problems.insert(0, f"this is {kind}")
    if made.plan.problems and checkpoint.mixed:
        made.plan.problems.insert(0, checkpoint.mixed)
    if made.plan.problems:
        made.needs = ""
    return made


def _as_recorded(checkpoint: Checkpoint) -> None:
    """Which weights a converted folder was made of: nothing in it shows that but its record."""
    chosen, folder = checkpoint.selected, checkpoint.folder
    told = record_beside(folder).origin.get("source", {}).get("weights") if folder else RAW
    if told in (EMA, UNKNOWN) and chosen.weights == RAW:
        chosen.weights, chosen.why = told, f"{told} weights, says {RECORD}"


def _unrecognised(checkpoint: Checkpoint, family: str | None, changed: str) -> str:
    """What a state dict is that no family knows, or which keys are the ones that are not known.

    Args:
        changed: what lies beside a model that it is not to be taken without.
    """
    if changed:
        return f"this is {changed} (beside {len(checkpoint)} keys of a model)"
    if kind := named(checkpoint):
        return f"this is {kind}"
    unknown = min(
        (
            [key for key in checkpoint if table.row_of(key) is None]
            for batch in tables(None if family is None else find(family))()
            for table in batch
        ),
        key=len,
    )
    known = len(checkpoint) - len(unknown)
    shown = fold(unknown[:200])
    keys = ", ".join(shown[:4]) + (" ..." if len(shown) > 4 else "")
    count = f" (the other {known} of {len(checkpoint)} are known)" if known else ""
    mixed = f"; {checkpoint.mixed}" if checkpoint.mixed else ""
    return f"no model family knows these keys: {keys}{count}{mixed}"


def _check_types(family: Family, given: Mapping[str, Any]) -> None:
    """From Python anything may come: 'false' is true, and a size that is a string fails somewhere else; JSON has no
    word for infinity."""
    for name, value in given.items():
        if isinstance(value, float) and not isfinite(value):
            raise UsageError(f"--{name} {value}: not a finite number")
    for name, kind in family.flags.items() if isinstance(family.flags, Mapping) else ():
        value = given.get(name)
        if value is not None and type(value) not in ((float, int) if kind is float else (kind,)):
            raise UsageError(f"--{name} {printable(repr(value))}: not {kind.__name__} but {type(value).__name__}")


def _hold_against_config(family: Family, said: Mapping[str, Any], found: Findings) -> str:
    """Whatever the source's `config.json` says of the model has to be what ours will say; returns what ours lacks."""
    if any(not problem.startswith("config.json: ") for problem in found.problems):
        return ""
    try:
        config = family.config(found)
    except UsageError as error:
        return str(error)
    for key, ours in config.items():
        theirs, others = said.get(key), family.tolerated.get(key, ())
        told = any(problem.startswith(f"config.json: {key}:") for problem in found.problems)
        if theirs is not None and theirs != ours and others is not None and theirs not in others and not told:
            found.problems.append(
                f"config.json: {key}: {printable(theirs)}, and the converted model would have {printable(ours)}"
            )
    return ""
