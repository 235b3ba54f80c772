"""Deliberate faults: what a wrong conversion does, done on purpose and in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.dtypes import DType
from .net import Values

Change = Callable[[Tensor], Tensor]  # of a single tensor; shape and dtype stay what they were

WEIGHTS, CONFIG, FUNCTION = "weights", "config", "function"  # the phases that can notice a fault
BOTH = frozenset({WEIGHTS, FUNCTION})


def scaled(tensor: Tensor) -> Tensor:
    return tensor * 1.01


def halved(tensor: Tensor) -> Tensor:
    """Rounded to half precision and stored as before: to float16, or to bfloat16 where float16 holds it exactly;
    where both do, to half the digits of bfloat16."""
    for half in (torch.float16, torch.bfloat16):
        rounded = tensor.to(half).to(tensor.dtype)
        if not torch.equal(rounded, tensor):
            return rounded
    return (tensor.to(torch.bfloat16).view(torch.int16) & -16).view(torch.bfloat16).to(tensor.dtype)


def zeroed(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor)


def last_bit(tensor: Tensor) -> Tensor:
    """One element off by one unit in the last place."""
    bits = tensor.clone().flatten()
    whole = bits[:1].view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    whole ^= 1
    return bits.reshape(tensor.shape)


def not_a_number(tensor: Tensor) -> Tensor:
    spoilt = tensor.clone()
    spoilt.view(-1)[-1] = float("nan")
    return spoilt


def drifted(tensor: Tensor) -> Tensor:
    """As another moment of the training would be: every element off by about a thousandth."""
    return tensor + 1e-3 * tensor.roll(1, dims=0)


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(-1, -2)


def exchanged(count: int, one: int, other: int) -> Change:
    """Two of `count` equal runs of rows swapped."""

    def change(tensor: Tensor) -> Tensor:
        runs = list(tensor.chunk(count))
        runs[one], runs[other] = runs[other], runs[one]
        return torch.cat(runs)

    return change


# What doing the same once more cannot mend, unlike an exchange of rows or a transposition.
LASTING = (scaled, halved, zeroed, last_bit, not_a_number, drifted)


@dataclass(frozen=True)
class Fault:
    """A wrong conversion."""

    name: str  # what is wrong, as a person would say it
    expected: frozenset[str]  # the phases that have to notice, each on its own
    # Converted key -> (the key whose tensor is taken, what is done to it).
    weights: Mapping[str, tuple[str, Change | None]] = field(default_factory=dict)
    drop: frozenset[str] = frozenset()  # converted keys that are not there
    config: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # config.json -> the wrong one
    model: Callable[[Any], object] | None = None  # what is done to the target's own module
    inputs: Callable[[Values], Values] | None = None  # those of the converted net -> wrong ones
    stage: str = ""  # after this stage of the converted net its values are replaced by `values(values)`
    values: Callable[[Values], Values] | None = None
    cheap: bool = False  # tried in every run, not in the whole catalogue only
    faint: bool = False  # in a layer that hardly acts, it may change the output by less than any tolerance

    @property
    def undoes_itself(self) -> bool:
        """Whether the same once more may mend it: an exchange of tensors or of rows, a transposition."""
        return bool(self.weights) and not any(change in LASTING for _, change in self.weights.values())


def idle(fault: Fault, state: Mapping[str, Any]) -> bool:
    """Whether a fault zeroes only what is zero already, changing nothing."""
    return bool(fault.weights) and all(
        change is zeroed and not state[origin].torch().any() for origin, change in fault.weights.values()
    )


def within_rounding(fault: Fault, keys: Collection[str]) -> bool:
    """Whether a fault is a last bit of one of these, such as tensors that were computed."""
    return any(change is last_bit and key in keys for key, (_, change) in fault.weights.items())


def with_fault(state: Mapping[str, Any], fault: Fault) -> dict[str, Any]:
    """A converted state dict with a fault in it; everything else is passed on unread."""
    spoilt = {key: state[key] for key in state if key not in fault.drop}
    for key in spoilt.keys() & fault.weights.keys():
        origin, change = fault.weights[key]
        spoilt[key] = ChangedTensor(state[origin], change) if change else state[origin]
    return spoilt


class ChangedTensor:
    """A lazy tensor that is changed when it is read; it keeps its shape, and its dtype unless one is given."""

    def __init__(self, tensor: Any, change: Change, dtype: DType | None = None) -> None:
        self._tensor, self._change = tensor, change
        self.dtype, self.shape = dtype or tensor.dtype, tensor.shape

    def torch(self, out: Tensor | None = None) -> Tensor:
        return self._change(self._tensor.torch()).contiguous()

    def read(self) -> bytes:
        return bytes(self.torch().flatten().view(torch.uint8).numpy())
