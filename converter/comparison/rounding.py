"""Is one tensor the other, rounded? Said only where every element is, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoint import LazyTensor
from ..checkpoint.cast import round_to, widen
from ..checkpoint.dtypes import BF16, F16, F32, DType
from .elements import blocks

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


def roundings(a: LazyTensor, b: LazyTensor) -> tuple[Rounding, ...]:
    """Every rounding that makes one of two unequal tensors out of the other, the mildest first; none is the rule.

    Small tensors may have several: 1 is what both float16 and bfloat16 make of 1.0001. NaN is the rounding of any
    NaN, since which one it becomes depends on the processor.
    """
    if not (a.dtype.floating and b.dtype.floating):
        return ()
    candidates = [Rounding("B", to) for to in _targets(a.dtype, b.dtype)]
    candidates += [Rounding("A", to) for to in _targets(b.dtype, a.dtype)]
    candidates.sort(key=lambda rounding: (_ROUNDED_TO.index(rounding.to), rounding.side))
    for block_a, block_b in blocks(a, b):
        sides = {"A": (block_b, b.dtype, block_a, a.dtype), "B": (block_a, a.dtype, block_b, b.dtype)}
        candidates = [rounding for rounding in candidates if _explains(rounding.to, *sides[rounding.side])]
        if not candidates:
            break  # for nearly all tensors that differ, in the first block
    return tuple(candidates)


def _targets(source: DType, stored: DType) -> list[DType]:
    """What a tensor may have been rounded to between its two dtypes, the second one included."""
    return [to for to in _ROUNDED_TO if to != source and to.itemsize <= min(source.itemsize, stored.itemsize)]


def _explains(to: DType, source: memoryview, source_dtype: DType, result: memoryview, stored: DType) -> bool:
    """Whether rounding the source's elements to `to`, and storing them as `stored`, gives the result."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = round_to(_numbers(source, source_dtype), to)
        rounded = rounded if to == stored else round_to(_numbers(memoryview(rounded), to), stored)
    kind = f"<u{stored.itemsize}"
    wrong = np.frombuffer(rounded, kind) != np.frombuffer(result, kind)
    if not wrong.any():
        return True
    return bool((np.isnan(widen(source, source_dtype)[wrong]) & np.isnan(widen(result, stored)[wrong])).all())


def _numbers(data: memoryview, dtype: DType) -> Any:
    """As float32 or float64, which is what can be rounded."""
    values = widen(data, dtype)
    with np.errstate(invalid="ignore"):  # what a signalling NaN becomes is still a NaN
        return values.astype(np.float32) if dtype == F16 else values
