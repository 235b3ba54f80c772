"""What a checkpoint is: its family, layout, plan and hyper-parameters with their evidence. Moves nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.key_names import plainly_foreign
from ..checkpoint.weights_kind import EMA, LABELS, RAW, UNKNOWN, averages
from ..errors import AdapterError, InputError, UsageError, printable, shortened
from ..families import (
    ADAPTER,
    Family,
    Findings,
    families,
    find,
    modified_weights,
    named,
    other_model,
    recognise,
    tables,
)
from ..families.travelling import CLASS
from ..filenames import RECORD
from ..mapping import KeyMapping, MappingError, Plan, fold
from .checkpoint_state import CheckpointState
from .misshapen import flat, misshapen, not_weights
from .model_config import compare_with_source, config_of
from .options import stated
from .record import PLAIN, Record, find_record


@dataclass
class Analysis:
    """The outcome of looking at a checkpoint.

    `family` is None where none knows the keys, and `problem` then says what the file is instead. `diffusers` tells
    whether the keys are diffusers' already. `plan` may hold problems: `require()` raises them. `needs` is what a
    conversion would ask for first, in words; '' where nothing is lacking, or problems come before it. `record`: that of
    the conversion that made the model, empty where there is none.
    """

    checkpoint: Checkpoint
    family: Family | None = None
    diffusers: bool = False
    plan: Plan = field(default_factory=Plan)
    findings: Findings = field(default_factory=lambda: Findings({}))
    problem: str = ""
    needs: str = ""
    record: Record = field(default_factory=Record)

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter, such as a LoRA, and no model."""
        return self.problem == f"this is {ADAPTER}"

    @property
    def table(self) -> KeyMapping:
        assert self.family is not None
        return self.family.keys.targets if self.diffusers else self.family.keys

    def require(self) -> Family:
        """The family, or an `InputError` with everything that prevents a conversion."""
        path = self.checkpoint.path
        if self.family is None:
            kind = AdapterError if self.is_adapter else InputError
            raise kind(f"{printable(path)}: {self.problem}")
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
        with self.state.file_checked_first(), self.path_in_errors():
            return config_of(self.require(), self.findings)

    @contextmanager
    def path_in_errors(self) -> Iterator[None]:
        """A family sees the content of `config.json`, not its path: that is added to its errors here."""
        try:
            yield
        except InputError as error:
            if not str(error).startswith("config.json:"):
                raise
            raise InputError(f"{printable(self.checkpoint.path)}: {error}") from error


def analyse(
    checkpoint: Checkpoint,
    hyper_parameters: Mapping[str, Any] | None = None,
    family: str | None = None,
    *,
    stock: bool = False,
) -> Analysis:
    """Look at a checkpoint: names, shapes and a few elements of the positional table, which is read whole where these
    do not explain it; no other tensor is read.

    Args:
        hyper_parameters: by name, what the user states.
        family: require this family: its name, or the file (NAME.py) that defines it.
        stock: describe it for the target library's own class, where one would travel with the weights.

    Raises: `InputError` for a malformed state dict, `UsageError` if a value contradicts the file.
    """
    analysis = Analysis(checkpoint)
    recognised = recognise(checkpoint, None if family is None else find(family))
    left_out = [key for key in checkpoint.left_out if not plainly_foreign(key)]
    changed = modified_weights(left_out, beside=True)
    if recognised is None or changed:
        analysis.problem = _unrecognised(checkpoint, family, changed)
        return analysis
    known, analysis.diffusers = recognised
    # Of a table whose names are the same on both sides, the keys alone do not show which layout it is.
    if not analysis.diffusers and known.keys.targets.known(checkpoint) == len(checkpoint):
        analysis.diffusers = _was_converted(checkpoint)
    if analysis.diffusers:
        checkpoint.use_config_next_to_it()
    record = find_record(checkpoint.folder) if analysis.diffusers and checkpoint.folder else Record()
    if part := checkpoint.selected.keys.part:
        record = record.of_part(part)
    recorded = record.content.get("family", known.name)
    if recorded != known.name and family is None:  # the keys of two families may have the same targets
        if recorded in families() and not families()[recorded].keys.targets.known(checkpoint):
            record, recorded = Record(), known.name  # of a model of several folders, and this is one of them
        elif recorded not in families():
            name = printable(recorded)
            analysis.problem = f"{RECORD} says that this is of the family {name}, which is not installed: use `family`"
            return analysis
        known = families()[recorded]
    analysis.family, analysis.record = known, record
    if analysis.diffusers:
        _take_recorded_weights(checkpoint, record)
    plan = analysis.plan = analysis.table.survey(checkpoint)
    source_class = printable(checkpoint.config.get(CLASS, "")) if analysis.diffusers else None
    findings = analysis.findings = Findings(stated(hyper_parameters), stock=stock, source_class=source_class)
    _check_hyper_parameters(known, findings.given)
    with analysis.state.file_checked_first(), analysis.path_in_errors():
        with known.own_code("describe"):
            known.describe(plan, analysis.state, findings)
        for name, finding in findings.items():
            if not isinstance(finding.value, PLAIN) or (type(finding.value) is float and not isfinite(finding.value)):
                kind = f"{printable(repr(finding.value), 60)}, a {type(finding.value).__name__}"
                raise UsageError(
                    f"`family` {known.name}: {name} is {kind}: a finding is a finite number, a bool or a str"
                )
        if not plan.problems:
            analysis.needs = compare_with_source(known, analysis.state.config, findings)
    # What is said of the whole comes before what is said of single tensors.
    plan.problems[:0] = flat(checkpoint, plan) + misshapen(checkpoint, plan) + findings.problems
    plan.problems += _lost(checkpoint, analysis.table)
    plan.problems += not_weights(checkpoint)
    if plan.problems and (kind := other_model(checkpoint, *recognised)):  # of a family that was insisted on
        plan.problems.insert(0, f"this is {kind}")
    if plan.problems and checkpoint.mixed:
        plan.problems.insert(0, checkpoint.mixed)
    if plan.problems:
        analysis.needs = ""
    return analysis


