"""`--require_evidence`: nothing that a result rests on may be assumed."""

from __future__ import annotations

from collections.abc import Collection

from ..checkpoint import Checkpoint
from ..checkpoint.state_dicts import selecting_flag
from ..errors import UsageError, printable
from ..families import Family, Findings

BORROWED = "as the converted model has it, which is to be proven"


def demand(family: Family, findings: Findings, checkpoint: Checkpoint, borrowed: Collection[str] = ()) -> None:
    """Refuse a result that rests on what neither the file shows nor the user says.

    Args:
        found: its `used` are what the result was made with; whatever else is assumed cannot change it.
        borrowed: the hyper-parameters that only the converted model shows, whose word is what is to be proven.

    Raises: `UsageError` with all of them, and the flag that states each.
    """
    lines = [
        f"`{name}` ({printable(finding.value)}: {BORROWED if name in borrowed else finding.evidence})"
        for name, finding in findings.items()
        if name in family.flags and name in findings.used and (finding.source == "assumed" or name in borrowed)
    ]
    chosen = checkpoint.selected
    others = [candidate for candidate in checkpoint.likely if candidate is not chosen]
    if others and checkpoint.asked is None and checkpoint.asked_key is None:
        flag = selecting_flag(chosen, checkpoint.likely)
        lines.append(f"{flag} ({others[0].where} holds {others[0].weights} weights too)")
    if lines:
        raise UsageError(f"`require_evidence`: assumed so far, and to be said: {'; '.join(lines)}")
