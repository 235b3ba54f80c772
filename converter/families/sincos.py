"""The fixed 2-D sin-cos positional table, and how much of it can be read back off a few of its elements.

arXiv 2310.00426 and 2403.04692 (positions scaled by the resolution); layout measured on the original nets:
a token at row h and column w holds [sin(w), cos(w), sin(h), cos(h)], a quarter of the hidden size each.
Positions are float32 (at scale 3 or 2.02 the quotient is rounded), angles, sines and cosines float64, and the result
is stored as float32: in the original's NumPy and in diffusers' torch alike, so that both have the same bits.

A stored table may have been rounded, or averaged, since: a merger saves in half precision and widens again, so that the
dtype says nothing of it; an average of models that averages their buffers as well rounds them once a step, so that
every element drifts. In both the scale is still there, in thousands of elements (`fit`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

ROUNDING = 1e-5  # of elements: above the last bits of float32 sines, far below any other table
# The largest difference that counts as a drift. An average in float32 ends at about 6e-8 / (1 - decay): 6e-4 at 0.9999
# and 6e-3 at 0.99999. What is further off was trained, or is another table.
DRIFT = 1e-2
# dtype -> how far rounding to it moves a value of at most 1: half of its last place; bfloat16 also by way of float16.
ROUNDINGS = {"float16": 2.5e-4, "bfloat16": 2.2e-3}
DIGITS = range(7)  # decimals that a scale may have
# A scale explains a drifted table if its residual is at most this many times the best fit's; its neighbours' must be
# more than this many times the bound.
MARGIN = 4.0
FINE = 0.003  # of a scale: a round one must be distinguishable from others this close
Rows = Callable[[], Iterable[tuple[int, Any]]]  # gives (first token, floats [tokens, hidden]), first to last


@dataclass(frozen=True, slots=True)
class SinCosTable:
    """The table of a square grid: `side` x `side` tokens of `hidden` channels, positions divided by `scale`."""

    hidden: int
    side: int
    scale: float

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, self.side**2, self.hidden)

    def element(self, token: int, channel: int) -> float:
        """One element, in float64 throughout: far from the origin, where positions are float32, the stored one is off.

        >>> SinCosTable(8, 2, 1.0).element(3, 2)  # the cosine of column 1
        0.5403023058681398
        """
        row, column = divmod(token, self.side)
        quarter = self.hidden // 4
        part, j = divmod(channel, quarter)
        angle = (row if part > 1 else column) / self.scale / 10000 ** (j / quarter)
        return (math.cos if part % 2 else math.sin)(angle)

    def axis(self) -> Any:
        """(side, hidden / 2) float32: [sin, cos] of the positions on one axis."""
        import numpy as np

        # float32 before the first product, float64 inside, float32 at the end: their bits are the specification.
        positions = (np.arange(self.side, dtype=np.float32) / np.float32(self.scale)).astype(np.float64)
        frequencies = 1.0 / 10000 ** (np.arange(self.hidden // 4, dtype=np.float64) / (self.hidden / 4.0))
        angles = np.outer(positions, frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    def rows(self, start: int, stop: int, axis: Any) -> Any:
        """Tokens `start` to `stop`, (stop - start, hidden) float32, from `axis()`: never the whole table in memory."""
        import numpy as np

        table = np.empty((stop - start, self.hidden), np.float32)
        half, row = self.hidden // 2, start // self.side
        while (first := max(row * self.side, start)) < stop:  # one row of the grid after the other
            last = min((row + 1) * self.side, stop)
            table[first - start : last - start, :half] = axis[first - row * self.side : last - row * self.side]
            table[first - start : last - start, half:] = axis[row]
            row += 1
        return table


def scale_of(sine: float, cosine: float, tolerance: float) -> float | None:
    """The scale of a table whose token 1 has these values at frequency 1: its angle is 1 / scale.

    Args:
        sine, cosine: `pos_embed[0, 1, 0]` and `pos_embed[0, 1, hidden / 4]`.
        tolerance: the rounding of the stored elements.

    Returns: the scale with the fewest decimals that explains both, None where none does (no sin-cos table).

    >>> import math
    >>> scale_of(math.sin(0.5), math.cos(0.5), 1e-7)
    2.0
    """
    angle = math.atan2(sine, cosine)
    if not tolerance < angle < math.inf:
        return None  # also where the sine is 0 but for rounding, which any large scale would explain
    for digits in range(7):
        scale = round(1 / angle, digits)
        if scale > 0 and max(abs(math.sin(1 / scale) - sine), abs(math.cos(1 / scale) - cosine)) <= tolerance:
            return scale
    return None


@dataclass(frozen=True, slots=True)
class Fit:
    """How close a table is to a sin-cos table."""

    scale: float | None  # beyond doubt, None for none
    nearest: float
    difference: float  # the largest
    rounded: str = ""  # the dtype that all values were rounded to, '' for none


def fit(rows: Rows, hidden: int, side: int) -> Fit | None:
    """Fit the scale over the whole of a table of `side` x `side` tokens; None where nothing can be (NaN, all zero).

    It is read twice, a run of tokens at a time. The time is linear in its elements.
    """
    import numpy as np

    quarter = hidden // 4
    angles = np.outer(np.arange(side), 1.0 / 10000 ** (np.arange(quarter) / quarter))  # at scale 1
    with np.errstate(all="ignore"):  # what is not finite is told by the result
        mean, numbers_of = _mean_axis(rows, hidden, side)
        if not np.isfinite(mean).all():
            return None
        phasors = mean[:, quarter:] + 1j * mean[:, :quarter]
        best = _frequency(phasors, angles)
        if best is None:
            return None

        def apart(scale: float) -> float:
            """The largest difference of the mean rows and columns from the table of a scale."""
            there = angles / scale
            return float(max(np.abs(phasors.real - np.cos(there)).max(), np.abs(phasors.imag - np.sin(there)).max()))

        scale = _certain_scale(apart, 1 / best, numbers_of)
        nearest = float(f"{1 / best:.4g}") if scale is None else scale
        table, difference = SinCosTable(hidden, side, nearest), 0.0
        axis = table.axis()
        for first, values in rows():
            off = np.abs(values - table.rows(first, first + len(values), axis).astype(np.float64))
            difference = max(difference, float(off.max()))
    rounded = next((name for name, most in ROUNDINGS.items() if name in numbers_of and difference <= most), "")
    return Fit(scale if difference <= DRIFT else None, nearest, difference, rounded)


def _certain_scale(apart: Callable[[float], float], best: float, numbers_of: set[str]) -> float | None:
    """The scale with the fewest decimals that explains the table, if its neighbours are far from doing so: so far that
    no scale of more decimals between them, rounded, would have explained it.

    A rounding moves no element further than its bound. A drift has no known bound: the best fit is not trusted to
    leave only a small part of it. A round number explains much, so others close to it must not.
    """
    least = apart(best)
    # The best fit is by the sum of squares, and so may leave a little more somewhere than the true scale does.
    bounds = [bound for name, bound in ROUNDINGS.items() if name in numbers_of and least <= 1.1 * bound]
    bound = max(ROUNDING, min(bounds, default=MARGIN * least))
    for digits in DIGITS:
        scale = round(best, digits)
        step = min(10.0**-digits, FINE * scale)
        if scale > 0 and apart(scale) <= bound:
            neighbours = [apart(other) for other in (scale - step, scale + step) if other > 0]
            return scale if min(neighbours) > MARGIN * bound else None
    return None


def _mean_axis(rows: Rows, hidden: int, side: int) -> tuple[Any, set[str]]:
    """((side, hidden / 2): the mean of a table's two axes, NaN where it is not whole; the narrower dtypes that all of
    its values are numbers of)."""
    import numpy as np

    half, tokens, numbers_of = 2 * (hidden // 4), 0, set(ROUNDINGS)
    axis = np.zeros((side, half))
    for first, values in rows():
        if values.shape[1] != 2 * half or first + len(values) > side**2:
            return axis * np.nan, numbers_of
        numbers_of = {name for name in numbers_of if _are_numbers(values, name)}
        wide = values.astype(np.float64)
        tokens += len(wide)
        while len(wide):
            row, column = divmod(first, side)
            part = wide[: side - column]
            axis[column : column + len(part)] += part[:, :half]
            axis[row] += part[:, half:].sum(axis=0)
            first, wide = first + len(part), wide[len(part) :]
    return axis / (2 * side if tokens == side**2 else np.nan), numbers_of


def _frequency(phasors: Any, angles: Any) -> float | None:
    """The best 1 / scale, found in slow channels first, where no angle goes round, and refined in fast ones. `phasors`
    are cosine + i sine, (side, quarter)."""
    import numpy as np

    frequency, slow = 0.0, angles[1][angles[1] <= 0.1]
    reach = float(slow[0] if len(slow) else angles[1, -1])
    while True:
        used = (angles > 0) & (angles <= reach)
        t, seen = angles[used], phasors[used]
        weight = float((t * t * np.abs(seen)).sum())
        if not 0 < weight < math.inf:
            return None
        for _ in range(2):
            frequency += float((t * np.abs(seen) * np.angle(seen * np.exp(-1j * frequency * t))).sum()) / weight
        if reach >= angles.max():
            return frequency if 1e-6 < frequency < 1e6 else None
        reach *= 2


def _are_numbers(values: Any, dtype: str) -> bool:
    """Whether all of these floats are numbers of a narrower dtype."""
    import numpy as np

    narrow = values.astype(np.float32)
    if dtype == "bfloat16":
        same = not (narrow.view(np.uint32) & 0xFFFF).any()
    else:
        same = bool((narrow == narrow.astype(np.float16)).all())
    return same and bool((narrow == values).all())
