"""An adapter as pairs of matrices at the scale 1, one for each module of a model of diffusers: all that PEFT's layers
hold, whatever the file had.

What is of low rank stays so. The rest, such as a full difference, is a pair as well: of the rank of its smaller side,
one of its matrices the identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .changes import Change
from .layouts import parts_of
from .placed import Placed
from .products import Array, Factor, Full, Held, LowRank, Product, Replaced, flat


@dataclass(frozen=True)
class Pair:
    """What one module gets: `up @ down` is added to its weight, and `bias` to its bias.

    Attributes:
        down: (r, in), of a convolution (r, in, kh, kw). up: (out, r), of a convolution (out, r, 1, 1).
        bias: (out,), where any module of the adapter has one.
        magnitude: of DoRA per output: the norms that the rows of the sum get, (out,), of a convolution (1, out, 1, 1).
    """

    down: Array
    up: Array
    bias: Array | None = None
    magnitude: Array | None = None


@dataclass
class Pairs:
    """The pairs of an adapter, each computed when it is come to.

    Args:
        changes: of the tensors of a model in diffusers' layout, by their keys. tensors: the model's.
        strength: what the pairs will be multiplied by. What does not grow with it in proportion, which is DoRA that is
            not left to PEFT, is computed for it (at 0, where nothing of it counts, for 1).

    Attributes:
        dora: whether all modules are DoRA per output, which PEFT has, for all modules of an adapter or none, and
            without biases. biased: whether any module has one.

    Example:
        >>> weight = Held(np.zeros((3, 2)))
        >>> lora = Change(LowRank(Held(np.ones((1, 2))), Held(np.ones((3, 1)))), scale=0.5)
        >>> whole = Change(Full(Held(np.ones((3, 2)))))
        >>> pairs = Pairs({"a.weight": lora, "b.weight": whole}, {"a.weight": weight, "b.weight": weight})
        >>> [(module, pair.down.shape, pair.up.tolist()) for module, pair in pairs]
        [('a', (1, 2), [[0.5], [0.5], [0.5]]), ('b', (2, 2), [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])]
    """

    changes: dict[str, Change]
    tensors: Mapping[str, Factor]
    strength: float = 1.0

    def __post_init__(self) -> None:
        self.strength = self.strength or 1.0
        self.biased = any(key.endswith(".bias") for key in self.changes)
        self.dora = not self.biased and all(c.magnitude and c.axis == 0 for c in self.changes.values())

    @classmethod
    def of(cls, placed: Sequence[Placed], tensors: Mapping[str, Factor], strength: float) -> Pairs:
        """Of one adapter, placed on a model of diffusers."""
        changes: dict[str, Change] = {}
        for row in placed:
            ((_, layout, own),) = row.changes
            parts = own if layout == row.layout else _parts(row, own, strength or 1.0)
            changes |= {key: change for key, change in zip(row.move.parts, parts, strict=True) if change}
        return cls(changes, tensors, strength)

    @property
    def computed(self) -> list[str]:
        """The modules whose pairs are right for this strength only."""
        return [key.rpartition(".")[0] for key, c in self.changes.items() if c.magnitude and not self.dora]

    def __iter__(self) -> Iterator[tuple[str, Pair]]:
        for module in dict.fromkeys(key.rpartition(".")[0] for key in self.changes):
            yield module, self._pair(module)

    def _pair(self, module: str) -> Pair:
        shape = self.tensors[f"{module}.weight"].shape
        bias = magnitude = None
        if self.biased:
            own = self._product(f"{module}.bias")
            bias = np.zeros(shape[0]) if own is None else own.matrix(np.float64).reshape(-1)
        product = self._product(f"{module}.weight")
        low = _low_rank(product) if product else LowRank(Held(np.zeros((1, *shape[1:]))), Held(np.zeros((shape[0], 1))))
        ones = (1,) * len(shape[2:])
        if self.dora:
            held = self.changes[f"{module}.weight"].magnitude
            assert held is not None
            magnitude = np.asarray(held.numpy()).reshape(*ones[:1], -1, *ones)
        down, up = flat(low.down, np.float64), flat(low.up, np.float64)
        return Pair(down.reshape(-1, *shape[1:]), up.reshape(*up.shape, *ones), bias, magnitude)

    def _product(self, key: str) -> Product | None:
        """What is added to a tensor, scaled."""
        change = self.changes.get(key)
        if change is None:
            return None
        if isinstance(change.product, Replaced) or (change.magnitude and not self.dora):
            weight = self.tensors[key].numpy().astype(np.float64)
            return Full(Held(change.difference(weight, self.strength) / self.strength))
        return change.product.scaled(change.scale)


def _low_rank(product: Product) -> LowRank:
    """The pair itself, or where that is no smaller than all that it makes, this and the identity."""
    low = product.low_rank()
    return low if low.rank <= min(product.size) else Full(Held(product.matrix(np.float64))).low_rank()


def _parts(row: Placed, changes: Sequence[Change | None], strength: float) -> list[Change]:
    """The changes of the parts of a tensor that an adapter changes as a whole, as the training code has it."""
    (change,) = changes
    assert change is not None

    def whole(_: str) -> Array:
        return row.move.operation.inverse([held.numpy() for held in row.held])

    return parts_of(row.move, change, whole, strength)
