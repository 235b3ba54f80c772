"""Two tensors element by element: are the bytes the same, and where they are not, how far apart are the numbers?

Both are read front to back in blocks, so that memory does not depend on their size. Sums are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoint import LazyTensor
from ..checkpoint.cast import float64
from ..checkpoint.dtypes import DType

BLOCK = 1 << 16  # elements: a block of each side, and float64 copies of both, stay in the processor's cache


@dataclass
class Numbers:
    """How two tensors of one shape differ.

    Attributes:
        elements: how many there are on each side.
        differing: how many of them are not the same: of one dtype, in any bit; of two, as numbers.
        difference, norm_a, norm_b: L2 norms of A - B, A and B, over the elements that are finite on both sides.
        max_abs: the largest difference of any of these.
        nonfinite_a, nonfinite_b: how many are NaN or infinite.
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
    """The L2 norm of float64 values, also where their squares leave its range; not finite if one of them is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        squared = _squares(values)
        if 1e-290 < squared < math.inf:
            return math.sqrt(squared)
        top = float(np.abs(values).max(initial=0.0))
        return top * math.sqrt(_squares(values / top)) if 0 < top < math.inf else top


def _squares(values: Any) -> float:
    """The sum of the squares. Not by BLAS, whose own threads wait for each other busily, inside every one of ours."""
    return float(np.einsum("i,i->", values, values))


def measure(a: LazyTensor, b: LazyTensor, step: Callable[[int], None] = lambda count: None) -> Numbers:
    """Compare two tensors of one shape.

    Args:
        step: called with every count of bytes compared, of both sides together.

    Raises: `InputError` where one of them cannot be read whole, or its checksum is wrong.
    """
    numbers, one_dtype = Numbers(a.numel), a.dtype == b.dtype
    for block_a, block_b in blocks(a, b):
        same = one_dtype and _equal(block_a, block_b)
        x = float64(block_a, a.dtype)
        y = x if same else float64(block_b, b.dtype)
        if not same:
            numbers.differing += _count_bits(block_a, block_b, a.dtype) if one_dtype else _count_numbers(x, y)
        numbers.add(x, y)
        step(len(block_a) + len(block_b))
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


def _equal(a: memoryview, b: memoryview) -> bool:
    """Equality of two blocks of one length, eight bytes at a time where that goes."""
    kind = np.uint64 if len(a) % 8 == 0 else np.uint8
    return bool((np.frombuffer(a, kind) == np.frombuffer(b, kind)).all())


def _count_bits(a: memoryview, b: memoryview, dtype: DType) -> int:
    """How many elements differ in any bit."""
    kind = f"<u{dtype.itemsize}"
    return int(np.count_nonzero(np.frombuffer(a, kind) != np.frombuffer(b, kind)))


def _count_numbers(x: Any, y: Any) -> int:
    """How many elements are not the same number; 0 and -0 are not, and NaN is the same as NaN."""
    return int(np.count_nonzero((x.view(np.uint64) != y.view(np.uint64)) & ~(np.isnan(x) & np.isnan(y))))
