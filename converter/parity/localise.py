"""Where it goes wrong: every converted stage is given the original's input, so that a faulty one stands out alone.

Teacher-forced lockstep: the error of a block, by the block's own update, is at rounding where the block is right,
whatever went wrong before it; all faulty stages show in one run. In float64 rounding is next to nothing. In a lower
precision, for what goes wrong there only, it is what the original's own stage rounds, which is measured beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from ..errors import printable
from ..nets import Net, Stage, Values, no_probe
from ..nets.faults import Fault
from ..nets.inputs import Case
from ..nets.inputs import exact as as_float64
from ..reports.report import FLOOR_LIMIT
from .gates import MIN_FLOOR
from .statistics import relative

# In float64; a right stage is at 1e-15, one partly in float32 at 3e-8. Below it the limit is that of the gates, in
# multiples of the original's own rounding of that stage; measured on right ones: up to 1.2, in half precision too.
FAULTY = 1e-7
MENDED, TRIED = 8, 96  # stages that repairs are tried on, and repairs of one


@dataclass(frozen=True)
class LocalError:
    """How far a stage, or something inside of it, is off on the original's values. `floor`: below float64, how far the
    original itself is; `inside`, of a stage, in the order of the computation; `why` it did not run."""

    name: str
    error: float
    floor: float | None = None
    inside: tuple[LocalError, ...] | None = None
    why: str = ""

    @property
    def faulty(self) -> bool:
        """Whether it is off by more than its limit."""
        limit = FAULTY if self.floor is None else FLOOR_LIMIT * max(self.floor, MIN_FLOOR)
        return not self.error <= limit

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the report, without missing values; `inside` of a faulty stage only."""
        row: dict[str, Any] = {"name": self.name, "error": self.error, "faulty": self.faulty}
        row |= {} if self.floor is None else {"floor": self.floor}
        row |= {"inside": [part.as_dict() for part in self.inside]} if self.faulty and self.inside is not None else {}
        return row | ({"why": self.why} if self.why else {})


def lockstep(
    original: Net,
    converted: Net,
    case: Case,
    device: str = "cpu",
    *,
    dtype: torch.dtype = torch.float64,
    exact: Net | None = None,
) -> list[LocalError]:
    """Each stage of the converted net on the original's values.

    Args:
        dtype: what both nets are in.
        exact: below float64, the original of the same weights in float64, which both are held against.
    """
    theirs = {stage.name: stage for stage in converted.stages}
    truths = {stage.name: stage for stage in exact.stages} if exact else {}
    errors = []
    with torch.inference_mode():
        values: Values = case.tensors(dtype, device)
        for stage in original.stages:
            right, floors = _ran(stage, values), None
            output = right[0]
            if stage.name in truths:
                own, right = right, _ran(truths[stage.name], as_float64(values))
                floors = _apart(own, right, values)
            errors.append(_compared(stage.name, theirs.get(stage.name), values, truth=right, floors=floors))
            values = values | output
    return errors


def _ran(stage: Stage, values: Values) -> tuple[Values, Values]:
    """What comes of a stage, and what it tells of its inside."""
    inside: dict[str, Tensor] = {}
    return stage.run(values, inside.__setitem__), inside


def _apart(candidate: tuple[Values, Values], truth: tuple[Values, Values], values: Values) -> dict[str, float]:
    """How far two runs of a stage are apart: inside, as far as both tell, and in all ("")."""
    (output, heard), (right, inside) = candidate, truth
    return {"": error_of(output, right, values)} | {
        part: relative(heard[part].reshape(wanted.shape), wanted)
        for part, wanted in inside.items()
        if part in heard and heard[part].numel() == wanted.numel()
    }


def _compared(
    name: str, stage: Stage | None, values: Values, *, truth: tuple[Values, Values], floors: dict[str, float] | None
) -> LocalError:
    """One stage against what is right; `floors`: what the original itself is off by."""
    if stage is None:
        return LocalError(name, inf, inside=(), why="the converted net has none")
    try:
        candidate = _ran(stage, values)
    except Exception as failure:  # a net that is wrong may fail in any way
        return LocalError(name, inf, inside=(), why=f"{type(failure).__name__}: {printable(failure)}")

    def floor(part: str) -> float | None:
        return None if floors is None else floors.get(part, 0.0)

    (_, error), *inside = _apart(candidate, truth, values).items()
    return LocalError(name, error, floor(""), tuple(LocalError(part, off, floor(part)) for part, off in inside))


def error_of(candidate: Values, truth: Values, values: Values) -> float:
    """The largest error of a stage's values; of one that it updates, and gives the same shape, by the update."""
    errors = []
    for name, right in truth.items():
        before = values.get(name)
        update = before if before is not None and before.shape == right.shape else None
        errors.append(relative(candidate[name], right, update) if name in candidate else inf)
    return max(errors, default=0.0)


def repairs(
    original: Net,
    mended: Callable[[Fault], Net],
    case: Case,
    *,
    faults: Callable[[int | None], Sequence[Fault]],
    stages: Sequence[str],
    device: str = "cpu",
) -> dict[str, str]:
    """Faulty stage -> which known fault, done once more, undoes what is wrong: a swap is its own repair.

    Args:
        mended: fault -> the converted net in float64 with that done to it.
        faults: block, or None, -> the known faults of its tensors.
    """
    repaired = {}
    with torch.inference_mode():
        values: Values = case.tensors(torch.float64, device)
        for stage in original.stages:
            right = stage.run(values, no_probe)
            if stage.name in stages[:MENDED]:
                number = re.search(r"\d+$", stage.name)
                known = faults(int(number[0]) if number else None)
                for fault in [fault for fault in known if fault.undoes_itself][:TRIED]:
                    own = next((own for own in mended(fault).stages if own.name == stage.name), None)
                    if own and error_of(own.run(values, no_probe), right, values) <= FAULTY:
                        repaired[stage.name] = fault.name
                        break
            values = values | right
    return repaired
