"""What is said of tensors once they have been read: what is refused unless the user allows it, what is noted, and what
a record that lies beside them promised.

`convert` says it of what it wrote, of a result that was there already in the same words, and `inspect --deep` too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import InputError, printable
from ..mapping import Computed
from .analysis import Analysis
from .record import LIKE, RECORD, UNLIKE
from .sidecar import CHANGED, rows_of
from .to_diffusers import Arrangement, named
from .write import Written, counted
from .zeros import judge, listed, refuse_zeros, tails

NONFINITE = "NaN or infinite"
ALLOW_NONFINITE = "--allow_nonfinite converts them as they are"
ALLOW_OVERFLOW = "--allow_overflow makes them infinite"


@dataclass(frozen=True)
class Allowed:
    """What the user lets through."""

    nonfinite: bool = False
    overflow: bool = False
    zeros: bool = False


@dataclass
class Held:
    """What was read, held against a record: `broken` has an error for everything that nobody trains and that is not
    what it was; `changed` is key -> the SHA-256 promised, of what may have been trained and is another; `words` say so,
    or that all is as it was, and are '' where nothing was promised."""

    broken: dict[str, InputError] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    words: str = ""


def hold_to_record(
    looked: Analysis, must_match: Mapping[str, str], recorded: Mapping[str, str], read: Mapping[str, str]
) -> Held:
    """Compare what was read with what the record of the conversion that made it says.

    Args:
        looked: at the model.
        must_match, recorded: as in an `Arrangement`.
        read: SHA-256 by key; what is in neither it nor the model is not there, but for what is computed.
    """
    made, path = Held(), looked.checkpoint.path
    for key, sha in must_match.items():
        if read.get(key, sha) != sha:
            made.broken[key] = InputError.at(path, key, CHANGED)
    held = {key: sha for key, sha in recorded.items() if key in read}
    made.changed = {key: sha for key, sha in held.items() if read[key] != sha}
    absent = [key for key in {**must_match, **recorded} if key not in read and key not in looked.checkpoint]
    computed = rows_of(looked, Computed) if absent else []
    absent = [key for key in absent if not any(row.match(key) for row in computed)]
    words = []
    if made.changed:
        words.append(f"{len(made.changed)} of {len(held)} tensors {UNLIKE}")
    if absent:
        words.append(f"no longer there, of the tensors that {RECORD} names: {listed(absent)}")
    if held and not words:
        words.append(f"all {len(held)} tensors {LIKE}")
    made.words = "; ".join(words)
    return made


def give_verdict(
    looked: Analysis, arranged: Arrangement, written: Written, allowed: Allowed
) -> tuple[list[str], dict[str, str]]:
    """(what the user should know of the tensors that were written, `Held.changed`).

    Raises: `InputError` for what is not allowed, and where a promise is broken.
    """
    path, notes = looked.checkpoint.path, list[str]()
    for bad, let_through, what, flag in (
        (written.nonfinite, allowed.nonfinite, NONFINITE, ALLOW_NONFINITE),
        (written.overflowed, allowed.overflow, f"beyond {arranged.cast}", ALLOW_OVERFLOW),
    ):
        if bad and not let_through:
            raise InputError(f"{printable(path)}: {counted(bad, what)}; {flag}")
        if bad:
            notes.append(f"{counted(bad, what)}: let through")
    notes += _zeros(looked, arranged, written, allowed.zeros)
    held = hold_to_record(looked, arranged.must_match, arranged.recorded, written.read)
    for error in held.broken.values():
        raise error
    return notes + ([held.words] if held.words else []), held.changed


def _zeros(looked: Analysis, arranged: Arrangement, written: Written, allowed: bool) -> list[str]:
    """What is zero throughout, in words. Raises: `InputError` for zeros that no training leaves, unless allowed."""
    sources, rounded = {tensor.key: tensor for part in arranged.parts for tensor in part.sources}, arranged.rounded
    # What is zero once it is rounded may not have been so before.
    found = {
        key: tails(sources[key], len(zeros)) if key in rounded and any(zeros) else zeros
        for key, zeros in written.zeros.items()
    }
    judged = judge(looked.plan, named(looked.checkpoint) | sources, found)
    lost = [key for key in found if found[key] != written.zeros[key] and sum(written.zeros[key]) == sources[key].numel]
    words = f"{listed(lost)}: zero throughout once rounded to {arranged.cast}" if lost else ""
    refused = "; ".join(filter(None, (judged.refused, words)))
    return [*refuse_zeros(looked.checkpoint.path, refused, allowed), *judged.notes]
