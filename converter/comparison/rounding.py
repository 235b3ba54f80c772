"""Is one tensor the other, rounded? Said only where every element is, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoint.cast import round_to, widen
from ..checkpoint.dtypes import BF16, F16, F32, DType
from .elements import Readable, blocks

# What weights are rounded to, the mildest first. It may not be what they are stored in: float16 weights that were
# loaded into a float32 model are saved as float32.
_ROUNDED_TO = (F32, F16, BF16)


@dataclass(frozen=True, slots=True)
class Rounding:
    """`side`, A or B, is the other one rounded to the dtype `to`: to nearest, ties to even."""

    side: str
    to: DType

    def __str__(self) -> str:
        return f"{self.side} is {'A' if self.side == 'B' else 'B'} rounded to {self.to}"


def roundings(a: Readable, b: Readable) -> tuple[Rounding, ...]:
    """Every rounding that makes one of two unequal tensors out of the other, the mildest first; none is the rule.

    Small tensors may have several: 1 is what both float16 and bfloat16 make of 1.0001. NaN is the rounding of any
    NaN, since which one it becomes depends on the processor.
    """
    if not (a.dtype.floating and b.dtype.floating):
        return ()
    ways = [Rounding("B", to) for to in _between(a.dtype, b.dtype)]
    ways += [Rounding("A", to) for to in _between(b.dtype, a.dtype)]
    alive = sorted(ways, key=lambda way: (_ROUNDED_TO.index(way.to), way.side))
    for one, other in blocks(a, b):
        sides = {"A": (other, b.dtype, one, a.dtype), "B": (one, a.dtype, other, b.dtype)}
        alive = [way for way in alive if _makes(way.to, *sides[way.side])]
        if not alive:
            break  # for nearly all tensors that differ, in the first block
    return tuple(alive)


def _between(source: DType, stored: DType) -> list[DType]:
    """What a tensor may have been rounded to between its two dtypes, the second one included."""
    return [to for to in _ROUNDED_TO if to != source and to.itemsize <= min(source.itemsize, stored.itemsize)]


def _makes(to: DType, source: memoryview, of: DType, have: memoryview, stored: DType) -> bool:
    """Whether rounding the source's elements to `to` makes those at hand, in what they are stored in."""
    with np.errstate(over="ignore", invalid="ignore"):
        made = round_to(_numbers(source, of), to)
        made = made if to == stored else round_to(_numbers(memoryview(made), to), stored)
    kind = f"<u{stored.itemsize}"
    wrong = np.frombuffer(made, kind) != np.frombuffer(have, kind)
    if not wrong.any():
        return True
    return bool((np.isnan(widen(source, of)[wrong]) & np.isnan(widen(have, stored)[wrong])).all())


def _numbers(data: memoryview, dtype: DType) -> Any:
    """As float32 or float64, which is what can be rounded."""
    made = widen(data, dtype)
    with np.errstate(invalid="ignore"):  # what a signalling NaN becomes is still a NaN
        return made.astype(np.float32) if dtype == F16 else made
