"""Both sides of a comparison, opened, and what is known of them: from the file, from the user, or only assumed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.folders.folder import CONFIG, model_folder
from ..checkpoint.json_file import has_byte_order_mark as marked
from ..checkpoint.weight_names import WEIGHTS
from ..conversion.analysis import Analysis, analyse, open_model
from ..conversion.evidence_required import demand
from ..errors import InputError, UsageError, printable
from ..families import Family, Findings, families, find
from ..nets.spec import ParitySpec
from . import provenance
from .choices import CheckOptions
from .compared import Sides


@dataclass
class Opened:
    """Both sides, opened, and what is known of them."""

    original: Checkpoint
    converted: Checkpoint
    folder: Path
    sidecar: Checkpoint | None
    looked: Analysis
    seen: Findings
    family: Family
    model: ParitySpec
    config: dict[str, Any]
    borrowed: dict[str, Any]
    cast: str
    notes: list[str]

    @property
    def taken(self) -> dict[str, Any]:
        """Of the original, what was read."""
        chosen = self.original.selected
        return {"container": self.original.container, "weights": chosen.weights, "where": chosen.where}

    @property
    def found(self) -> Findings:
        return self.looked.found

    def demand_evidence(self) -> None:
        """Refuse what rests on an assumption. Raises: `UsageError`."""
        found, sides = self.found, self.sides
        found.asked.clear()
        self.seen.asked.clear()
        self.family.config(found)
        _ = sides.buffers  # whether they are dispensable may rest on one too
        found.asked |= self.seen.asked
        demand(self.family, found, self.original, self.borrowed)

    @cached_property
    def sides(self) -> Sides:
        looked = self.looked
        return Sides(
            family=self.family,
            found=looked.found,
            plan=looked.plan,
            original=self.original,
            converted=self.converted,
            sidecar=self.sidecar,
            cast=self.cast,
            seen=self.seen,
        )


def open_pair(
    stack: ExitStack,
    original: Path,
    converted: Path,
    options: CheckOptions,
    hyper_parameters: Mapping[str, Any],
) -> Opened:
    """Open both sides strictly, and say what the original is. Raises whatever stands against a comparison."""
    family, weights, state_dict_key = options.family, options.weights, options.state_dict_key
    record, notes = provenance.record_of(converted)
    theirs = stack.enter_context(open_checkpoint(converted))
    if not theirs.config:
        raise InputError.at(converted, "", "holds no config.json: it is no folder that diffusers loads")
    place = model_folder(converted)
    if marked(place / CONFIG):
        rule = "begins with a byte order mark, which diffusers does not read: save it as UTF-8 without one"
        raise InputError.at(place / CONFIG, "", rule)
    arguments, unloaded = provenance.loading(place)
    if unloaded:
        rule = f"its weights are {unloaded}, which diffusers does not load: it looks for {WEIGHTS}"
        raise InputError.at(place, "", rule)
    if arguments:
        shown = printable(", ".join(f"{name}={value!r}" for name, value in arguments.items()))
        notes.append(f"diffusers loads its weights only when told to: from_pretrained(..., {shown})")
    ours = stack.enter_context(open_model(original, weights, state_dict_key, family))
    if record.size not in (None, ours.size):
        notes.append("the conversion record is of another file (its size differs): what it says is not believed")
        record = provenance.Record()
    if weights is None and state_dict_key is None and record.weights:
        if record.where in {candidate.where for candidate in ours.candidates}:
            ours = stack.enter_context(open_model(original, None, record.where, family))
        elif not record.where and record.weights in {candidate.weights for candidate in ours.likely}:
            ours = stack.enter_context(open_model(original, record.weights, None, family))
        else:
            named = f"{record.weights} weights ({printable(record.where)})"
            notes.append(f"the conversion record names {named}, which the original does not hold")
    notes += [*ours.notes, *theirs.notes]
    given = {name: value for name, value in hyper_parameters.items() if value is not None}
    looked, given = _look(ours, record, given, family=family, notes=notes)
    maker = looked.require()
    if looked.diffusers:
        raise UsageError(f"{printable(original)}: in diffusers' layout already; the original checkpoint is needed")
    model = provenance.model_of(maker)
    seen, borrowed = looked.found, _borrowed(looked, model, theirs.config)
    if borrowed:
        try:
            looked = analyse(ours, {**given, **borrowed}, family)
        except UsageError as error:  # nobody said it: the file did
            raise InputError.at(place / CONFIG, "", f"what it says can be no such model: {error}") from error
    sidecar = provenance.sidecar_of(converted, record)
    return Opened(
        original=ours,
        converted=theirs,
        folder=place,
        sidecar=stack.enter_context(open_checkpoint(sidecar)) if sidecar else None,
        looked=looked,
        seen=seen,
        family=maker,
        model=model,
        config=theirs.config,
        borrowed=borrowed,
        cast=options.cast or record.cast,
        notes=notes,
    )


def _look(
    ours: Checkpoint, record: provenance.Record, given: dict[str, Any], *, family: str | None, notes: list[str]
) -> tuple[Analysis, dict[str, Any]]:
    """What the original is, by the user's words, and by those that the record tells of unless they cannot be right."""
    # A record tells of values that follow from a flag too; what counts are the flags.
    flags = {flag for known in (*families().values(), *([find(family)] if family else [])) for flag in known.flags}
    both = {**{name: value for name, value in record.given.items() if name in flags}, **given}
    try:
        return analyse(ours, both, family), both
    except UsageError:
        looked = analyse(ours, given, family)  # raises it again, if it is the call that is wrong
        notes.append("the conversion record contradicts the original: what it says was given is not believed")
        return looked, given


def _borrowed(looked: Analysis, model: ParitySpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the original does not show and nobody said, as the converted config has it: assumed, and said to be."""
    unknown = [name for name, finding in looked.found.items() if finding.source == "unknown"]
    if not unknown:
        return {}
    shown = model.config_hints(config)
    return {name: shown[name] for name in unknown if shown.get(name) is not None and name in looked.require().flags}
