"""What an adapter does to one tensor of a model: low-rank and other products, DoRA, whole differences, replacements.

Shapes: a weight is (out, in), of a convolution (out, in, kh, kw), and a product's `matrix` is (out, all the rest).
LoRA: arXiv 2106.09685, DoRA: 2402.09353, LoHa: 2108.06098, LoKr: 2309.14859, as PEFT and LyCORIS compute them.
"""

from __future__ import annotations

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


def flat(factor: Factor, dtype: Any) -> Array:
    """A factor as (rows, all the rest), of a vector as it is."""
    array = np.asarray(factor.numpy(), dtype)
    return array.reshape(len(array), -1) if array.ndim > 1 else array


@dataclass(frozen=True)
class Product:
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
    def size(self) -> tuple[int, int]:
        """(out, all the rest) of the tensor that it is for."""
        raise NotImplementedError

    def matrix(self, dtype: Any) -> Array:
        """All of it, (out, rest)."""
        raise NotImplementedError

    @property
    def kernel(self) -> Shape:
        """(kh, kw) of a convolution's, where the factors show it; else ()."""
        return ()

    def low_rank(self) -> LowRank:
        """The same numbers as a product of two matrices."""
        raise NotImplementedError

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

    def low_rank(self) -> LowRank:
        if self.mid is None:
            return self
        core, down = np.asarray(self.mid.numpy(), np.float64), flat(self.down, np.float64)
        return LowRank(Held(np.einsum("mn...,ni->mi...", core, down)), self.up)

    def cut(self, rows: Callable[[Array], Sequence[Array]], count: int) -> list[Product]:
        return [replace(self, up=Held(part)) for part in rows(self.up.numpy())]


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


@dataclass(frozen=True)
class Full(Product):
    """All of the difference."""

    diff: Factor
    word = "full difference"

    @property
    def size(self) -> tuple[int, int]:
        return self.diff.shape[0], prod(self.diff.shape[1:])

    def matrix(self, dtype: Any) -> Array:
        return flat(self.diff, dtype)

    def cut(self, rows: Callable[[Array], Sequence[Array]], count: int) -> list[Product]:
        return [replace(self, diff=Held(part)) for part in rows(self.diff.numpy())]


@dataclass(frozen=True)
class Replaced(Full):
    """What stands in place of the tensor: a module that was trained whole."""

    word = "replaced"


def pair_of(a: Factor, b: Factor, core: Factor | None, dtype: Any) -> tuple[Array, Array]:
    """Two factors as (out, r) and (r, rest); of a convolution with a core (r, r, kh, kw), `a` is (r, out)."""
    if core is None:
        return flat(a, dtype), flat(b, dtype)
    inner = np.einsum("ij...,jr->ir...", np.asarray(core.numpy(), dtype), flat(b, dtype))
    return flat(a, dtype).T, inner.reshape(len(inner), -1)


@dataclass(frozen=True)
class Change:
    """What becomes of one tensor.

    Attributes:
        scale: of the product (of a replacement, 1).
        alpha: where the scale is from: 'file', 'config', 'header', 'given', 'assumed', or 'convention' (it is 1); ''
            where none is needed.
        magnitude: of DoRA, one number for each index of `axis`: 0, of the tensor's outputs, or 1, of its inputs.
    """

    product: Product
    scale: float = 1.0
    alpha: str = ""
    magnitude: Factor | None = None
    axis: int = 0

    @property
    def word(self) -> str:
        """Its kind, for people."""
        per_input = " per input" if self.axis else ""
        return f"DoRA{per_input} ({self.product.word})" if self.magnitude else self.product.word

    def difference(self, weight: Array, strength: float = 1.0) -> Array:
        """What is added to a tensor. It is computed in the dtype of `weight`.

        Args:
            strength: multiplies the scale, as PEFT's `set_adapters` does; of a replacement, the difference.

        >>> lora = Change(LowRank(Held(np.ones((1, 2))), Held(np.ones((2, 1)))), scale=0.5)
        >>> lora.difference(np.zeros((2, 2)), strength=2)
        array([[1., 1.],
               [1., 1.]])
        """
        if isinstance(self.product, Replaced):
            return strength * (self.product.matrix(weight.dtype).reshape(weight.shape) - weight)
        added = self.product.matrix(weight.dtype).reshape(weight.shape)
        if (factor := strength * self.scale) != 1:
            added = added * weight.dtype.type(factor)
        if self.magnitude is None:
            return added
        return self.magnified(weight + added) - weight

    def magnified(self, value: Array) -> Array:
        """DoRA's last step: each row (or column) of the norm that the magnitude says."""
        assert self.magnitude is not None
        axes = tuple(axis for axis in range(value.ndim) if axis != self.axis)
        norm = np.sqrt(np.sum(value * value, axis=axes, keepdims=True))
        return value * (np.asarray(self.magnitude.numpy(), value.dtype).reshape(norm.shape) / norm)
