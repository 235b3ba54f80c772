"""Adding products of low rank to a tensor a few rows at a time: the commonest adapter, and the fastest way.

All products on the same rows are one: their left factors side by side, their right ones one above the other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..checkpoint import DType, LazyTensor
from ..checkpoint.cast import round_to, widen
from .changes import Change
from .products import Array, LowRank

ROWS = 128  # that are computed at once: they stay in the processor's cache


@dataclass(frozen=True)
class RowProduct:
    """A product that is added to a run of a tensor's rows.

    Attributes:
        rows: of the tensor. of: the rows of the left factor, None for all. strength: multiplies the scale.
    """

    change: Change
    strength: float
    rows: slice
    of: slice | None = None

    @property
    def factors(self) -> tuple[Array, Array]:
        """(rows, r) and (r, rest), without the scale."""
        product = self.change.product
        assert isinstance(product, LowRank)
        up, down = product.up.numpy(), product.down.numpy()
        return (up if self.of is None else up[self.of]).reshape(-1, product.rank), down.reshape(product.rank, -1)


def is_low_rank(change: Change) -> bool:
    """Whether each row of what is added depends on that row of the left factor alone."""
    return isinstance(change.product, LowRank) and change.product.mid is None and change.magnitude is None


class _Scratch(threading.local):
    """Memory of one thread, used over and over: fresh memory for every tensor would cost more than the sums."""

    data = bytearray()

    def of(self, size: int) -> memoryview:
        if len(self.data) < size:
            self.data = bytearray(size)
        return memoryview(self.data)[:size]


_SCRATCH = _Scratch()


def added_by_rows(
    held: LazyTensor, products: Sequence[RowProduct], dtype: DType, wide: DType
) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor with products added to it, in `dtype`, a few rows at a time, computed in `wide`."""
    data = _SCRATCH.of(held.nbytes)
    held.read_into(data)
    rows = held.shape[0]
    weight = widen(data, held.dtype).reshape(rows, -1)
    stacked = [(run, *_stacked(group, wide)) for run, group in _by_rows(products)]
    room = np.empty((ROWS, weight.shape[1]), wide.name)
    edges = sorted({0, rows, *(edge for run, _, _ in stacked for edge in (run.start, run.stop))})
    for first, last in pairwise(edges):
        for start in range(first, last, ROWS):
            stop = min(start + ROWS, last)
            block = weight[start:stop].astype(wide.name, copy=False)
            for run, up, down in stacked:
                if run.start <= start < run.stop:
                    added = np.matmul(up[start - run.start : stop - run.start], down, out=room[: stop - start])
                    block = np.add(block, added, out=block if block.flags.writeable else None)
            yield in_bytes(block, dtype)


def in_bytes(array: Array, dtype: DType) -> bytes | memoryview:
    """An array as bytes of a dtype, rounded where it is not its own."""
    if array.dtype != dtype.name:
        return round_to(array, dtype)
    data: memoryview = np.ascontiguousarray(array).reshape(-1).view("u1").data
    return data


def _by_rows(products: Sequence[RowProduct]) -> list[tuple[slice, list[RowProduct]]]:
    groups: dict[tuple[int, int], list[RowProduct]] = {}
    for product in products:
        groups.setdefault((product.rows.start, product.rows.stop), []).append(product)
    return [(slice(*run), group) for run, group in groups.items()]


def _stacked(group: Sequence[RowProduct], wide: DType) -> tuple[Array, Array]:
    pairs = [(product, *product.factors) for product in group]
    kind = np.dtype(wide.name)
    ups = [up.astype(kind, copy=False) * kind.type(one.strength * one.change.scale) for one, up, _ in pairs]
    downs = [down.astype(kind, copy=False) for _, _, down in pairs]
    return np.concatenate(ups, axis=1), np.concatenate(downs)
