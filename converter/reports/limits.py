"""What a check measured, against its limit: in which precision, what share of it, and as people read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isnan

from .numbers import broken, number, show, times
from .report import FLOOR_LIMIT, Check

AGAINST = " against "  # in a statistic that is held against the original in the same precision, and not in float64
IDENTICAL = "identical"


@dataclass(frozen=True)
class Scale:
    """What the numbers of a precision are multiples of: a `unit`. A check passes up to `limit`. `words`: what is read
    behind the number of the check that is closest to its limit."""

    limit: float
    unit: str
    words: str


SCALES = {
    "float32": Scale(
        FLOOR_LIMIT, "noise floor", f"the noise floor, the original's own rounding error (limit {FLOOR_LIMIT:g})"
    ),
    "float64": Scale(1.0, "limit", "largest difference, of {limit:g} allowed"),
}


def precision_of(check: Check) -> tuple[str, str]:
    """'float32 relative L2' is of float32, and a relative L2."""
    precision, _, statistic = check.statistic.partition(" ")
    return precision, statistic


def margin(check: Check) -> float | None:
    """What share of its limit a check uses up: above 1 it fails; None where the two are not numbers, or a distance is
    negative."""
    value, limit = number(check.value), number(check.limit)
    if value is None or limit is None or value < 0:
        return None
    if isnan(value) or isnan(limit):
        return inf
    return value / limit if limit > 0 else inf if value > 0 else 0.0


def closest(checks: Iterable[Check], precision: str) -> Check | None:
    """The check in a precision that uses most of its limit; None where nothing was measured."""
    measured = [check for check in checks if precision_of(check)[0] == precision and margin(check) is not None]
    return max(measured, key=lambda check: margin(check) or 0.0, default=None)


def multiple(check: Check | None, precision: str) -> float | None:
    """What a check measured, on the scale of its precision."""
    share = margin(check) if check else None
    return None if share is None else share * SCALES[precision].limit


def measured(check: Check | None, precision: str) -> str:
    """The same to be read: a multiple of the noise floor, which varies, or in float64 the difference itself.

    >>> measured(Check("t999", "float64 relative L2", 3.5e-16, 1e-7), "float64")
    '3.5e-16'
    >>> measured(Check("t999", "float32 relative L2", 3.5e-7, 1e-6), "float32")
    '1.05×'
    """
    share = multiple(check, precision)
    if check is None or share is None or broken(share):
        return show(share)
    return show(check.value) if precision == "float64" else f"{times(share)}×"


def identical(checks: Sequence[Check]) -> bool:
    """Whether outputs in one precision hold the same numbers, by the checks of it: those against the original's output
    in that precision where there are such, since of its output in float64 even the same one is some rounding away."""
    direct = [check for check in checks if AGAINST in check.statistic] or checks
    return bool(direct) and all(number(check.value) == 0 for check in direct)
