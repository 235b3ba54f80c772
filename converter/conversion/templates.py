"""Where the conversion of a checkpoint goes: templates with placeholders, which tell checkpoints apart."""

from __future__ import annotations

import os
import re
from itertools import zip_longest
from pathlib import Path

from ..checkpoint.weight_names import SUFFIXES
from ..errors import UsageError, printable
from ..remote import is_url
from .training_folders import run_folder

PLACEHOLDERS = ("{stem}", "{name}", "{run}", "{parent}", "{grandparent}")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def has_placeholder(template: str) -> bool:
    """Whether anything in a text looks like a placeholder, known or not."""
    return bool(_PLACEHOLDER.search(template))


def fill(template: str, checkpoint: str) -> str:
    """A template with the values of a checkpoint's path.

    Raises: `UsageError` for a placeholder that there is not, or that is no name here: empty, '.' or '..'.

    >>> fill("converted/{run}/{stem}", "runs/sigma/checkpoints/epoch_7_step_9000.pth")
    'converted/sigma/epoch_7_step_9000'
    """
    values = _values(checkpoint)

    def value(place: re.Match[str]) -> str:
        if place[0] not in values:
            raise UsageError(f"{printable(template)}: {printable(place[0])} is none of {', '.join(PLACEHOLDERS)}")
        if not values[place[0]]:
            raise UsageError(f"{printable(template)}: {printable(checkpoint)} has no {place[1]}")
        if values[place[0]] in (os.curdir, os.pardir):
            rule = f"the {place[1]} of {printable(checkpoint)} is {values[place[0]]!r}, which leads to another folder"
            raise UsageError(f"{printable(template)}: {rule}: rename it")
        return values[place[0]]

    # In one pass: braces in a checkpoint's own name are no placeholders.
    return _PLACEHOLDER.sub(value, template)


def same_target(one: str, other: str, target: str) -> UsageError:
    """The error for two checkpoints that would go to one place: it names the placeholders that tell them apart."""
    values, others = _values(one), _values(other)
    differing = [name for name in PLACEHOLDERS if values[name] and others[name] and values[name] != others[name]]
    both = [name for name in ("{run}", "{stem}") if values[name] and others[name]]
    # Both, though one tells these two apart: there may be more checkpoints.
    best = both if {*both} & {*differing} else differing[:1]
    advice = f"tell their conversions apart with {'/'.join(best)}"
    if not best:
        folders = zip_longest(*(Path(os.path.abspath(path)).parts[::-1] for path in (one, other)), fillvalue="")
        names = next(pair for pair in folders if pair[0] != pair[1])
        apart = " and ".join(printable(name) or "none" for name in names)
        advice = f"no placeholder tells them apart, only the folders {apart}: give each of these in a call of its own"
    return UsageError(f"{printable(one)} and {printable(other)} have the same target {printable(target)}: {advice}")


def _values(checkpoint: str) -> dict[str, str]:
    path = Path(os.path.abspath(checkpoint))
    weights = path.suffix.lower() in SUFFIXES
    return {
        "{stem}": path.name if os.path.isdir(path) or (is_url(checkpoint) and not weights) else path.stem,
        "{name}": path.name,
        "{run}": run_folder(path).name,
        "{parent}": path.parent.name,
        "{grandparent}": path.parent.parent.name,
    }
