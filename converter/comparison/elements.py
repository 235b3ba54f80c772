"""Two tensors element by element: are the bytes the same, and where they are not, how far apart are the numbers? And is
one the other, rounded?

Both are read front to back in blocks, so that memory does not depend on their size. Sums are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoint import LazyTensor
from ..checkpoint.cast import float64, round_to, widen
from ..checkpoint.dtypes import BF16, F16, F32, DType

BLOCK = 1 << 16  # elements: a block of each side, and float64 copies of both, stay in the processor's cache

# What weights are rounded to, the mildest first. It may not be what they are stored in: float16 weights that were
# loaded into a float32 model are saved as float32.
_ROUNDED_TO = (F32, F16, BF16)


@dataclass
class Numbers:
    """How two tensors of one shape differ.

    `differing`: how many elements are not the same: of one dtype, in any bit; of two, as numbers. `difference`,
    `norm_a` and `norm_b` are the L2 norms of A - B, A and B over what is finite on both sides, `max_abs` the largest
    difference there, `nonfinite_a` and `nonfinite_b` how many are NaN or infinite.
    """

    elements: int
    differing: int = 0
    difference: float = 0.0
    norm_a: float = 0.0
    norm_b: float = 0.0
    max_abs: float = 0.0
    nonfinite_a: int = 0
    nonfinite_b: int = 0

    @property
    def relative_l2(self) -> float:
        """The norm of the difference over the larger of both norms, so that it is the same from either side."""
        return relative(self.difference, self.norm_a, self.norm_b)

    def add(self, a: Any, b: Any) -> None:
        """Add a block of both sides, in float64."""
        norm_a = _norm(a)
        norm_b = norm_a if b is a else _norm(b)
        if not math.isfinite(norm_a + norm_b):
            finite_a, finite_b = np.isfinite(a), np.isfinite(b)
            self.nonfinite_a += int(a.size - np.count_nonzero(finite_a))
            self.nonfinite_b += int(b.size - np.count_nonzero(finite_b))
            a, b = a[finite_a & finite_b], b[finite_a & finite_b]
            norm_a, norm_b = _norm(a), _norm(b)
        self.norm_a, self.norm_b = math.hypot(self.norm_a, norm_a), math.hypot(self.norm_b, norm_b)
        if b is not a and a.size:
            with np.errstate(over="ignore"):
                delta = a - b
            self.difference = math.hypot(self.difference, _norm(delta))
            self.max_abs = max(self.max_abs, float(delta.max()), -float(delta.min()))


def relative(difference: float, *norms: float) -> float:
    """A difference over the largest of some norms: 0 where there is none, infinity where a norm is beyond float64."""
    if not difference:
        return 0.0
    return difference / max(norms) if max(norms) < math.inf else math.inf


def _norm(values: Any) -> float:
    """The L2 norm of float64 values, also where their squares leave its range; not finite if one of them is not.

    Not by BLAS, whose own threads wait for each other busily, inside every one of ours.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squared = float(np.einsum("i,i->", values, values))
        if 1e-290 < squared < math.inf:
            return math.sqrt(squared)
        top = float(np.abs(values).max(initial=0.0))
        return top * _norm(values / top) if 0 < top < math.inf else top


def measure(a: LazyTensor, b: LazyTensor, step: Callable[[int], None] = lambda count: None) -> Numbers:
    """Compare two tensors of one shape.

    Args:
        step: called with every count of bytes compared, of both sides together.

    Raises: `InputError` where one of them cannot be read whole, or its checksum is wrong.
    """
    numbers = Numbers(a.numel)
    for raw_a, raw_b in blocks(a, b):
        x, differing = float64(raw_a, a.dtype), 0
        if a.dtype == b.dtype:
            bits = f"<u{a.dtype.itemsize}"
            differing = int(np.count_nonzero(np.frombuffer(raw_a, bits) != np.frombuffer(raw_b, bits)))
            y = float64(raw_b, b.dtype) if differing else x
        else:  # 0 and -0 are not the same number, and NaN is the same as NaN
            y = float64(raw_b, b.dtype)
            unlike = (x.view(np.uint64) != y.view(np.uint64)) & ~(np.isnan(x) & np.isnan(y))
            differing = int(np.count_nonzero(unlike))
        numbers.differing += differing
        numbers.add(x, y)
        step(len(raw_a) + len(raw_b))
    return numbers


def blocks(a: LazyTensor, b: LazyTensor) -> Iterator[tuple[memoryview, memoryview]]:
    """The bytes of the next `BLOCK` elements of both; each pair is valid until the next is taken.

    Exhausted, it has verified the checksums; a consumer that stops early has no proof of what it read.
    """
    return zip(_blocks_of(a), _blocks_of(b), strict=True)


def _blocks_of(tensor: LazyTensor) -> Iterator[memoryview]:
    """A tensor's chunks, which have any sizes, in blocks of `BLOCK` elements; the last one may be shorter."""
    block = memoryview(bytearray(min(BLOCK, tensor.numel) * tensor.dtype.itemsize))
    filled = 0
    for _, chunk in tensor.chunks():
        while len(chunk):
            part = chunk[: len(block) - filled]
            block[filled : filled + len(part)] = part
            chunk, filled = chunk[len(part) :], filled + len(part)
            if filled == len(block):
                yield block
                filled = 0
    if filled:
        yield block[:filled]


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
