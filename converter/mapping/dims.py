"""Shape patterns such as `[3D D]`: they check every tensor, and reading them backwards gives the hyper-parameters.

A dimension is a number, a symbol, or a multiple or fraction of a symbol: `256`, `D`, `3D`, `D/3`. A pattern
states a weight's shape; a bias has its first dimension.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

_DIM = re.compile(r"([1-9]\d*)?([A-Za-z]\w*)?(?:/([1-9]\d*))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Dim:
    """`factor * symbol`, or just `factor` where `symbol` is empty."""

    symbol: str
    factor: Fraction

    @classmethod
    def parse(cls, text: str) -> Dim:
        match = _DIM.fullmatch(text)
        if not text or not match or not (match[1] or match[2]) or (match[3] and not match[2]):
            raise ValueError(f"{text!r} is not a dimension (256, D, 3D or D/3)")
        return cls(match[2] or "", Fraction(int(match[1] or 1), int(match[3] or 1)))

    def __str__(self) -> str:
        top, bottom = self.factor.as_integer_ratio()
        if not self.symbol:
            return str(top)
        return f"{top if top != 1 else ''}{self.symbol}{f'/{bottom}' if bottom != 1 else ''}"

    def value(self, dims: dict[str, int]) -> int | None:
        """The size under these bindings; None where it is not known or not whole."""
        if self.symbol and self.symbol not in dims:
            return None
        size = self.factor * (dims[self.symbol] if self.symbol else 1)
        return int(size) if size.denominator == 1 else None

    def solve(self, size: int) -> int | None:
        """What the symbol must be for this size."""
        value = size / self.factor
        return int(value) if value.denominator == 1 else None


Pattern = tuple[Dim, ...]


def parse_pattern(text: str) -> Pattern:
    """`"3D D"` as dimensions."""
    return tuple(Dim.parse(part) for part in text.split())


def bind(shapes: Iterable[tuple[str, Pattern, tuple[int, ...]]]) -> tuple[dict[str, int], dict[str, str]]:
    """(symbol -> size, symbol -> evidence) by majority over (key, pattern, shape).

    A majority, so that one tensor of a wrong shape is reported as wrong and does not make all the others so.
    """
    votes: dict[str, Counter[int]] = {}
    first: dict[tuple[str, int], str] = {}
    for key, pattern, shape in shapes:
        if len(pattern) != len(shape):
            continue
        for dim, size in zip(pattern, shape, strict=True):
            value = dim.solve(size) if dim.symbol else None
            if value:  # an empty tensor shows nothing
                votes.setdefault(dim.symbol, Counter())[value] += 1
                first.setdefault((dim.symbol, value), f"{key} {list(shape)}")
    dims = {symbol: counter.most_common(1)[0][0] for symbol, counter in votes.items()}
    return dims, {symbol: first[symbol, value] for symbol, value in dims.items()}


def mismatch(pattern: Pattern, shape: tuple[int, ...], dims: dict[str, int]) -> str:
    """What the pattern asks for, where the shape does not fit it; '' where it does."""
    wanted = [dim.value(dims) for dim in pattern]
    if list(shape) == wanted:
        return ""
    return f"[{', '.join('?' if w is None else str(w) for w in wanted)}] (table: [{' '.join(map(str, pattern))}])"
