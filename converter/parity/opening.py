"""Opening both sides of a comparison: strictly, and with what is known of them, or only assumed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.folder import CONFIG, cached_snapshot, model_folder, read_config
from ..checkpoint.json_file import has_byte_order_mark
from ..checkpoint.weight_names import WEIGHTS
from ..conversion.analysis import Analysis, analyse
from ..conversion.model_config import config_of
from ..conversion.model_files import folders_in, open_model
from ..conversion.record import Record, find_sidecar
from ..conversion.verdicts import demand_evidence
from ..errors import InputError, UsageError, printable
from ..families import families, find, tables
from .choices import CheckOptions
from .merged import Merged, unlike_record
from .provenance import loading, recorded_conversion
from .sides import Sides, spec_of


def open_sides(
    stack: ExitStack, original: Path, converted: Path, options: CheckOptions, *, hyper_parameters: Mapping[str, Any]
) -> Sides:
    """Open both sides, and say what the original is. Raises whatever stands against a comparison."""
    if converted.is_file():
        raise InputError.at(converted, "", "a file, where a converted folder is needed (were the two sides swapped?)")
    record, notes = recorded_conversion(converted)
    source = stack.enter_context(open_model(original, options.weights, options.state_dict_key, options.family))
    if record.source.get("size", source.size) != source.size:
        notes.append("the conversion record is of another file (its size differs): it is ignored")
        record = Record()
    if options.weights is None and options.state_dict_key is None and record.source:
        source = _as_recorded(stack, source, record, options.family, notes=notes)
    stated = {name: value for name, value in hyper_parameters.items() if value is not None}
    analysis, given = _analyse(source, record, stated, options.family, notes=notes)
    family, seen = analysis.require(), analysis.findings
    if analysis.diffusers:
        raise UsageError(f"{printable(original)}: in diffusers' layout already; the original checkpoint is needed")
    spec = spec_of(family)
    folders = folders_in(converted, family)
    parts = family.by_folder({part: None for move in analysis.plan.moves for part in move.parts})
    if len(parts) > 1 and not folders and record.content.get("family") == family.name:
        rule = f"is one folder of this {family.title}, which has {' and '.join(parts)}: give the one that they lie in"
        raise InputError.at(converted, "", rule)
    # By its own keys; of a model of several folders, by those that it has in the whole.
    known = tables(family) if family.several else None
    target = stack.enter_context(open_checkpoint(converted, tables=known, folders=folders))
    folder = cached_snapshot(converted) if folders else model_folder(converted)
    for place in map(folder.joinpath, folders or [""]):
        _check_folder(converted, place, notes=notes)
    notes += [*source.notes, *target.notes]
    # What the original does not show and nobody stated is assumed to be what the converted config has, and listed so.
    unknown = [name for name, finding in seen.items() if finding.source == "unknown" and name in family.flags]
    hints = spec.config_hints(target.config) if unknown else {}
    borrowed = {name: hints[name] for name in unknown if hints.get(name) is not None}
    if borrowed:
        try:
            analysis = analyse(source, {**given, **borrowed}, options.family)
        except UsageError as error:  # nobody stated it: the file did
            raise InputError.at(folder / CONFIG, "", f"its values cannot be those of such a model: {error}") from error
    cast = options.cast or (record.casts[-1] if record.casts else "")
    merged = Merged.of(stack, analysis, options, cast) if options.adapters else None
    if merged:
        source.selected.tensors.update(merged.tensors(target))
        notes += merged.notes
    sidecar = find_sidecar(converted, record)
    sides = Sides(
        family=family,
        findings=analysis.findings,
        plan=analysis.plan,
        original=source,
        converted=target,
        sidecar=stack.enter_context(open_checkpoint(sidecar)) if sidecar else None,
        cast=cast,
        seen=seen,
        spec=spec,
        config=target.config,
        borrowed=borrowed,
        folder=folder,
        notes=notes,
        merged=merged,
        unlike_record=unlike_record(record, merged.told if merged else []),
    )
    if options.require_evidence:
        _demand_evidence(sides, source)
    return sides


def _demand_evidence(sides: Sides, source: Checkpoint) -> None:
    """Refuse what rests on an assumption. Raises: `UsageError`."""
    seen = sides.seen or sides.findings
    for findings in (sides.findings, seen):
        findings.used.clear()
    config_of(sides.family, sides.findings)
    _ = sides.recomputed  # whether they are dispensable may rest on one too
    sides.findings.used |= seen.used
    demand_evidence(sides.family, sides.findings, source, sides.borrowed)


def _check_folder(converted: Path, folder: Path, *, notes: list[str]) -> None:
    """Note what diffusers needs to load it. Raises: `InputError` where it would not."""
    if not read_config(folder):
        raise InputError.at(converted, "", "holds no config.json: diffusers cannot load it")
    if has_byte_order_mark(folder / CONFIG):
        rule = "begins with a byte order mark, which diffusers does not read: save it as UTF-8 without one"
        raise InputError.at(folder / CONFIG, "", rule)
    arguments, unloaded = loading(folder)
    if unloaded:
        rule = f"its weights are {unloaded}, which diffusers does not load: it looks for {WEIGHTS}"
        raise InputError.at(folder, "", rule)
    if arguments:
        shown = printable(", ".join(f"{name}={value!r}" for name, value in arguments.items()))
        notes.append(f"diffusers loads its weights only with from_pretrained(..., {shown})")


def _as_recorded(
    stack: ExitStack, source: Checkpoint, record: Record, family: str | None, *, notes: list[str]
) -> Checkpoint:
    """The original with the weights that were converted, by the record."""
    weights, where = record.source["weights"], record.source.get("where", "")
    if where in {candidate.where for candidate in source.candidates}:
        return stack.enter_context(open_model(source.path, None, where, family))
    if not where and weights in {candidate.weights for candidate in source.plausible}:
        return stack.enter_context(open_model(source.path, weights, None, family))
    named = f"{weights} weights ({printable(where)})"
    notes.append(f"the conversion record names {named}, which the original does not hold")
    return source


def _analyse(
    source: Checkpoint, record: Record, stated: dict[str, Any], family: str | None, *, notes: list[str]
) -> tuple[Analysis, dict[str, Any]]:
    """What the original is, by the values that the user gave, and the record's unless they conflict."""
    # A record also has values that follow from a flag; what counts are the flags.
    flags = {flag for known in (*families().values(), *([find(family)] if family else [])) for flag in known.flags}
    given = {**{name: value for name, value in record.given.items() if name in flags}, **stated}
    try:
        return analyse(source, given, family), given
    except UsageError:
        analysis = analyse(source, stated, family)  # raises it again, if it is the call that is wrong
        notes.append("the conversion record contradicts the original: the values given there are ignored")
        return analysis, stated
