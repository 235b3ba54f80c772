"""What stands in the place of a tensor that is not the right one: another one, by its name, or how much differs."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint.cast import float64, round_to, widen
from ..checkpoint.dtypes import DType
from ..conversion.buffers import joined

if TYPE_CHECKING:
    from .compared import Sides

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
HEAD = 64  # elements of a vector that it is looked up by; of anything larger, its first row


def equal(one: Bytes, other: Bytes) -> bool:
    """Equality of bytes, eight at a time where that goes."""
    if len(one) != len(other):
        return False
    kind = np.uint64 if len(one) % 8 == 0 and one.ctypes.data % 8 == other.ctypes.data % 8 == 0 else np.uint8
    return bool((one.view(kind) == other.view(kind)).all())


def kept_as(data: Bytes | bytes, source: DType, target: DType) -> Bytes:
    """The bytes that elements of one dtype become in another, as torch rounds; in the same, the bytes themselves."""
    return np.frombuffer(data if source == target else round_to(widen(bytes(data), source), target), np.uint8)


class Places:
    """Every converted key by the beginning of what belongs there: a large model is not read over for each finding."""

    def __init__(self) -> None:
        self._of: Any = None
        self._known: dict[tuple[str, tuple[int, ...], bytes], list[tuple[str, Any]]] = {}
        self._lock = Lock()

    def holding(self, sides: Sides, name: str, have: Bytes) -> str:
        """Which other key these bytes belong under; '' for none."""
        held = sides.converted[name]
        with self._lock:
            if self._of is not sides.original:
                self._of, self._known = sides.original, {}
                for other, part in _parts(sides):
                    dtype = held.dtype if sides.cast else part.dtype
                    start = bytes(kept_as(_head(part).read(), part.dtype, dtype))
                    self._known.setdefault((dtype.name, tuple(part.shape), start), []).append((other, part))
        count = len(have) if not held.shape else len(have) // held.shape[0] * (HEAD if len(held.shape) == 1 else 1)
        for other, part in self._known.get((held.dtype.name, tuple(held.shape), bytes(have[:count])), ()):
            if other != name and equal(kept_as(part.read(), part.dtype, held.dtype), have):
                return other
        return ""


def _head(tensor: Any) -> Any:
    return tensor[: HEAD if len(tensor.shape) == 1 else 1] if tensor.shape else tensor


def _parts(sides: Sides) -> Iterator[tuple[str, Any]]:
    """Every converted key with the rows of the original that belong there."""
    for move in sides.plan.moves:
        yield from zip(
            move.parts, move.operation.forward(sides.original[move.origin], len(move.parts), joined), strict=True
        )


def describe(sides: Sides, name: str, right: Bytes) -> str:
    """What is in the place of the right bytes: those of another tensor, or how many elements of how much else."""
    held = sides.converted[name]
    have = np.frombuffer(held.read(), np.uint8)
    if have.any() and (other := sides.places.holding(sides, name, have)):
        return f"holds what belongs in {other}"
    theirs, ours = (float64(data.tobytes(), held.dtype) for data in (have, right))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(theirs - ours)
    item = held.dtype.itemsize
    bits = (have.reshape(-1, item) != right.reshape(-1, item)).any(axis=1)
    zero = "" if have.any() else "; it is zero everywhere"
    bad = f", {int((~np.isfinite(theirs)).sum())} not finite" if not np.isfinite(theirs).all() else ""
    worst = f", by up to {float(np.nanmax(apart)):.3g}" if (apart > 0).any() else ""
    return f"differs in {int(bits.sum())} of {bits.size} elements{worst}{bad}{zero}"
