"""Buffers that the original net uses as they are stored, and that the converted one computes: the nets are compared
with what is computed, and if that is another buffer, the comparison is of another net."""

from __future__ import annotations

from ..reports.report import INCONCLUSIVE, PASS, Phase
from .compared import Sides

LAST_BITS = 1e-5  # of elements of at most 1, above what other versions of the same arithmetic make of them


def hold_buffers(weights: Phase, sides: Sides) -> Phase:
    """The phase 'weights'; where such a buffer is further off than its last bits, it is no PASS."""
    unused = (sides.seen or sides.found).unused
    told = [
        f"{key} {sides.buffers[key][2]}, and the original uses it as it is: the nets are compared with the computed one"
        for key in sides.exact
        if sides.buffers[key][0].difference > LAST_BITS and key not in unused
    ]
    if told and weights.verdict == PASS:
        weights.verdict, weights.words = INCONCLUSIVE, "; ".join(told)
    return weights
