"""The checks on tensors that have been read: what is refused unless allowed, what is noted, and what differs from
their record.

`convert` applies it to what it wrote and to a result that was there already, `inspect --deep` to what it read.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..checkpoint import Checkpoint
from ..checkpoint.state_dicts import selecting_flag
from ..errors import InputError, UsageError, printable
from ..families import Family, Findings
from ..filenames import RECORD
from ..mapping import Computed
from .analysis import Analysis
from .options import ConversionOptions
from .record import LIKE, UNLIKE
from .sidecar import CHANGED, rows_of
from .to_diffusers import TensorWrites, named
from .write import Written, counted
from .zeros import judge, listed, refuse_zeros, trailing_zero_counts

NONFINITE = "NaN or infinite"
ALLOW_NONFINITE = "`allow_nonfinite` converts them as they are"
ALLOW_OVERFLOW = "`allow_overflow` makes them infinite"
BORROWED = "from the converted model, which is under test"


def demand_evidence(family: Family, findings: Findings, checkpoint: Checkpoint, borrowed: Collection[str] = ()) -> None:
    """Refuse a result that rests on what neither the file shows nor the user says.

    Args:
        findings: `used` are what the result was made with; whatever else is assumed cannot change it.
        borrowed: the hyper-parameters that only the converted model shows, which is the one under test.

    Raises: `UsageError` with all of them, and the flag that states each.
    """
    lines = [
        f"`{name}` ({printable(finding.value)}: {BORROWED if name in borrowed else finding.evidence})"
        for name, finding in findings.items()
        if name in family.flags and name in findings.used and (finding.source == "assumed" or name in borrowed)
    ]
    chosen = checkpoint.selected
    others = [candidate for candidate in checkpoint.plausible if candidate is not chosen]
    if others and checkpoint.requested_weights is None and checkpoint.requested_key is None:
        flag = selecting_flag(chosen, checkpoint.plausible)
        lines.append(f"{flag} ({others[0].where} holds {others[0].weights} weights too)")
    if lines:
        raise UsageError(f"`require_evidence`: state what is assumed so far: {'; '.join(lines)}")


@dataclass
class RecordComparison:
    """What was read, compared with a record: `broken` has an error for what is never trained and is not
    what it was; `changed` is key -> the recorded digest of what may have been trained and differs; `words` say so,
    or that nothing has changed; '' where nothing was recorded."""

    broken: dict[str, InputError] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    words: str = ""


def compare_with_record(
    analysis: Analysis, must_match: Mapping[str, str], recorded: Mapping[str, str], read: Mapping[str, str]
) -> RecordComparison:
    """Compare what was read with what the record of the conversion that made it says.

    Args:
        analysis: of the model.
        must_match, recorded: as in `TensorWrites`.
        read: digests by key; what is in neither it nor the model is missing, unless it is computed.
    """
    comparison, path = RecordComparison(), analysis.checkpoint.path
    for key, sha in must_match.items():
        if read.get(key, sha) != sha:
            comparison.broken[key] = InputError.at(path, key, CHANGED)
    compared = {key: sha for key, sha in recorded.items() if key in read}
    comparison.changed = {key: sha for key, sha in compared.items() if read[key] != sha}
    absent = [key for key in {**must_match, **recorded} if key not in read and key not in analysis.checkpoint]
    computed = rows_of(analysis, Computed) if absent else []
    absent = [key for key in absent if not any(row.match(key) for row in computed)]
    words = []
    if comparison.changed:
        words.append(f"{len(comparison.changed)} of {len(compared)} tensors {UNLIKE}")
    if absent:
        words.append(f"missing tensors that {RECORD} names: {listed(absent)}")
    if compared and not words:
        words.append(f"all {len(compared)} tensors {LIKE}")
    comparison.words = "; ".join(words)
    return comparison


def give_verdict(
    analysis: Analysis,
    writes: TensorWrites,
    written: Written,
    options: ConversionOptions,
    *,
    given: Collection[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """(what the user should know of the tensors that were written, `RecordComparison.changed`).

    Args:
        given: the keys of what came from the file of `null_caption`.

    Raises: `InputError` for what is not allowed, or differs from its record.
    """
    caption, notes = os.fspath(options.null_caption or ""), list[str]()
    for bad, let_through, what, flag in (
        (written.nonfinite, options.allow_nonfinite, NONFINITE, ALLOW_NONFINITE),
        (written.overflowed, options.allow_overflow, f"beyond {writes.cast}", ALLOW_OVERFLOW),
    ):
        if bad and not let_through:
            own = {key: count for key, count in bad.items() if key not in given}
            path = analysis.checkpoint.path if own else caption
            raise InputError(f"{printable(path)}: {counted(own or bad, what)}; {flag}")
        if bad:
            notes.append(f"{counted(bad, what)}: let through")
    refused, lost, zeros = _zeros(analysis, writes, written)
    of_checkpoint = refused or any(key not in given for key in lost)
    if lost:
        refused = "; ".join(filter(None, [refused, f"{listed(lost)}: zero throughout once rounded to {writes.cast}"]))
    notes += refuse_zeros(analysis.checkpoint.path if of_checkpoint else caption, refused, options.allow_zeros)
    notes += zeros
    comparison = compare_with_record(analysis, writes.must_match, writes.recorded, written.read)
    for error in comparison.broken.values():
        raise error
    return notes + ([comparison.words] if comparison.words else []), comparison.changed


def _zeros(analysis: Analysis, writes: TensorWrites, written: Written) -> tuple[str, list[str], list[str]]:
    """(why the zeros are refused, in words, '' where they are not; the keys that are zero only once they are rounded;
    what the user should know of what is not refused)."""
    sources, rounded = {tensor.key: tensor for part in writes.parts for tensor in part.sources}, writes.rounded
    # What is zero once it is rounded may not have been so before.
    ends = {
        key: trailing_zero_counts(sources[key], len(zeros)) if key in rounded and any(zeros) else zeros
        for key, zeros in written.zeros.items()
    }
    judged = judge(analysis.plan, named(analysis.checkpoint) | sources, ends)
    lost = [key for key in ends if ends[key] != written.zeros[key] and sum(written.zeros[key]) == sources[key].numel]
    return judged.refused, lost, judged.notes
