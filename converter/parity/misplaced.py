"""What stands in the place of the right bytes: another tensor, by its name, or how many elements of how much else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any

import numpy as np

from ..checkpoint.cast import float64
from ..checkpoint.dtypes import DType
from ..conversion.buffers import joined
from ..mapping import Plan
from .read_buffers import Bytes, as_dtype, equal

HEAD = 64  # elements of a vector that it is looked up by; of anything larger, its first row


class TensorIndex:
    """Every converted key by the beginning of what belongs there: a large model is not read again for each finding.

    Args:
        plan, original: what belongs where, and the tensors that it is made of.
        dtype: what the conversion rounded to; None for nothing.
    """

    def __init__(self, plan: Plan, original: Mapping[str, Any], dtype: DType | None) -> None:
        self._plan, self._original, self._dtype = plan, original, dtype
        self._by_start: dict[tuple[str, tuple[int, ...], bytes], list[tuple[str, Any]]] = {}
        self._lock = Lock()

    def owner(self, name: str, tensor: Any, data: Bytes) -> str:
        """Under which other key the bytes of the tensor `name` belong; '' for none."""
        shape = tuple(tensor.shape)
        with self._lock:
            if not self._by_start:
                self._fill()
        count = len(data) if not shape else len(data) // shape[0] * (HEAD if len(shape) == 1 else 1)
        for other, part in self._by_start.get((tensor.dtype.name, shape, bytes(data[:count])), ()):
            if other != name and equal(as_dtype(part.read(), part.dtype, tensor.dtype), data):
                return other
        return ""

    def _fill(self) -> None:
        for name, part in self._parts():
            head = part[: HEAD if len(part.shape) == 1 else 1] if part.shape else part
            dtype = self._dtype or part.dtype
            start = bytes(as_dtype(head.read(), part.dtype, dtype))
            self._by_start.setdefault((dtype.name, tuple(part.shape), start), []).append((name, part))

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """Every converted key with the rows of the original that belong there."""
        for move in self._plan.moves:
            parts = move.operation.forward(self._original[move.origin], len(move.parts), joined)
            yield from zip(move.parts, parts, strict=True)


def difference_in_words(stored: Bytes, right: Bytes, dtype: DType) -> str:
    """How many elements differ, by how much, and whether they are finite or all zero.

    >>> from converter.checkpoint.dtypes import F32
    >>> one, other = (np.frombuffer(np.float32([1, 2, x]).tobytes(), np.uint8) for x in (3, 3.5))
    >>> difference_in_words(one, other, F32)
    'differs in 1 of 3 elements, by up to 0.5'
    """
    values, wanted = (float64(data.tobytes(), dtype) for data in (stored, right))
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.abs(values - wanted)
    wrong = (stored.reshape(-1, dtype.itemsize) != right.reshape(-1, dtype.itemsize)).any(axis=1)
    worst = f", by up to {float(np.nanmax(errors)):.3g}" if (errors > 0).any() else ""
    infinite = f", {int((~np.isfinite(values)).sum())} not finite" if not np.isfinite(values).all() else ""
    zero = "" if stored.any() else "; it is zero everywhere"
    return f"differs in {int(wrong.sum())} of {wrong.size} elements{worst}{infinite}{zero}"
