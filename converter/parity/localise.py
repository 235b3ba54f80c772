"""Where it goes wrong: every converted stage is given the original's input, so that a faulty one stands out alone.

Teacher-forced lockstep: the error of a block, by the block's own update, is at rounding where the block is right,
whatever went wrong before it; all faulty stages show in one run. In float64 rounding is next to nothing. In a lower
precision, for what goes wrong there only, it is what the original's own stage rounds, which is measured beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import printable
from ..nets import Net, Stage, Values, no_probe
from ..nets.faults import Fault, with_fault
from ..nets.inputs import Case
from ..nets.inputs import exact as as_float64
from ..reports.report import FLOOR_LIMIT
from .gates import FLOOR_LEAST
from .statistics import relative

# In float64; a right stage is at 1e-15, one with a float32 island at 3e-8. Below it the limit is that of the gates, in
# multiples of the original's own rounding of that stage; measured on right ones: up to 1.2, in half precision too.
FAULTY = 1e-7
MENDED, TRIED = 8, 96  # stages that repairs are tried on, and repairs of one


@dataclass(frozen=True)
class LocalError:
    """How far a stage, or something inside of it, is off on the original's values. `floor`: below float64, how far the
    original itself is."""

    name: str
    error: float
    floor: float | None = None

    @property
    def faulty(self) -> bool:
        limit = FAULTY if self.floor is None else FLOOR_LIMIT * max(self.floor, FLOOR_LEAST)
        return not self.error <= limit

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the report: without what there is not."""
        row = {name: value for name, value in asdict(self).items() if value not in (None, "", [])}
        return row | {"faulty": self.faulty}


@dataclass(frozen=True)
class StageError(LocalError):
    """Of a whole stage; of a faulty one also `inside`, in the order of the computation, and `why` if it did not run."""

    inside: list[LocalError] = field(default_factory=list)
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        row = super().as_dict()
        return row | {"inside": [part.as_dict() for part in self.inside]} if self.faulty else row


@dataclass(frozen=True)
class Repair:
    """What mends a stage, in words."""

    words: str
    stage: str
    restores: bool = True


def lockstep(
    original: Net,
    converted: Net,
    case: Case,
    device: str = "cpu",
    *,
    dtype: torch.dtype = torch.float64,
    exact: Net | None = None,
) -> list[StageError]:
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
            inside: dict[str, Tensor] = {}
            output = stage.run(values, inside.__setitem__)
            right, floors = output, None
            if stage.name in truths:
                own, inside = inside, {}
                right = truths[stage.name].run(as_float64(values), inside.__setitem__)
                floors = {part: relative(own[part], truth) for part, truth in inside.items() if part in own}
                floors[""] = error_of(output, right, values)
            errors.append(_compared(theirs.get(stage.name), stage.name, values, (right, inside, floors)))
            values = values | output
    return errors


def _compared(
    stage: Stage | None, name: str, values: Values, truth: tuple[Values, Values, dict[str, float] | None]
) -> StageError:
    """One stage against what is right: its values, those inside, and what the original itself is off by, inside and
    ("") in all."""
    right, inside, floors = truth
    if stage is None:
        return StageError(name, float("inf"), why="the converted net has none")
    heard: dict[str, Tensor] = {}
    try:
        candidate = stage.run(values, heard.__setitem__)
    except Exception as failure:  # a net that is wrong may fail in any way
        return StageError(name, float("inf"), why=f"{type(failure).__name__}: {printable(failure)}")

    def floor(part: str) -> float | None:
        return None if floors is None else floors.get(part, 0.0)

    whole = StageError(name, error_of(candidate, right, values), floor(""))
    if whole.faulty:
        whole.inside.extend(
            LocalError(part, relative(heard[part].reshape(wanted.shape), wanted), floor(part))
            for part, wanted in inside.items()
            if part in heard and heard[part].numel() == wanted.numel()
        )
    return whole


def error_of(candidate: Values, truth: Values, values: Values) -> float:
    """The largest error of a stage's values; of one that it updates, by the update."""
    errors = [
        relative(candidate[name], right, values.get(name)) if name in candidate else float("inf")
        for name, right in truth.items()
    ]
    return max(errors, default=0.0)


def repairs(
    original: Net,
    build: Callable[[Mapping[str, Any]], Net],
    state: Mapping[str, Any],
    case: Case,
    *,
    faults: Callable[[int | None], Sequence[Fault]],
    stages: Sequence[str],
    device: str = "cpu",
) -> list[Repair]:
    """Which known fault, done once more, undoes it: a swap is its own repair.

    Args:
        build: converted state dict -> the converted net in float64.
        faults: block, or None, -> the known faults of its tensors.
        stages: the faulty ones.
    """
    repaired = []
    with torch.inference_mode():
        values: Values = case.tensors(torch.float64, device)
        for stage in original.stages:
            right = stage.run(values, no_probe)
            if stage.name in stages[:MENDED]:
                number = re.search(r"\d+$", stage.name)
                known = faults(int(number[0]) if number else None)
                for fault in [fault for fault in known if fault.undoes_itself][:TRIED]:
                    net = build(with_fault(state, fault))
                    mended = next((own for own in net.stages if own.name == stage.name), None)
                    if mended and error_of(mended.run(values, no_probe), right, values) <= FAULTY:
                        repaired.append(Repair(f"{stage.name} is right again with {fault.name}", stage.name))
                        break
            values = values | right
    return repaired
