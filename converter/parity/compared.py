"""What a comparison is of: both sides, what lies beside them, and the buffers that the target computes anew."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..checkpoint import LazyTensor
from ..checkpoint.dtypes import BY_NAME
from ..checkpoint.tensor import CHUNK
from ..conversion.buffers import Comparison, computed, recomputed, table_of
from ..families import Family, Findings
from ..mapping import Plan
from .belonging import Bytes, Places

Tensors = Mapping[str, Any]  # key -> something with `dtype`, `shape` and `read()` (a lazy tensor)


class Room(threading.local):
    """Memory of one thread to read tensors into, kept for the next: fresh memory costs more.

    `buffers`: two, to read as many tensors a piece at a time.
    """

    def __init__(self) -> None:
        self.buffers = bytearray(CHUNK), bytearray(CHUNK)
        self._kept = np.empty(0, np.uint8)

    def read(self, tensor: Any) -> Bytes:
        """The bytes of a tensor; the next call overwrites them."""
        if not hasattr(tensor, "read_into"):
            return np.frombuffer(tensor.read(), np.uint8)
        if len(self._kept) < tensor.nbytes:
            self._kept = np.empty(tensor.nbytes, np.uint8)
        data = self._kept[: tensor.nbytes]
        into: Any = data
        tensor.read_into(memoryview(into))
        return data


@dataclass(frozen=True)
class Sides:
    """What is audited: the original with its plan, the converted state dict, and what lies beside it.

    Attributes:
        cast: the dtype that the conversion was declared to round to, '' for none.
        sidecar: None where there is none.
        seen: the findings without what was borrowed from the converted config, where they differ: what the original
            does not show cannot excuse a buffer.
        brief: it is enough that a tensor differs, and not looked for what it holds instead.
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
    room: Room = field(default_factory=Room, repr=False)
    places: Places = field(default_factory=Places, repr=False)

    @cached_property
    def buffers(self) -> dict[str, tuple[Comparison, bool, str]]:
        """Key of a stored buffer that the target computes -> (how the two compare, whether the model is the same
        without the stored one, what that is if not the computed one). Raises `UsageError` where that has to be said."""
        return {
            key: recomputed(self.family, row, self.original[key], self.found, self.seen)
            for key, row in self.plan.computed.items()
        }

    @cached_property
    def exact(self) -> dict[str, LazyTensor]:
        """The buffers that are the computed ones but for how they were stored, as they are computed: a rounding, or a
        drift that the user said not to take, is no part of the function."""
        return {
            key: computed(key, table_of(self.family, self.plan.computed[key], self.found))
            for key, (compared, dispensable, _) in self.buffers.items()
            if dispensable and compared.difference <= self.family.storing
        }

    @property
    def rounded(self) -> bool:
        """Whether the declared cast loses anything: to a wider dtype it does not."""
        kinds = {self.original[move.origin].dtype for move in self.plan.moves}
        target = BY_NAME.get(self.cast)
        return target is not None and any(kind != target and kind.itemsize >= target.itemsize for kind in kinds)
