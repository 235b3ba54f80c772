"""What a wrong tensor holds: another tensor, by its name, or how many elements differ and by how much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import Lock
from typing import Any

import numpy as np

from ..checkpoint.cast import round_to, widen
from ..checkpoint.dtypes import DType
from ..comparison.elements import measure
from ..conversion.buffers import computed_on_demand, joined
from ..mapping import Move
from .sides import Sides

HEAD = 256  # bytes of a tensor that it is looked up by


def equal(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Whether tensors one after the other hold the same bytes as others, a piece of each at a time: both are still in
    the processor's cache. Where they do, each was read to its end, and so its checksum was verified."""
    lefts, rights = _pieces(one), _pieces(other)
    left, right = next(lefts, None), next(rights, None)
    while left is not None and right is not None:
        count = min(len(left), len(right))
        kind = np.uint8 if count % 8 else np.uint64
        if not np.array_equal(left[:count].view(kind), right[:count].view(kind)):
            return False
        left, right = left[count:], right[count:]
        left = left if len(left) else next(lefts, None)
        right = right if len(right) else next(rights, None)
    return left is right is None


def _pieces(tensors: Iterable[Any]) -> Iterator[Any]:
    for tensor in tensors:
        for _, piece in tensor.chunks() if hasattr(tensor, "chunks") else [(0, tensor.read())]:
            if len(piece):
                yield np.frombuffer(piece, np.uint8)  # until the next


def belonging(sides: Sides, move: Move) -> list[Any]:
    """What belongs under the keys of a move in the target's layout, rounded as was declared, unread."""
    source = sides.original[move.origin]
    parts: list[Any] = move.operation.forward(source, len(move.parts), joined)
    dtype = sides.dtype_of(move)
    return parts if dtype == source.dtype else [_rounded(part, dtype) for part in parts]


def _rounded(tensor: Any, dtype: DType) -> Any:
    """A tensor as torch rounds it, unread."""

    def pieces() -> Iterator[bytes]:
        return (round_to(widen(memoryview(piece), tensor.dtype), dtype) for piece in _pieces([tensor]))

    return computed_on_demand(tensor.key, dtype, tuple(tensor.shape), pieces)


class Owners:
    """Every converted key by the beginning of what belongs there: a large model is not read again for each finding."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._by_start: dict[tuple[str, tuple[int, ...], bytes], list[tuple[str, Any]]] = {}
        self._lock = Lock()

    def described(self, name: str, tensor: Any, right: Any) -> str:
        """What the tensor `name` holds: what belongs under another key, or so much else than what is right."""
        with self._lock:
            if not self._by_start:
                self._fill()
        numbers = measure(tensor, right)
        if numbers.norm_a or numbers.nonfinite_a:
            for other, part in self._by_start.get(_start(tensor), ()):
                if other != name and equal([part], [tensor]):
                    return f"holds what belongs in {other}"
        worst = f", by up to {numbers.max_abs:.3g}" if numbers.max_abs else ""
        infinite = f", {numbers.nonfinite_a} not finite" if numbers.nonfinite_a else ""
        zero = "" if numbers.norm_a or numbers.nonfinite_a else "; it is zero everywhere"
        return f"differs in {numbers.differing} of {numbers.elements} elements{worst}{infinite}{zero}"

    def _fill(self) -> None:
        for move in self._sides.plan.moves:
            for name, part in zip(move.parts, belonging(self._sides, move), strict=True):
                self._by_start.setdefault(_start(part), []).append((name, part))


def _start(tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
    head = b""
    for piece in _pieces([tensor]):
        head += bytes(piece[: HEAD - len(head)])
        if len(head) == HEAD:
            break
    return tensor.dtype.name, tuple(tensor.shape), head
