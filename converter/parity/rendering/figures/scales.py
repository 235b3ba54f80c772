"""From numbers to places: a linear and a logarithmic scale, with the ticks that a reader expects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, log10

from ..numbers import positive

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Tick:
    """A place on an axis; one without words is a minor one."""

    value: float
    words: str = ""


@dataclass(frozen=True)
class Linear:
    """Numbers from `low` to `high`, drawn from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, wanted: int = 5) -> list[Tick]:
        """At multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / wanted
        unit = 10.0 ** floor(log10(rough))
        step = next(unit * nice for nice in (1, 2, 5, 10) if unit * nice >= rough * 0.999)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [Tick(i * step, f"{i * step:.6g}") for i in range(first, last + 1)]


@dataclass(frozen=True)
class Log:
    """The same on a logarithmic scale; both ends are above zero, and what lies outside is drawn at the edge."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (log10(min(max(value, self.low), self.high)) - log10(self.low)) / (log10(self.high) - log10(self.low))
        return self.start + share * (self.stop - self.start)

    def ticks(self, room: float = 22) -> list[Tick]:
        """At powers of ten, as many with words as have room; at 2 and 5 too where there are few."""
        first, last = ceil(log10(self.low) - 1e-9), floor(log10(self.high) + 1e-9)
        decade = abs(self.stop - self.start) / (log10(self.high) - log10(self.low))
        every = max(1, ceil(room / decade))
        made = [Tick(10.0**e, power(e) if e % every == 0 else "") for e in range(first, last + 1)]
        if decade > 3 * room:
            between = (n * 10.0**e for e in range(first - 1, last + 1) for n in (2, 5))
            made += [Tick(value) for value in between if self.low <= value <= self.high]
        return made


def power(exponent: int) -> str:
    """10⁻⁷; 1 to 1000 as they are."""
    return str(10**exponent) if 0 <= exponent <= 3 else f"10{str(exponent).translate(SUPERSCRIPTS)}"


def log_range(values: Iterable[object], margin: float = 1.4) -> tuple[float, float] | None:
    """Whole decades around the positive numbers of many values; None without any.

    >>> log_range([5.1e-07, None, float("nan"), 0.0, 1.3e-06])
    (1e-07, 1e-05)
    """
    found = [value for raw in values if (value := positive(raw)) is not None]
    if not found:
        return None
    low = max(floor(log10(max(min(found) / margin, 1e-300))), -300)
    high = min(max(ceil(log10(min(max(found), 1e300) * margin)), low + 1), 300)
    return 10.0**low, 10.0**high
