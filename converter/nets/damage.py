"""What a deliberate fault does to a single tensor; shape and dtype stay what they were."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


def scaled(tensor: Tensor) -> Tensor:
    return tensor * 1.01


def halved(tensor: Tensor) -> Tensor:
    """Rounded to half precision and stored as before: to the first kind that does not hold it already, as float16
    does what was trained in it; what all of them hold, to half the digits of bfloat16."""
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
