"""The weights that are compared: both sides, the sidecar, and the buffers that the target computes anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..checkpoint import LazyTensor
from ..checkpoint.dtypes import BY_NAME
from ..conversion.buffers import Comparison, computed, recomputed, table_of
from ..families import Family, Findings
from ..mapping import Plan
from .misplaced import TensorIndex
from .read_buffers import ReadBuffers

Tensors = Mapping[str, Any]  # key -> something with `dtype`, `shape` and `read()` (a lazy tensor)


@dataclass(frozen=True)
class WeightPair:
    """The original with its plan, the converted state dict, and the sidecar.

    Attributes:
        cast: the dtype that the conversion was declared to round to, '' for none.
        sidecar: None where there is none.
        seen: the findings without what was borrowed from the converted config, where they differ: what the original
            does not show cannot excuse a buffer.
        brief: whether it is enough that a tensor differs, without looking for what it holds instead.
        index: where the bytes of a wrong tensor would belong.
    """

    family: Family
    found: Findings
    plan: Plan
    original: Tensors
    converted: Tensors
    sidecar: Tensors | None = None
    cast: str = ""
    seen: Findings | None = None
    brief: bool = False
    buffers: ReadBuffers = field(default_factory=ReadBuffers, repr=False)
    index: TensorIndex = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", TensorIndex(self.plan, self.original, BY_NAME.get(self.cast)))

    @cached_property
    def recomputed(self) -> dict[str, tuple[Comparison, bool, str]]:
        """Key of a stored buffer that the target computes -> (how the two compare, whether the model is the same
        without the stored one, what that is if not the computed one).

        Raises: `UsageError` where that has to be stated.
        """
        return {
            key: recomputed(self.family, row, self.original[key], self.found, seen=self.seen)
            for key, row in self.plan.computed.items()
        }

    @cached_property
    def exact(self) -> dict[str, LazyTensor]:
        """The buffers that differ from the computed ones only by how they were stored, as they are computed: a
        rounding, or a drift that the user declared to ignore, is no part of the function."""
        return {
            key: computed(key, table_of(self.family, self.plan.computed[key], self.found))
            for key, (comparison, dispensable, _) in self.recomputed.items()
            if dispensable and comparison.difference <= self.family.storing
        }

    @property
    def rounded(self) -> bool:
        """Whether the declared cast loses anything: to a wider dtype it does not."""
        kinds = {self.original[move.origin].dtype for move in self.plan.moves}
        target = BY_NAME.get(self.cast)
        return target is not None and any(kind != target and kind.itemsize >= target.itemsize for kind in kinds)
