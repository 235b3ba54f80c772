"""Tensors of a source that are changed on the way, such as by a LoRA: what takes their place, and what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint import LazyTensor
from .analysis import Analysis
from .options import ConversionOptions


@dataclass(frozen=True)
class Alteration:
    """What takes the place of tensors of a source.

    Attributes:
        tensors: by the key in the source, of the same shape; computed when they are read.
        record: what was done, JSON-ready, for `adapters` in the record.
        notes: what the user should know.
    """

    tensors: Mapping[str, LazyTensor]
    record: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()


Altering = Callable[[Analysis, ConversionOptions], Alteration]