def _was_converted(checkpoint: Checkpoint) -> bool:
    """Whether a record says that this very folder or file is the result of a conversion to diffusers."""
    path = Path(os.path.abspath(checkpoint.path))
    record = find_record(path if path.is_dir() else path.parent)
    if record.folder is None or record.content.get("to") != "diffusers":
        return False
    return path.is_dir() or Path(os.path.relpath(path, record.folder)).as_posix() in record.content["written"]


def _take_recorded_weights(checkpoint: Checkpoint, record: Record) -> None:
    """Which weights a converted folder was made of: nothing in it shows that but its record."""
    chosen, recorded = checkpoint.selected, record.origin.get("source", {}).get("weights")
    if recorded in (EMA, UNKNOWN) and chosen.weights == RAW:
        chosen.weights, chosen.why = recorded, f"{recorded} weights, says {RECORD}"


def _lost(checkpoint: Checkpoint, table: KeyMapping) -> Iterator[str]:
    """Weights that are lacking, as the average of the very same model in the same file shows, or its raw weights. Of
    blocks at the end, and of optional groups, nothing else does."""
    chosen, kinds = checkpoint.selected, [candidate.weights for candidate in checkpoint.plausible]
    for other in checkpoint.plausible if kinds.count(RAW) == 1 else ():
        places = {candidate.weights: candidate.where for candidate in (chosen, other)}
        if places.keys() == {RAW, EMA} and averages(places[EMA], places[RAW]):
            lacking = [key for key in other.keys.in_file if key not in chosen.keys.in_file]
            rows = {key: table.row_of(key) for key in lacking}
            lost = fold(key for key, row in rows.items() if row is not None and table.rows[row].targets)
            if lost:
                yield f"missing {shortened(lost, 4)}, which the {LABELS[other.weights]} weights have ({other.where})"


def _unrecognised(checkpoint: Checkpoint, family: str | None, changed: str) -> str:
    """What a state dict is that no family knows, or which keys are the ones that are not known.

    Args:
        changed: what is next to the model and must not be ignored.
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
    remedy = checkpoint.mixed or "`pixart new-family` drafts a family for them"
    return f"no model family knows these keys: {keys}{count}; {remedy}"


def _check_hyper_parameters(family: Family, given: Mapping[str, Any]) -> None:
    """From Python anything may come: 'false' is true, and a size that is a string fails somewhere else; JSON has no
    word for infinity."""
    if unknown := sorted(set(given) - set(family.flags)):
        raise UsageError(
            f"{', '.join(map(printable, unknown))}: not a hyper-parameter of the family {family.name}, which has "
            f"{', '.join(family.flags) or 'none'}"
        )
    for name, value in given.items():
        flag, shown = family.flags[name], printable(repr(value), 60)
        if isinstance(value, float) and not isfinite(value):
            raise UsageError(f"`{name}` {value}: not a finite number")
        if flag.type and type(value) not in ((float, int) if flag.type is float else (flag.type,)):
            raise UsageError(f"`{name}` {shown}: not {flag.type.__name__} but {type(value).__name__}")
        if flag.choices and value not in flag.choices:
            raise UsageError(f"`{name}` {shown}: one of {', '.join(flag.choices)}")
        if flag.minimum is not None and value < flag.minimum:
            raise UsageError(f"`{name}` {shown}: must be at least {flag.minimum}")
