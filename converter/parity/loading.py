"""Which net was compared, where there are two: as the target's loader makes it, and mended after loading."""

from __future__ import annotations

import torch

from ..reference import Net
from ..reports.report import FAIL, PASS, Check, Phase
from . import gates
from .choices import FLOAT64
from .function import Judge, Outcome
from .model import Remedy
from .statistics import relative


def tried(net: Net, right: Outcome, judge: Judge, device: str) -> Outcome:
    """What another net gives on the inputs of an outcome, in float64, judged."""
    made = Outcome(right.case, right.original)
    made.converted[FLOAT64] = net.forward(right.case.tensors(torch.float64, device)).cpu()
    judge.judge(made)
    return made


def tell(phase: Phase, remedy: Remedy, remedied: bool, other: Outcome) -> None:
    """Say in the phase 'function' which net was compared, and what the other one gives.

    Args:
        remedied: whether it was the mended one.
        other: the outcome of the other one.
    """
    error, limit = relative(other.converted[FLOAT64], other.original[FLOAT64]), gates.LIMITS["relative L2"]
    how = "as from_pretrained alone loads it" if remedied else "with the line run on it"
    words = f"{how}: {error:.2g} of the output apart in float64, where {limit:g} are allowed"
    phase.checks.append(Check(f"{other.case.name} / whole", f"float64 {how}", error, limit, None, words))
    if remedied:
        phase.words += f"; of what from_pretrained loads once this was run on it: {remedy.line}"
        phase.notes.append(f"{words}: {remedy.why}" if other.verdict == FAIL else f"{words}: the line is not needed")
    elif phase.verdict == FAIL and other.verdict == PASS:
        phase.words += (
            f". This is because {remedy.why}: it is the original's function ({error:.2g} of the output apart) once "
            f"this is run on what from_pretrained loads: {remedy.line} (--{remedy.flag} true compares that)"
        )
    elif phase.verdict == FAIL:
        phase.notes.append(f"{remedy.why}, but that is not all: {words}")
