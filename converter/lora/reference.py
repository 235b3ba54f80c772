"""What a merge has to give, from the formulas of the adapters' kinds alone, and how far float32 may end up from it.

Nothing of the merging is used here, so that it can be held against this: everything is computed in float64 by torch.
The distance is a bound, not an estimate. A sum of n products, in float32 and in any order, is off by at most
gamma(n) = n u / (1 - n u) times the sum of their magnitudes, u = 2^-24 (Higham, Accuracy and Stability of Numerical
Algorithms, 3.1); so the same formulas, of the magnitudes, give it element by element.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from ..checkpoint.dtypes import F64
from .changes import Change
from .lycoris import Hadamard, Kronecker
from .names import ORIGINAL
from .placed import Placed
from .products import Factor, LowRank, Product, Replaced

SPARE = 8  # roundings beside those of the sums: of factors, scales, differences, and of what is written
Read = Callable[[Factor], Tensor]


def reference(placed: Placed) -> tuple[Tensor, Tensor]:
    """(a tensor of the original layout with what adapters add to it, in float64; by how much float32 may differ).

    Example:
        >>> from types import SimpleNamespace as Of
        >>> import numpy as np
        >>> from converter.lora.products import Held
        >>> lora = Change(LowRank(Held(np.ones((1, 2))), Held(np.ones((2, 1)))), scale=0.5)
        >>> weight = Of(dtype=F64, shape=(2, 2), numpy=lambda: np.zeros((2, 2)))
        >>> reference(Placed(None, [weight], ORIGINAL, [(1.0, ORIGINAL, [lora])]))[0].tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    weight = _read(placed.held[0])
    unit = 2.0**-53 if placed.held[0].dtype == F64 else 2.0**-24
    total, doubt, size = weight.clone(), torch.zeros_like(weight), weight.abs()
    for strength, layout, changes in placed.changes:
        if layout == ORIGINAL:
            parts = [weight]
        else:
            parts = placed.move.operation.forward(weight, len(changes))
        none = torch.zeros_like
        pairs = [
            difference(change, part, strength, unit) if change else (none(part), none(part))
            for change, part in zip(changes, parts, strict=True)
        ]
        added, off = map(list, zip(*pairs, strict=True))
        if layout != ORIGINAL:
            added, off = ([placed.move.operation.inverse(each)] for each in (added, off))
        total += added[0]
        size += added[0].abs()
        doubt += off[0]
    return total, doubt + gamma(SPARE + len(placed.changes), unit) * size


def gamma(count: int, unit: float) -> float:
    """By how much a product of so many roundings may be off 1."""
    return count * unit / (1 - count * unit)


def half_step(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Half of the distance between numbers of a dtype at values >= 0: by so much rounding may change them.

    >>> half_step(torch.tensor([1.0, 3.0, 0.0]), torch.float16).tolist()
    [0.00048828125, 0.0009765625, 2.9802322387695312e-08]
    """
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(value.clamp(min=info.smallest_normal))
    return torch.exp2(exponent.double()) * (info.eps / 4)


def difference(change: Change, weight: Tensor, strength: float, unit: float) -> tuple[Tensor, Tensor]:
    """(what a change adds to a tensor, exactly; by how much that may be off, computed with this unit roundoff)."""
    factor = strength * change.scale
    value, count = _product(change.product, _read)
    size, _ = _product(change.product, lambda factor: _read(factor).abs())
    added, size = factor * value.reshape(weight.shape), abs(factor) * size.reshape(weight.shape)
    if isinstance(change.product, Replaced):
        return added - strength * weight, gamma(SPARE, unit) * (size + abs(strength) * weight.abs())
    doubt = gamma(count + SPARE, unit) * size
    if change.magnitude is None:
        return added, doubt
    # V = W + s B A, and then m V / |V|: what V is off by shows in itself and in the norm.
    value, doubt = weight + added, doubt + gamma(SPARE, unit) * weight.abs()
    axes = [axis for axis in range(weight.dim()) if axis != change.axis]
    norm, off = (torch.linalg.vector_norm(each, dim=axes, keepdim=True) for each in (value, doubt))
    share = _read(change.magnitude).reshape(norm.shape) / norm
    lost = off / norm + gamma(prod(weight.shape[axis] for axis in axes) + SPARE, unit)
    doubt = share.abs() * (doubt + value.abs() * lost)
    value = share * value
    return value - weight, doubt + gamma(SPARE, unit) * (value.abs() + weight.abs())


def _read(factor: Factor) -> Tensor:
    return torch.tensor(factor.numpy(), dtype=torch.float64)


def _product(product: Product, read: Read) -> tuple[Tensor, int]:
    """(a product before it is scaled, of as many elements as its tensor; how many roundings each summand goes through).

    Args:
        read: gives a factor, or its magnitudes.
    """
    rank = product.rank or 0
    if isinstance(product, LowRank):
        up, down = read(product.up).flatten(1), read(product.down).flatten(1)
        if product.mid is None:
            return up @ down, rank
        return torch.einsum("om,mn...,ni->oi...", up, read(product.mid), down), 2 * rank
    if isinstance(product, Hadamard):
        one, two = (
            _factored(*each, read)
            for each in ((product.w1_a, product.w1_b, product.t1), (product.w2_a, product.w2_b, product.t2))
        )
        return one * two, 4 * rank
    if isinstance(product, Kronecker):
        one = read(product.w1) if product.w1 else _factored(product.w1_a, product.w1_b, None, read)
        two = read(product.w2) if product.w2 else _factored(product.w2_a, product.w2_b, product.t2, read)
        one = one.reshape(*one.shape, *[1] * (two.dim() - one.dim()))
        inner = [factor.shape[0] for factor in (product.w1_b, product.w2_b) if factor]
        return torch.kron(one, two), 2 * sum(inner)
    (whole,) = product.factors.values()
    return read(whole), 0


def _factored(a: Factor | None, b: Factor | None, core: Factor | None, read: Read) -> Tensor:
    """A matrix, or the weight of a convolution, out of its factors."""
    assert a is not None
    assert b is not None
    if core is None:
        return (read(a).flatten(1) @ read(b).flatten(1)).reshape(a.shape[0], *b.shape[1:])
    return torch.einsum("ij...,ip,jr->pr...", read(core), read(a), read(b)).contiguous()
