"""Both sides of a comparison, opened, and what is known of them: from the file, from the user, or only assumed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.folder import CONFIG, model_folder
from ..checkpoint.json_file import has_byte_order_mark
from ..checkpoint.weight_names import WEIGHTS
from ..conversion.analysis import Analysis, analyse, open_model
from ..conversion.record import Record, sidecar_beside
from ..conversion.verdicts import demand_evidence
from ..errors import InputError, UsageError, printable
from ..families import Family, Findings, families, find
from ..nets.spec import ParitySpec
from .choices import CheckOptions
from .provenance import RecordedConversion, loading, recorded_conversion
from .weight_pair import WeightPair


def _unavailable(*_: Any) -> Any:
    """In the place of nets: of a family without them, only weights and config are compared."""
    raise AssertionError("a net of a family that brings none")


UNAVAILABLE = ParitySpec(reference=_unavailable, converted=_unavailable, cases=_unavailable)  # weights and config only


def spec_of(family: Family) -> ParitySpec:
    """The parity spec of a family, imported where it is needed; `UNAVAILABLE` where it has none."""
    spec = family.parity
    if isinstance(spec, str):
        module, _, name = spec.partition(":")
        spec = getattr(import_module(module, family.describe.__module__.rpartition(".")[0]), name)
    return spec if isinstance(spec, ParitySpec) else UNAVAILABLE


@dataclass
class OpenedPair:
    """Both sides, opened, and what is known of them.

    Attributes:
        folder: that holds the converted model's weights and config.
        analysis: of the original, with what was `borrowed` from the converted config, for want of anything else.
        seen: the findings before that.
        cast: the dtype that the conversion rounded to, '' for none.
    """

    original: Checkpoint
    converted: Checkpoint
    folder: Path
    sidecar: Checkpoint | None
    analysis: Analysis
    seen: Findings
    spec: ParitySpec
    borrowed: dict[str, Any]
    cast: str
    notes: list[str]

    @property
    def selected(self) -> dict[str, Any]:
        """Which weights of the original were read, as it stands in the report."""
        chosen = self.original.selected
        return {"container": self.original.container, "weights": chosen.weights, "where": chosen.where}

    @property
    def family(self) -> Family:
        return self.analysis.require()

    @property
    def found(self) -> Findings:
        return self.analysis.found

    @property
    def config(self) -> dict[str, Any]:
        return self.converted.config

    @cached_property
    def weights(self) -> WeightPair:
        return WeightPair(
            self.family,
            self.found,
            self.analysis.plan,
            original=self.original,
            converted=self.converted,
            sidecar=self.sidecar,
            cast=self.cast,
            seen=self.seen,
        )

    def demand_evidence(self) -> None:
        """Refuse what rests on an assumption. Raises: `UsageError`."""
        self.found.used.clear()
        self.seen.used.clear()
        self.family.config(self.found)
        _ = self.weights.recomputed  # whether they are dispensable may rest on one too
        self.found.used |= self.seen.used
        demand_evidence(self.family, self.found, self.original, self.borrowed)


def open_pair(
    stack: ExitStack, original: Path, converted: Path, options: CheckOptions, *, hyper_parameters: Mapping[str, Any]
) -> OpenedPair:
    """Open both sides strictly, and say what the original is. Raises whatever stands against a comparison."""
    recorded, notes = recorded_conversion(converted)
    target = stack.enter_context(open_checkpoint(converted))
    folder = model_folder(converted)
    _check_folder(target, converted, folder, notes=notes)
    source = stack.enter_context(open_model(original, options.weights, options.state_dict_key, options.family))
    if recorded.size not in (None, source.size):
        notes.append("the conversion record is of another file (its size differs): what it says is not believed")
        recorded = RecordedConversion()
    if options.weights is None and options.state_dict_key is None and recorded.weights:
        source = _as_recorded(stack, source, recorded, options.family, notes=notes)
    notes += [*source.notes, *target.notes]
    stated = {name: value for name, value in hyper_parameters.items() if value is not None}
    analysis, given = _analyse(source, recorded, stated, options.family, notes=notes)
    family = analysis.require()
    if analysis.diffusers:
        raise UsageError(f"{printable(original)}: in diffusers' layout already; the original checkpoint is needed")
    spec, seen = spec_of(family), analysis.found
    borrowed = _borrowed(analysis, spec, target.config)
    if borrowed:
        try:
            analysis = analyse(source, {**given, **borrowed}, options.family)
        except UsageError as error:  # nobody stated it: the file did
            raise InputError.at(folder / CONFIG, "", f"its values cannot be those of such a model: {error}") from error
    sidecar = sidecar_beside(converted, Record(folder=recorded.folder))
    return OpenedPair(
        original=source,
        converted=target,
        folder=folder,
        sidecar=stack.enter_context(open_checkpoint(sidecar)) if sidecar else None,
        analysis=analysis,
        seen=seen,
        spec=spec,
        borrowed=borrowed,
        cast=options.cast or recorded.cast,
        notes=notes,
    )


def _check_folder(target: Checkpoint, converted: Path, folder: Path, *, notes: list[str]) -> None:
    """Note what diffusers needs to load it. Raises: `InputError` where it would not."""
    if not target.config:
        raise InputError.at(converted, "", "holds no config.json: it is no folder that diffusers loads")
    if has_byte_order_mark(folder / CONFIG):
        rule = "begins with a byte order mark, which diffusers does not read: save it as UTF-8 without one"
        raise InputError.at(folder / CONFIG, "", rule)
    arguments, unloaded = loading(folder)
    if unloaded:
        rule = f"its weights are {unloaded}, which diffusers does not load: it looks for {WEIGHTS}"
        raise InputError.at(folder, "", rule)
    if arguments:
        shown = printable(", ".join(f"{name}={value!r}" for name, value in arguments.items()))
        notes.append(f"diffusers loads its weights only when told to: from_pretrained(..., {shown})")


def _as_recorded(
    stack: ExitStack, source: Checkpoint, recorded: RecordedConversion, family: str | None, *, notes: list[str]
) -> Checkpoint:
    """The original with the weights that were converted, by the record."""
    weights, where = recorded.weights, recorded.where
    if where in {candidate.where for candidate in source.candidates}:
        return stack.enter_context(open_model(source.path, None, where, family))
    if not where and weights in {candidate.weights for candidate in source.plausible}:
        return stack.enter_context(open_model(source.path, weights, None, family))
    named = f"{weights} weights ({printable(where)})"
    notes.append(f"the conversion record names {named}, which the original does not hold")
    return source


def _analyse(
    source: Checkpoint, recorded: RecordedConversion, stated: dict[str, Any], family: str | None, *, notes: list[str]
) -> tuple[Analysis, dict[str, Any]]:
    """What the original is, by the user's words, and by those of the record unless they cannot be right."""
    # A record also has values that follow from a flag; what counts are the flags.
    flags = {flag for known in (*families().values(), *([find(family)] if family else [])) for flag in known.flags}
    given = {**{name: value for name, value in recorded.given.items() if name in flags}, **stated}
    try:
        return analyse(source, given, family), given
    except UsageError:
        analysis = analyse(source, stated, family)  # raises it again, if it is the call that is wrong
        notes.append("the conversion record contradicts the original: what it says was given is not believed")
        return analysis, stated


def _borrowed(analysis: Analysis, spec: ParitySpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the original does not show and nobody stated, as the converted config has it: assumed, and listed so."""
    unknown = [name for name, finding in analysis.found.items() if finding.source == "unknown"]
    if not unknown:
        return {}
    hints = spec.config_hints(config)
    return {name: hints[name] for name in unknown if hints.get(name) is not None and name in analysis.require().flags}
