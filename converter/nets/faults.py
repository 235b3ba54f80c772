"""Deliberate faults: what a wrong conversion does, done on purpose and in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.dtypes import DType
from .damage import LASTING, Change, zeroed
from .net import Values

WEIGHTS, CONFIG, FUNCTION = "weights", "config", "function"  # the phases that can kill a fault
BOTH = frozenset({WEIGHTS, FUNCTION})


@dataclass(frozen=True)
class Fault:
    """A wrong conversion.

    Attributes:
        name: what is wrong, as a person would say it.
        expected: the phases that have to notice, each on its own.
        weights: converted key -> (the key whose tensor is taken, what is done to it).
        drop: converted keys that are not there.
        config: config.json -> the wrong one.
        inputs: the inputs of the converted net -> wrong ones.
        stage, values: after this stage of the converted net its values are replaced by `values(values)`.
        cheap: tried in every run, not in the whole catalogue only.
        faint: in a layer that hardly acts, it may change the output by less than any tolerance.
    """

    name: str
    expected: frozenset[str]
    weights: Mapping[str, tuple[str, Change | None]] = field(default_factory=dict)
    drop: frozenset[str] = frozenset()
    config: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    inputs: Callable[[Values], Values] | None = None
    stage: str = ""
    values: Callable[[Values], Values] | None = None
    cheap: bool = False
    faint: bool = False

    @property
    def undoes_itself(self) -> bool:
        """Whether the same once more may mend it: an exchange of tensors or of rows, a transposition."""
        return bool(self.weights) and not any(change in LASTING for _, change in self.weights.values())


def idle(fault: Fault, state: Mapping[str, Any]) -> bool:
    """Whether a fault drops only what is zero already, so that it is none."""
    return bool(fault.weights) and all(
        change is zeroed and not state[origin].torch().any() for origin, change in fault.weights.values()
    )


def with_fault(state: Mapping[str, Any], fault: Fault) -> dict[str, Any]:
    """A converted state dict with a fault in it; everything else is passed on unread."""
    spoilt = {key: state[key] for key in state if key not in fault.drop}
    for key in spoilt.keys() & fault.weights.keys():
        origin, change = fault.weights[key]
        spoilt[key] = Altered(state[origin], change) if change else state[origin]
    return spoilt


class Altered:
    """A lazy tensor with something done to it when it is read; its shape stays, and its dtype where none is said."""

    def __init__(self, tensor: Any, change: Change, dtype: DType | None = None) -> None:
        self._tensor, self._change = tensor, change
        self.dtype, self.shape = dtype or tensor.dtype, tensor.shape

    def torch(self, out: Tensor | None = None) -> Tensor:
        return self._change(self._tensor.torch()).contiguous()

    def read(self) -> bytes:
        return bytes(self.torch().flatten().view(torch.uint8).numpy())
