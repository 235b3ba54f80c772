"""Two tensors element by element: are the bytes the same, and where they are not, how far apart are the numbers?

Both are read front to back in blocks, so that memory does not depend on their size. Sums are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..checkpoint.cast import float64
from ..checkpoint.dtypes import DType

BLOCK = 1 << 16  # elements: a block of each side, and float64 copies of both, stay in the processor's cache


class Readable(Protocol):
    """What can be compared: `chunks()` are its row-major bytes, each with its offset; their checksum is verified once
    they are all taken."""

    @property
    def dtype(self) -> DType: ...
    @property
    def numel(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def chunks(self) -> Iterable[tuple[int, memoryview]]: ...


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
        """Take in a block of both sides, in float64."""
        norm_a = _norm(a)
        norm_b = norm_a if b is a else _norm(b)
        if not math.isfinite(norm_a + norm_b):
            good_a, good_b = np.isfinite(a), np.isfinite(b)
            self.nonfinite_a += int(a.size - np.count_nonzero(good_a))
            self.nonfinite_b += int(b.size - np.count_nonzero(good_b))
            a, b = a[good_a & good_b], b[good_a & good_b]
            norm_a, norm_b = _norm(a), _norm(b)
        self.norm_a, self.norm_b = math.hypot(self.norm_a, norm_a), math.hypot(self.norm_b, norm_b)
        if b is not a and a.size:
            with np.errstate(over="ignore"):
                apart = a - b
            self.difference = math.hypot(self.difference, _norm(apart))
            self.max_abs = max(self.max_abs, float(apart.max()), -float(apart.min()))


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


def measure(a: Readable, b: Readable, step: Callable[[int], None] = lambda count: None) -> Numbers:
    """Compare two tensors of one shape.

    Args:
        step: told of every count of bytes compared, of both sides together.

    Raises: `InputError` where one of them cannot be read whole, or its checksum is wrong.
    """
    made, alike = Numbers(a.numel), a.dtype == b.dtype
    for one, other in blocks(a, b):
        same = alike and equal(one, other)
        x = float64(one, a.dtype)
        y = x if same else float64(other, b.dtype)
        if not same:
            made.differing += _unlike_bits(one, other, a.dtype) if alike else _unlike_numbers(x, y)
        made.add(x, y)
        step(len(one) + len(other))
    return made


def blocks(a: Readable, b: Readable) -> Iterator[tuple[memoryview, memoryview]]:
    """The bytes of as many elements of both at a time; each pair is valid until the next is taken.

    Exhausted, it has verified the checksums; a consumer that stops early has no proof of what it read.
    """
    size = min(BLOCK, a.numel)
    one, other = (memoryview(bytearray(size * side.dtype.itemsize)) for side in (a, b))
    first, second = _Run(a.chunks()), _Run(b.chunks())
    for start in range(0, a.numel, BLOCK):
        count = min(BLOCK, a.numel - start)
        x, y = one[: count * a.dtype.itemsize], other[: count * b.dtype.itemsize]
        first.fill(x)
        second.fill(y)
        yield x, y
    first.finish()
    second.finish()


class _Run:
    """Chunks of any sizes, handed out in the sizes that are asked for."""

    def __init__(self, chunks: Iterable[tuple[int, memoryview]]) -> None:
        self._chunks = iter(chunks)
        self._left = memoryview(b"")

    def fill(self, into: memoryview) -> None:
        done = 0
        while done < len(into):
            if not len(self._left):
                _, self._left = next(self._chunks)
            part = self._left[: len(into) - done]
            into[done : done + len(part)] = part
            self._left = self._left[len(part) :]
            done += len(part)

    def finish(self) -> None:
        """Take what is left of what the chunks are part of: at its end its checksum is verified."""
        for _ in self._chunks:
            pass


def equal(one: memoryview, other: memoryview) -> bool:
    """Equality of as many bytes, eight at a time where that goes."""
    kind = np.uint64 if len(one) % 8 == 0 else np.uint8
    return bool((np.frombuffer(one, kind) == np.frombuffer(other, kind)).all())


def _unlike_bits(one: memoryview, other: memoryview, dtype: DType) -> int:
    kind = f"<u{dtype.itemsize}"
    return int(np.count_nonzero(np.frombuffer(one, kind) != np.frombuffer(other, kind)))


def _unlike_numbers(x: Any, y: Any) -> int:
    """How many are not the same number; 0 and -0 are not, and NaN is the same as NaN."""
    return int(np.count_nonzero((x.view(np.uint64) != y.view(np.uint64)) & ~(np.isnan(x) & np.isnan(y))))
