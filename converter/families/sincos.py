"""The fixed 2-D sin-cos positional table, and how much of it can be read back off a few of its elements.

arXiv 2310.00426 and 2403.04692 (positions scaled by the resolution); layout measured on the original nets:
a token at row h and column w holds [sin(w), cos(w), sin(h), cos(h)], a quarter of the hidden size each.
Positions are float32 (at scale 3 or 2.02 the quotient is rounded), angles, sines and cosines float64, and the result
is stored as float32: in the original's NumPy and in diffusers' torch alike, so that both have the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

ROUNDING = 1e-5  # of elements: above the last bits of float32 sines, far below any other table
# The largest difference that counts as a drift. An average in float32 ends at about 6e-8 / (1 - decay): 6e-4 at 0.9999
# and 6e-3 at 0.99999. What is further off was trained, or is another table.
DRIFT = 1e-2


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
