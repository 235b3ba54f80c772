"""Zeros that both sides hold: the weights agree, and what they agree on may be a download that was not completed."""

from __future__ import annotations

from ..conversion.zeros import find_zeros
from ..reports.report import INCONCLUSIVE, PASS, Phase
from .compared import Sides


def hold_zeros(weights: Phase, sides: Sides) -> Phase:
    """The phase 'weights' with what is zero in the original; where no training leaves that so, it is no PASS.

    Nothing of the original is read again but its tensors' ends, and what is zero: the audit has read it all.
    """
    if weights.verdict != PASS:
        return weights  # where they differ, that is what there is to say
    zeros = find_zeros(sides.plan, sides.original)
    weights.notes += zeros.notes
    if zeros.refused:
        weights.verdict = INCONCLUSIVE
        weights.words = f"the converted weights are the original's, in which {zeros.refused}"
    return weights
