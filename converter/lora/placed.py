"""An adapter against the tensors of one model, in whichever layout each of them is: what is added to which tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ..checkpoint import DType, LazyTensor
from ..checkpoint.dtypes import F32, F64
from ..checkpoint.tensor import row_major
from ..conversion.buffers import ComputedStorage
from ..errors import InputError
from ..mapping import Move
from ..mapping.fold import listed
from .adapter import Adapter
from .by_rows import RowProduct, added_by_rows, in_bytes, is_low_rank
from .changes import Change
from .names import DIFFUSERS, ORIGINAL
from .products import Array


@dataclass
class Placed:
    """What adapters do to the tensors of one row of the table: `held`, the model's, one or the parts of it.

    Attributes:
        move: the original's key and the parts' keys in diffusers' layout.
        layout: that of `held`. changes: (strength, layout, changes of the tensors of that layout, None for no change).
    """

    move: Move
    held: list[LazyTensor]
    layout: str
    changes: list[tuple[float, str, list[Change | None]]] = field(default_factory=list)

    def by_rows(self, number: int) -> list[RowProduct] | None:
        """What is added to one of the tensors, as products of rows; None where it is not all of that kind."""
        operation, count = self.move.operation, len(self.move.parts)
        rows, products = self.held[number].shape[0], list[RowProduct]()
        for strength, layout, changes in self.changes:
            there = [change for change in changes if change]
            crossing = layout != self.layout
            if not all(map(is_low_rank, there)) or (crossing and not operation.in_order(count)):
                return None
            if not crossing:
                if change := changes[number]:
                    products.append(RowProduct(change, strength, slice(0, rows)))
            elif layout == ORIGINAL:  # the rows of its part of a change of the whole
                run = slice(number * rows, (number + 1) * rows)
                products.append(RowProduct(there[0], strength, slice(0, rows), run))
            else:
                each = rows // count
                runs = (slice(part * each, (part + 1) * each) for part in range(count))
                products += [RowProduct(c, strength, run) for c, run in zip(changes, runs, strict=True) if c]
        return products

    @property
    def numbers(self) -> list[list[int]]:
        """The tensors that something is added to, those together that can only be computed together."""
        crossing = any(layout != self.layout for _, layout, _ in self.changes)
        every = [n for n in range(len(self.held)) if crossing or any(changes[n] for _, _, changes in self.changes)]
        together = crossing and len(every) > 1 and self.by_rows(0) is None
        return [every] if together else [[number] for number in every]

    def computed(self, arrays: list[Array]) -> list[Array]:
        """The tensors with what is added to them, in the dtype of the arrays."""
        if len(self.changes) == 1 and self.changes[0][1] == self.layout:
            strength, _, changes = self.changes[0]
            pairs = zip(changes, arrays, strict=True)
            return [change.result(array, strength) if change else array for change, array in pairs]
        operation, count = self.move.operation, len(self.move.parts)
        added: list[Array] = [None] * len(arrays)

        def add(differences: Sequence[Array | None]) -> None:
            for place, difference in enumerate(differences):
                if difference is not None:
                    added[place] = difference if added[place] is None else added[place] + difference

        for strength, layout, changes in self.changes:
            if layout == self.layout:
                pairs = zip(changes, arrays, strict=True)
                add([change.difference(array, strength) if change else None for change, array in pairs])
            elif layout == ORIGINAL:  # one change of what the model has in parts
                (change,) = changes
                assert change is not None
                whole = operation.inverse(arrays)
                add(operation.forward(change.difference(whole, strength), count, np.concatenate))
            else:
                parts = operation.forward(arrays[0], count, np.concatenate)
                both = zip(changes, parts, strict=True)
                add([operation.inverse([c.difference(p, strength) if c else np.zeros_like(p) for c, p in both])])
        return [
            array if difference is None else array + difference for array, difference in zip(arrays, added, strict=True)
        ]


def place(
    adapters: Sequence[tuple[Adapter, float]],
    moves: Sequence[Move],
    tensors: Mapping[str, LazyTensor],
    layout: str,
    *,
    allow_partial: bool = False,
) -> list[Placed]:
    """What adapters do to a model, row by row of its table; only rows that are changed.

    Args:
        adapters: each with its strength.
        moves: of all tensors of the model, from the original's layout. tensors: those of the model, in `layout`.
        allow_partial: leave out what does not fit, and say so in `skipped` of the adapter.

    Raises: `InputError` for what the model does not have, or has in another shape.
    """
    placed = [Placed(move, [tensors[key] for key in keys_of(move, layout)], layout) for move in moves]
    for adapter, strength in adapters:
        left, problems = dict(adapter.changes), dict[str, list[str]]()
        for row in placed:
            keys = keys_of(row.move, adapter.layout)
            changes = [left.pop(key, None) for key in keys]
            if not any(changes):
                continue
            if problem := _misfit(row, adapter.layout, changes):
                problems.setdefault(problem, []).extend(key for key, c in zip(keys, changes, strict=True) if c)
            else:
                row.changes.append((strength, adapter.layout, changes))
        if left:
            problems["the model has no"] = [*left]
        words = listed(problems)
        if words and not allow_partial:
            rule = f"{'; '.join(words)}; nothing of it is used (`allow_partial` leaves these out)"
            raise InputError.at(adapter.path, "", rule)
        adapter.skipped += words
        if not any(change for row in placed for _, _, changes in row.changes for change in changes):
            raise InputError.at(adapter.path, "", f"changes nothing of this model: {'; '.join(words)}")
    return [row for row in placed if row.changes]


def keys_of(move: Move, layout: str) -> tuple[str, ...]:
    """The keys of a tensor in a layout."""
    return (move.origin,) if layout == ORIGINAL else move.parts


def _misfit(row: Placed, layout: str, changes: list[Change | None]) -> str:
    """Why changes cannot be made, in words; '' where they can."""
    shapes = [held.shape for held in row.held]
    operation, count = row.move.operation, len(row.move.parts)
    if layout != row.layout:
        share = operation.share(count)
        if layout == ORIGINAL:
            shapes = [(int(shapes[0][0] / share), *shapes[0][1:])]
        else:
            shapes = [(int(shapes[0][0] * share), *shapes[0][1:])] * count
    for change, shape in zip(changes, shapes, strict=True):
        if change and len(shape) == 1:
            if change.product.size[0] != shape[0]:
                return f"a change of {change.product.size[0]} numbers, where the model has {shape[0]}, of"
        elif change and change.product.size != (shape[0], prod(shape[1:])):
            return f"a change of {list(change.product.size)}, where the model has {list(shape)}, of"
        elif change and change.magnitude is not None and prod(change.magnitude.shape) != shape[change.axis]:
            return f"{prod(change.magnitude.shape)} magnitudes, where the model has {list(shape)}, of"
    if operation.must_agree and layout == DIFFUSERS and row.layout == ORIGINAL and not _alike(changes):
        return "one tensor of the original cannot be changed in one of its copies alone:"
    return ""


def _alike(changes: Sequence[Change | None]) -> bool:
    """Whether all copies of a tensor are changed, and in the same way."""

    def content(change: Change | None) -> Any:
        if change is None:
            return None
        factors = change.product.factors | ({"magnitude": change.magnitude} if change.magnitude else {})
        return (
            type(change.product),
            change.scale,
            change.axis,
            {k: held.numpy().tobytes() for k, held in factors.items()},
        )

    first = content(changes[0])
    return first is not None and all(one is changes[0] or content(one) == first for one in changes[1:])


class MergedStorage(ComputedStorage):
    """The bytes of tensors that adapters have been merged into, computed when they are read, one row of the table in
    memory at a time."""

    def __init__(self, placed: Placed, numbers: Sequence[int], dtype: DType, wide: DType) -> None:
        self.placed, self.numbers, self.dtype, self.wide = placed, numbers, dtype, wide
        held = [placed.held[number] for number in numbers]
        super().__init__(held[0].key, sum(t.numel for t in held) * dtype.itemsize, self._pieces)
        self.file, self._start = held[0].storage.file, 0

    def _pieces(self) -> Iterator[bytes | memoryview]:
        placed = self.placed
        if len(self.numbers) == 1:
            (number,) = self.numbers
            if (products := placed.by_rows(number)) is not None:
                yield from added_by_rows(placed.held[number], products, self.dtype, self.wide)
                return
        if len(self.numbers) < len(placed.held):  # by themselves: the other parts are not read
            changes = [(s, layout, [c[n] for n in self.numbers]) for s, layout, c in placed.changes]
            placed = Placed(placed.move, [placed.held[n] for n in self.numbers], placed.layout, changes)
        arrays = [held.numpy().astype(self.wide.name, copy=False) for held in placed.held]
        try:
            sums = placed.computed(arrays)
        except ZeroDivisionError as error:
            raise self.file.error(placed.held[0].key, f"has {error}") from None
        for array in sums:
            yield in_bytes(array, self.dtype)


def merged_tensors(
    placed: Sequence[Placed], dtype_of: Callable[[LazyTensor], DType] = lambda tensor: tensor.dtype
) -> dict[str, LazyTensor]:
    """The tensors of a model with the adapters in them, computed when they are read, by their keys.

    Float32 and wider are computed as they are, halves in float64. The sum is rounded once, as torch rounds (from
    float64 to a half by way of float32).

    Args:
        dtype_of: what a tensor will be written in, where it is not its own dtype: it is then left as it was computed,
            for the writer to round.
    """
    tensors: dict[str, LazyTensor] = {}
    for row in placed:
        for numbers in row.numbers:
            first = row.held[numbers[0]]
            wide = F32 if first.dtype == F32 else F64
            cast = dtype_of(first) != first.dtype
            dtype = wide if cast else first.dtype
            storage, start = MergedStorage(row, numbers, dtype, wide), 0
            for number in numbers:
                held = row.held[number]
                tensors[held.key] = LazyTensor(held.key, dtype, held.shape, storage, row_major(held.shape), start)
                start += held.numel
    return tensors
