"""The products of LyCORIS, which PEFT has too: LoHa (arXiv 2108.06098) and LoKr (arXiv 2309.14859)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from .products import Array, Factor, Held, LowRank, Product, Shape, flat, times


@dataclass(frozen=True)
class Hadamard(Product):
    """LoHa: (w1_a @ w1_b) * (w2_a @ w2_b), element by element; of a convolution also with cores `t1`, `t2`."""

    w1_a: Factor
    w1_b: Factor
    w2_a: Factor
    w2_b: Factor
    t1: Factor | None = None
    t2: Factor | None = None
    word = "LoHa"

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        if self.t1 is None:
            return self.w1_a.shape[0], prod(self.w1_b.shape[1:])
        return self.w1_a.shape[1], self.w1_b.shape[1] * prod(self.t1.shape[2:])

    @property
    def kernel(self) -> Shape:
        return (self.t1 or self.w1_b).shape[2:]

    def matrix(self, dtype: Any) -> Array:
        (one, right), (two, other) = self._halves(dtype)
        product: Array = (one @ right) * (two @ other)
        return product

    def _halves(self, dtype: Any) -> list[tuple[Array, Array]]:
        """Of each half, its two factors."""
        halves = ((self.w1_a, self.w1_b, self.t1), (self.w2_a, self.w2_b, self.t2))
        return [pair_of(a, b, core, dtype) for a, b, core in halves]

    def scaled(self, scale: float) -> Hadamard:
        return replace(self, w1_a=times(self.w1_a, scale))

    def low_rank(self) -> LowRank:
        # A product of elements of two sums is the sum over all pairs of their terms.
        (one, right), (two, other) = self._halves(np.float64)
        up = (one[:, :, None] * two[:, None, :]).reshape(len(one), -1)
        down = (right[:, None, :] * other[None, :, :]).reshape(-1, right.shape[1])
        return LowRank(Held(down.reshape(len(down), -1, *self.kernel)), Held(up))

    def cut(self, rows: Callable[[Array], Sequence[Array]], count: int) -> list[Product]:
        def own(factor: Factor) -> list[Factor]:
            array = factor.numpy()  # with a core, its columns are the tensor's rows
            return [Held(part.T) for part in rows(array.T)] if self.t1 is not None else [*map(Held, rows(array))]

        pairs = zip(own(self.w1_a), own(self.w2_a), strict=True)
        return [replace(self, w1_a=one, w2_a=two) for one, two in pairs]


@dataclass(frozen=True)
class Kronecker(Product):
    """LoKr: kron(w1, w2), either of them whole or a product of two (`w2` also with a core `t2`)."""

    w1: Factor | None = None
    w1_a: Factor | None = None
    w1_b: Factor | None = None
    w2: Factor | None = None
    w2_a: Factor | None = None
    w2_b: Factor | None = None
    t2: Factor | None = None
    word = "LoKr"

    @property
    def rank(self) -> int | None:
        return next((half.shape[0] for half in (self.w2_b, self.w1_b) if half is not None), None)

    @property
    def size(self) -> tuple[int, int]:
        (a, b), (c, d) = self._shape(1), self._shape(2)
        return a * c, b * d

    def _shape(self, half: int) -> tuple[int, int]:
        whole, a, b = (getattr(self, f"w{half}{end}") for end in ("", "_a", "_b"))
        if whole is not None:
            return whole.shape[0], prod(whole.shape[1:])
        if half == 2 and self.t2 is not None:
            return a.shape[1], b.shape[1] * prod(self.t2.shape[2:])
        return a.shape[0], prod(b.shape[1:])

    @property
    def kernel(self) -> Shape:
        return next((each.shape[2:] for each in (self.w2, self.t2, self.w2_b) if each is not None), ())

    def _half(self, half: int, dtype: Any) -> tuple[Array, Array]:
        """Two factors of a half; of one that is whole, the identity is the one on its longer side."""
        whole, a, b = (getattr(self, f"w{half}{end}") for end in ("", "_a", "_b"))
        if whole is None:
            return pair_of(a, b, self.t2 if half == 2 else None, dtype)
        array = flat(whole, dtype)
        rows, columns = array.shape
        return (np.eye(rows, dtype=dtype), array) if rows < columns else (array, np.eye(columns, dtype=dtype))

    def matrix(self, dtype: Any) -> Array:
        (p, q), (r, s) = (self._half(half, dtype) for half in (1, 2))
        return np.kron(p @ q, r @ s)

    def scaled(self, scale: float) -> Kronecker:
        name = "w1" if self.w1 is not None else "w1_a"
        return replace(self, **{name: times(getattr(self, name), scale)})

    def low_rank(self) -> LowRank:
        """kron(P Q, R S) = kron(P, R) kron(Q, S)."""
        (p, q), (r, s) = (self._half(half, np.float64) for half in (1, 2))
        down = np.kron(q, s)
        return LowRank(Held(down.reshape(len(down), -1, *self.kernel)), Held(np.kron(p, r)))

    def cut(self, rows: Callable[[Array], Sequence[Array]], count: int) -> list[Product] | None:
        name = "w1" if self.w1 is not None else "w1_a"
        first: Factor = getattr(self, name)
        if first.shape[0] % count:
            return None
        return [replace(self, **{name: Held(part)}) for part in rows(first.numpy())]


def pair_of(a: Factor, b: Factor, core: Factor | None, dtype: Any) -> tuple[Array, Array]:
    """Two factors as (out, r) and (r, rest); of a convolution with a core (r, r, kh, kw), `a` is (r, out)."""
    if core is None:
        return flat(a, dtype), flat(b, dtype)
    inner = np.einsum("ij...,jr->ir...", np.asarray(core.numpy(), dtype), flat(b, dtype))
    return flat(a, dtype).T, inner.reshape(len(inner), -1)
