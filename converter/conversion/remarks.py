"""What the user should know of a source before its result is used: how it was read, and where its record differs."""

from __future__ import annotations

from ..checkpoint import Checkpoint
from ..checkpoint.folder import CONFIG
from ..checkpoint.state_dicts import selecting_flag
from ..checkpoint.weights_kind import LABELS
from ..errors import as_flags, printable
from ..filenames import RECORD
from ..mapping import fold, summed_up
from .analysis import Analysis
from .record import Record


def checkpoint_notes(checkpoint: Checkpoint) -> list[str]:
    """Of its weights: which were taken, what was left out, and what else is in it."""
    notes, chosen = [*checkpoint.notes], checkpoint.selected
    # Where nobody chose, those of the same kind are the very same tensors under another name.
    others = [candidate for candidate in checkpoint.plausible if candidate.weights != chosen.weights]
    if chosen.why:
        notes.append(f"{chosen.where}: {chosen.why}")
    if others and checkpoint.requested_weights is None and checkpoint.requested_key is None:
        other, flag = others[0], as_flags(selecting_flag(others[0], checkpoint.plausible))
        kind = LABELS[other.weights]
        notes.append(
            f"took the {chosen.weights} weights ({chosen.where}); {kind} weights are there too: {flag} takes those"
        )
    if checkpoint.left_out:
        notes.append(f"left out, not part of the model: {summed_up(checkpoint.left_out)}")
    for name, danger in checkpoint.foreign_globals:
        if danger:
            notes.append(f"the file asks to import {name}, which can run code in other readers; nothing of it ran here")
    if shared := _sharing_storage(checkpoint):
        tied = (
            " (tied weights, as its metadata says)"
            if len({id(t) for t in checkpoint.values()}) < len(checkpoint)
            else ""
        )
        notes.append(f"{', '.join(fold(shared)[:6])} share their storage with other keys{tied}: each gets its own copy")
    return notes


def _sharing_storage(checkpoint: Checkpoint) -> list[str]:
    """The keys whose run of bytes overlaps with that of a key before them, be it in part."""
    runs: dict[int, list[tuple[int, int, str]]] = {}
    for key, tensor in checkpoint.items():
        if tensor.nbytes:
            runs.setdefault(id(tensor.storage), []).append((*tensor.span, key))
    shared = set()
    for run in runs.values():
        reached = 0
        for start, stop, key in sorted(run, key=lambda item: item[0]):  # of equal ones, the first stays the first
            if start < reached:
                shared.add(key)
            reached = max(reached, stop)
    return [key for key in checkpoint if key in shared]


def merged_into(record: Record) -> list[str]:
    """That adapters are in it, by its record."""
    words = [f"{printable(one.get('name'))} at {printable(one.get('strength'))}" for one in record.adapters]
    return [f"merged into it, by {RECORD}: {', '.join(words)}"] if words else []


def differences_from_record(analysis: Analysis, record: Record) -> list[str]:
    """Where a converted folder says otherwise than the record of its conversion: its config was changed."""
    recorded = record.content.get("hyper_parameters", {}) if analysis.diffusers else {}
    return [
        f"{name} is {printable(finding.value)} ({printable(finding.evidence, 80)}), and {RECORD} says "
        f"{printable(recorded[name]['value'])}: was {CONFIG} changed?"
        for name, finding in analysis.findings.items()
        if name in recorded
        and None not in (finding.value, recorded[name]["value"])
        and finding.value != recorded[name]["value"]
    ]
