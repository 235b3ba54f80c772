"""Which net was compared, where there are two: as the target's loader makes it, and mended after loading."""

from __future__ import annotations

from ..nets.spec import PostLoadFix
from ..reports.report import FAIL, PASS, Check, Phase
from . import gates
from .choices import FLOAT64
from .function import CaseOutcome
from .statistics import relative


def report_fix(phase: Phase, fix: PostLoadFix, fixed: bool, other: CaseOutcome) -> None:
    """Say in the phase 'function' which net was compared, and what the other one gives.

    Args:
        fixed: whether it was the mended one.
        other: the outcome of the other one.
    """
    error, limit = relative(other.converted[FLOAT64], other.original[FLOAT64]), gates.LIMITS["relative L2"]
    how = "as from_pretrained alone loads it" if fixed else "with the line run on it"
    words = f"{how}: {error:.2g} of the output apart in float64, where {limit:g} are allowed"
    phase.checks.append(Check(f"{other.case.name} / whole", f"float64 {how}", error, limit, None, words))
    if fixed:
        phase.words += f"; of what from_pretrained loads once this was run on it: {fix.line}"
        phase.notes.append(f"{words}: {fix.why}" if other.verdict == FAIL else f"{words}: the line is not needed")
    elif phase.verdict == FAIL and other.verdict == PASS:
        phase.words += (
            f". This is because {fix.why}: it is the original's function ({error:.2g} of the output apart) once "
            f"this is run on what from_pretrained loads: {fix.line} (--{fix.flag} true compares that)"
        )
    elif phase.verdict == FAIL:
        phase.notes.append(f"{fix.why}, but that is not all: {words}")
