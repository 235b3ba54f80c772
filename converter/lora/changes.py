"""What becomes of one tensor of a model: a product, scaled, and DoRA (arXiv 2402.09353) on either axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .products import Array, Factor, Product, Replaced

LARGEST = 1e9  # of an alpha, a strength or a scale


def is_number(value: Any) -> bool:
    """Whether a value may be an alpha or a strength: finite, and small enough for what it makes to be a weight."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


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

        >>> from converter.lora.products import Held, LowRank
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

    def result(self, weight: Array, strength: float = 1.0) -> Array:
        """The tensor with what is added to it; one that is replaced, to the last bit."""
        if isinstance(self.product, Replaced) and strength == 1:
            return self.product.matrix(weight.dtype).reshape(weight.shape)
        return weight + self.difference(weight, strength)

    def magnified(self, value: Array) -> Array:
        """DoRA's last step: each row (or column) of the norm that the magnitude says."""
        assert self.magnitude is not None
        axes = tuple(axis for axis in range(value.ndim) if axis != self.axis)
        norm = np.sqrt(np.sum(value * value, axis=axes, keepdims=True))
        if not norm.all():
            raise ZeroDivisionError("a row or column of norm 0, which DoRA cannot scale")
        return value * (np.asarray(self.magnitude.numpy(), value.dtype).reshape(norm.shape) / norm)
