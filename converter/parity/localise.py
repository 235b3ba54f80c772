"""Where it goes wrong: every converted stage is given the original's input, so that a faulty one stands out alone.

Teacher-forced lockstep: the error of a block, by the block's own update, is at rounding where the block is right,
whatever went wrong before it; all faulty stages show in one run. In float64 rounding is next to nothing. In a lower
precision, for what goes wrong there only, it is what the original's own stage rounds, which is measured beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import printable
from ..reference import Net, Stage, Values
from .faults import Fault, Faulty
from .gates import FLOOR_LEAST, FLOOR_LIMIT
from .inputs import Case
from .inputs import exact as as_float64
from .statistics import relative

# In float64; a right stage is at 1e-15, one with a float32 island at 3e-8. Below it the limit is that of the gates, in
# multiples of the original's own rounding of that stage; measured on right ones: up to 1.2, in half precision too.
FAULTY = 1e-7
MENDED, TRIED = 8, 96  # stages that repairs are tried on, and repairs of one


def lockstep(
    original: Net,
    converted: Net,
    case: Case,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
    exact: Net | None = None,
) -> list[dict[str, Any]]:
    """Each stage of the converted net on the original's values.

    Args:
        dtype: what both nets are in.
        exact: below float64, the original of the same weights in float64, which both are held against.

    Returns: per stage its name, error and whether it is faulty, below float64 also the original's own error as
    `floor`; of a faulty one also the inside, as far as both sides tell of it, in the order of the computation.
    """
    found = []
    theirs = {stage.name: stage for stage in converted.stages}
    truths = {stage.name: stage for stage in exact.stages} if exact else {}
    with torch.inference_mode():
        values: Values = case.tensors(dtype, device)
        for stage in original.stages:
            inside: dict[str, Tensor] = {}
            made = stage.run(values, inside.__setitem__)
            right, floors = made, None
            if stage.name in truths:
                own, inside = inside, {}
                right = truths[stage.name].run(as_float64(values), inside.__setitem__)
                floors = {part: relative(own[part], truth) for part, truth in inside.items() if part in own}
                floors[""] = error_of(made, right, values)
            found.append(_compared(stage.name, theirs.get(stage.name), values, right, inside, floors))
            values = values | made
    return found


def _compared(
    name: str, stage: Stage | None, values: Values, right: Values, inside: Values, floors: dict[str, float] | None
) -> dict[str, Any]:
    """One stage against what is right. `floors`: what the original itself is off by, in its parts and ("") in all."""
    failed = {"name": name, "error": float("inf"), "faulty": True, "inside": []}
    if stage is None:
        return failed | {"why": "the converted net has none"}
    heard: dict[str, Tensor] = {}
    try:
        candidate = stage.run(values, heard.__setitem__)
    except Exception as failure:  # a net that is wrong may fail in any way
        return failed | {"why": f"{type(failure).__name__}: {printable(failure)}"}

    def row(name: str, part: str, error: float) -> dict[str, Any]:
        floor = None if floors is None else floors.get(part, 0.0)
        limit = FAULTY if floor is None else FLOOR_LIMIT * max(floor, FLOOR_LEAST)
        return {"name": name, "error": error, "faulty": not error <= limit} | (
            {} if floor is None else {"floor": floor}
        )

    made = row(name, "", error_of(candidate, right, values))
    if made["faulty"]:
        made["inside"] = [
            row(part, part, relative(heard[part].reshape(truth.shape), truth))
            for part, truth in inside.items()
            if part in heard and heard[part].numel() == truth.numel()
        ]
    return made


def error_of(candidate: Values, truth: Values, values: Values) -> float:
    """The largest error of a stage's values; of one that it updates, by the update."""
    errors = [
        relative(candidate[name], right, values.get(name)) if name in candidate else float("inf")
        for name, right in truth.items()
    ]
    return max(errors, default=0.0)


def repairs(
    original: Net,
    make: Callable[[Mapping[str, Any]], Net],
    state: Mapping[str, Any],
    faults: Callable[[int | None], Sequence[Fault]],
    stages: Sequence[str],
    case: Case,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Which known fault, done once more, undoes it: a swap is its own repair.

    Args:
        make: converted state dict -> the converted net in float64.
        faults: block, or None, -> the known faults of its tensors.
        stages: the faulty ones.

    Returns: what mends a stage, in words.
    """
    found = []
    with torch.inference_mode():
        values: Values = case.tensors(torch.float64, device)
        for stage in original.stages:
            made = stage.run(values, lambda name, value: None)
            if stage.name in stages[:MENDED]:
                number = re.search(r"\d+$", stage.name)
                own = faults(int(number[0]) if number else None)
                for fault in [fault for fault in own if fault.undoes_itself][:TRIED]:
                    net = make(Faulty(state, fault))
                    mended = next((s for s in net.stages if s.name == stage.name), None)
                    if mended is None:
                        continue
                    error = error_of(mended.run(values, lambda name, value: None), made, values)
                    if error <= FAULTY:
                        found.append(
                            {
                                "words": f"{stage.name} is right again with {fault.name}",
                                "stage": stage.name,
                                "restores": True,
                            }
                        )
                        break
            values = values | made
    return found
