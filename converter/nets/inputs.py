"""Fixed noise: the same numbers for every torch version, device and thread count, drawn on the CPU and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from .net import Values

SEED = 20231001
Array = np.ndarray[Any, np.dtype[Any]]


def noise(seed: int, *shape: int) -> Array:
    """N(0, 1) as float32 from a counter-based generator (Philox), which no earlier draw can shift.

    >>> noise(1, 2, 3).shape
    (2, 3)
    """
    return np.random.Generator(np.random.Philox(key=[SEED, seed])).standard_normal(shape, dtype=np.float32)


class Draws:
    """Noise without end: every array has a seed of its own, so that no two cases share numbers."""

    def __init__(self) -> None:
        self._seed = 0

    def draw(self, *shape: int) -> Array:
        self._seed += 1
        return noise(self._seed, *shape)


@dataclass(frozen=True)
class Case:
    """One set of inputs: name -> array, all with the batch as axis 0. `axes` says in words what it tries.

    The arrays are float32, or int64 where they count something (a class) and must not be rounded with the rest.
    """

    name: str
    arrays: Mapping[str, Array]
    axes: str = ""

    def tensors(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Values:
        """The same numbers in another dtype, rounded once, from float32; whole ones as they are."""
        import torch

        tensors = {name: torch.from_numpy(np.array(array)).to(device) for name, array in self.arrays.items()}
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}

    @property
    def sha256(self) -> str:
        """Of names, shapes and bytes."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name}:{array.dtype.str}:{array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def exact(values: Values) -> Values:
    """The same numbers in float64; whole ones as they are."""
    return {name: value.double() if value.is_floating_point() else value for name, value in values.items()}
