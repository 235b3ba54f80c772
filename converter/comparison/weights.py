"""How one set of weights differs from another, tensor by tensor."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .elements import Numbers, Rounding, relative

# Of two tensors. SAME: in other dtypes, and every number is the same.
IDENTICAL, SAME, ROUNDED, DIFFERENT = "identical", "same numbers", "rounded", "different"
SHAPE, ONLY_A, ONLY_B = "other shape", "only in A", "only in B"
# Of two models, the closest first.
ROUNDING_ONLY, MODELS = "rounding only", "different models"
VERDICTS = (IDENTICAL, ROUNDING_ONLY, DIFFERENT, MODELS)


@dataclass(frozen=True)
class TensorDiff:
    """A tensor: (shape, dtype) on each side, None where it is not, and how the two are alike.

    `numbers` are there where the shapes are the same; `roundings` are all that explain the difference. A `buffer` is
    one that diffusers' layout has no place for.
    """

    key: str
    buffer: bool
    kind: str
    a: tuple[tuple[int, ...], str] | None
    b: tuple[tuple[int, ...], str] | None
    numbers: Numbers | None = None
    roundings: tuple[Rounding, ...] = ()

    @property
    def one_sided_buffer(self) -> bool:
        """Whether it is a buffer that only one side has: the other may be of a layout that cannot hold it."""
        return self.buffer and self.kind in (ONLY_A, ONLY_B)

    def as_dict(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"key": self.key, "kind": self.kind}
        for letter, side in (("a", self.a), ("b", self.b)):
            fields[letter] = {"shape": list(side[0]), "dtype": side[1]} if side else None
        if self.numbers:
            names = ("relative_l2", "max_abs", "differing", "elements", "nonfinite_a", "nonfinite_b")
            fields |= {name: getattr(self.numbers, name) for name in names}
        return fields | ({"roundings": [str(rounding) for rounding in self.roundings]} if self.roundings else {})


@dataclass(frozen=True)
class Disagreement:
    """A hyper-parameter that both sides show differently."""

    name: str
    a: Any
    b: Any
    evidence_a: str
    evidence_b: str


@dataclass
class WeightsDiff:
    """One set of weights, raw or ema, against another.

    `tensors`: all that are compared, or that one side lacks, but for the `one_sided_buffers`, which are no difference
    of the models. `disagreements`: hyper-parameters that both sides show, and not alike.
    """

    weights_a: str
    weights_b: str
    tensors: list[TensorDiff]
    one_sided_buffers: list[TensorDiff] = field(default_factory=list)
    disagreements: list[Disagreement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def counts(self) -> Counter[str]:
        """How many tensors there are of every kind."""
        return Counter(tensor.kind for tensor in self.tensors)

    @property
    def compared(self) -> int:
        """How many tensors both sides have in one shape."""
        return sum(self.counts[kind] for kind in (IDENTICAL, SAME, ROUNDED, DIFFERENT))

    @property
    def unpaired(self) -> int:
        """How many tensors cannot be compared: they are on one side only, or not of one shape."""
        return sum(self.counts[kind] for kind in (SHAPE, ONLY_A, ONLY_B))

    @cached_property
    def relative_l2(self) -> float:
        """Of all weights that were compared, as one vector; buffers without a place in diffusers' layout left out."""
        numbers = [tensor.numbers for tensor in self.tensors if tensor.numbers and not tensor.buffer]
        names = ("difference", "norm_a", "norm_b")
        return relative(*(math.hypot(*(getattr(each, name) for each in numbers)) for name in names))

    @cached_property
    def rounded(self) -> dict[Rounding, list[TensorDiff]]:
        """The tensors that are roundings, by the one that explains them all if there is such a one."""
        tensors = [tensor for tensor in self.tensors if tensor.kind == ROUNDED]
        common = [each for each in tensors[0].roundings if all(each in t.roundings for t in tensors)] if tensors else []
        grouped: dict[Rounding, list[TensorDiff]] = {}
        for tensor in tensors:
            grouped.setdefault((common or tensor.roundings)[0], []).append(tensor)
        return grouped

    @property
    def weights_verdict(self) -> str:
        """What the tensors alone say, one of `VERDICTS`."""
        if self.unpaired and (self.disagreements or not self.compared):
            return MODELS
        if self.unpaired or self.counts[DIFFERENT]:
            return DIFFERENT
        return ROUNDING_ONLY if self.counts[ROUNDED] + self.counts[SAME] else IDENTICAL

    @property
    def verdict(self) -> str:
        """The same, and never closer than different where the hyper-parameters are: they are part of the model."""
        return max(self.weights_verdict, DIFFERENT if self.disagreements else IDENTICAL, key=VERDICTS.index)

    @property
    def distance(self) -> tuple[int, int, bool, float]:
        """Orders several, the nearest first: by verdict, unpaired tensors, whether any was rounded, and relative L2."""
        return VERDICTS.index(self.weights_verdict), self.unpaired, bool(self.rounded), self.relative_l2
