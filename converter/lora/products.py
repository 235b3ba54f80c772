"""What an adapter adds to a tensor, or puts in its place, before it is scaled.

Shapes: a weight is (out, in), of a convolution (out, in, kh, kw), and a product's `matrix` is (out, all the rest).
LoRA: arXiv 2106.09685.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, Protocol

import numpy as np

Array = Any  # of NumPy
Shape = tuple[int, ...]


class Factor(Protocol):
    """A tensor of an adapter, read when it is asked for: a `LazyTensor`, or an array in memory."""

    @property
    def shape(self) -> Shape: ...

    def numpy(self) -> Array: ...


@dataclass(frozen=True, eq=False)
class Held:
    """An array as a factor."""

    array: Array

    @property
    def shape(self) -> Shape:
        return tuple(self.array.shape)

    def numpy(self) -> Array:
        return self.array


def times(factor: Factor, scale: float) -> Held:
    """A factor times a number, in float32 at least."""
    array = factor.numpy()
    return Held(array.astype(np.result_type(array, np.float32)) * scale)


def flat(factor: Factor, dtype: Any) -> Array:
    """A factor as (rows, all the rest), of a vector as it is."""
    array = np.asarray(factor.numpy(), dtype)
    return array.reshape(len(array), -1) if array.ndim > 1 else array


@dataclass(frozen=True)
class Product(ABC):
    """What is added to a tensor, or stands in its place, before it is scaled."""

    word = ""

    @property
    def factors(self) -> dict[str, Factor]:
        """Those that are there, by the names of the fields."""
        return {one.name: held for one in fields(self) if (held := getattr(self, one.name)) is not None}

    @property
    def rank(self) -> int | None:
        """The rank that a scale is divided by; None where there is none."""
        return None

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(out, all the rest) of the tensor that it is for."""

    @abstractmethod
    def matrix(self, dtype: Any) -> Array:
        """All of it, (out, rest)."""

    @property
    def kernel(self) -> Shape:
        """(kh, kw) of a convolution's, where the factors show it; else ()."""
        return ()

    @abstractmethod
    def low_rank(self) -> LowRank:
        """The same numbers as a product of two matrices."""

    @abstractmethod
    def scaled(self, scale: float) -> Product:
        """The same times a number, which goes into one of its factors."""

    def cut(self, rows: Callable[[Array], Sequence[Array]], count: int) -> list[Product] | None:
        """Parts of it: `rows` gives those of an array with a row for each of the tensor's, of `count` groups of rows.
        None where it cannot be cut."""
        return None


@dataclass(frozen=True)
class LowRank(Product):
    """LoRA: up @ down; of a convolution also with a core between them (`mid`, LyCORIS' Tucker form)."""

    down: Factor
    up: Factor
    mid: Factor | None = None
    word = "LoRA"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def kernel(self) -> Shape:
        return (self.mid or self.down).shape[2:]

    @property
    def size(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1] * prod(self.kernel)

    def matrix(self, dtype: Any) -> Array:
        pair = self.low_rank()
        return flat(pair.up, dtype) @ flat(pair.down, dtype)

    def scaled(self, scale: float) -> LowRank:
        return replace(self, up=times(self.up, scale))

    def low_rank(self) -> LowRank:
        if self.mid is None:
            return self
        core, down = np.asarray(self.mid.numpy(), np.float64), flat(self.down, np.float64)
        return LowRank(Held(np.einsum("mn...,ni->mi...", core, down)), self.up)

    def cut(self, rows: Callable[[Array], Sequence[Array]], count: int) -> list[Product]:
        return [replace(self, up=Held(part)) for part in rows(self.up.numpy())]


@dataclass(frozen=True)
class Full(Product):
    """All of the difference."""

    diff: Factor
    word = "full difference"

    @property
    def size(self) -> tuple[int, int]:
        return self.diff.shape[0], prod(self.diff.shape[1:])

    def low_rank(self) -> LowRank:
        """All of it and the identity of its shorter side."""
        rows, columns = self.size
        if rows < columns:
            return LowRank(self.diff, Held(np.eye(rows)))
        return LowRank(Held(np.eye(columns).reshape(columns, *self.diff.shape[1:])), Held(self.matrix(np.float64)))

    def scaled(self, scale: float) -> Full:
        return replace(self, diff=times(self.diff, scale))

    def matrix(self, dtype: Any) -> Array:
        return flat(self.diff, dtype)

    def cut(self, rows: Callable[[Array], Sequence[Array]], count: int) -> list[Product]:
        return [replace(self, diff=Held(part)) for part in rows(self.diff.numpy())]


@dataclass(frozen=True)
class Replaced(Full):
    """What stands in place of the tensor: a module that was trained whole."""

    word = "replaced"
