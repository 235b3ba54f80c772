"""Waivers: the only way to let a failed tolerance pass, and not a quiet one.

A waiver is for noise. What it can never let pass: NaN and infinity, a finding of the weight or config audit, a
fault not caught, or an error of more than ten times its limit, which no rounding has ever explained.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import accumulate

from ..errors import printable
from ..reports.limits import SCALES
from ..reports.report import Check
from .choices import FLOAT32, FLOAT64
from .gates import AGAINST, GATING

WAIVABLE = (
    *(f"{FLOAT64} {name}" for name in GATING),
    *(f"{FLOAT32} {name}{against}" for name in GATING for against in ("", AGAINST)),
)
MOST = 10.0  # times the limit


@dataclass(frozen=True)
class Waiver:
    """One reviewed exception. `bound` is in the unit of the report's words, `checkpoint` '' for any original."""

    case: str
    statistic: str
    bound: float
    reason: str
    expires: date
    checkpoint: str = ""

    @property
    def title(self) -> str:
        return f"waiver for {printable(self.case)}, {self.statistic}"

    def active(self, today: date) -> bool:
        return today <= self.expires


def apply(
    waivers: Sequence[Waiver], checks: Iterable[Check], today: date | None = None, checkpoint: str = ""
) -> list[str]:
    """Let the failed checks pass that a waiver is for, and say so; returns a line for every waiver.

    Args:
        waivers: the reviewed exceptions.
        checks: of the phase 'function'; `waived` of those that are let pass is set.
        today: the day on which they have to hold.
        checkpoint: SHA-256 of the original; a waiver for another one says nothing and does nothing.

    Example:
        >>> check = Check("t999 / epsilon", "float64 relative L2", 1.2e-7, 1e-7, False, "1.2 times the limit of 1e-07")
        >>> waiver = Waiver("t999", "float64 relative L2", 1.5, "known", date(2027, 1, 31))
        >>> apply([waiver], [check], date(2027, 1, 1))
        ['waived: t999 / epsilon, float64 relative L2: 1.2 times the limit of 1e-07: known (until 2027-01-31)']
        >>> check.waived
        'known (until 2027-01-31)'
    """
    today, lines = today or date.today(), []
    failed: dict[tuple[str, str], list[Check]] = defaultdict(list)  # by the case, or a part of it, and the statistic
    for check in (check for check in checks if check.passed is False):
        for case in accumulate(check.what.split(" / "), "{} / {}".format):
            failed[case, check.statistic].append(check)
    for waiver in waivers:
        if waiver.checkpoint not in ("", checkpoint):
            continue
        if not waiver.active(today):
            lines.append(f"{waiver.title}: expired on {waiver.expires}, not applied")
            continue
        covered = [check for check in failed[waiver.case, waiver.statistic] if not check.waived]
        for check in covered:
            what, times = f"{printable(check.what)}, {check.statistic}", _times(check)
            if times is not None and times <= waiver.bound:
                check.waived = f"{printable(waiver.reason)} (until {waiver.expires})"
                lines.append(f"waived: {what}: {check.words}: {check.waived}")
            else:
                size = "no noise" if times is None else f"{times:.4g}"
                lines.append(f"{waiver.title}: does not cover {what}: {size}, bound {waiver.bound:g}")
        if not covered:
            lines.append(f"{waiver.title}: not needed here")
    return lines


def unit_of(statistic: str) -> float:
    """The limit of a waivable statistic, in the unit of a bound: times the limit, or times the noise floor."""
    return SCALES[statistic.partition(" ")[0]].limit


def _times(check: Check) -> float | None:
    """What was measured, in the unit of the check's words; None for what no waiver is for."""
    value, limit = check.value, check.limit
    if check.statistic not in WAIVABLE or isinstance(value, str | bool | None) or isinstance(limit, str | bool | None):
        return None
    if not (math.isfinite(value) and math.isfinite(limit) and value > limit > 0):
        return None
    return value / limit * unit_of(check.statistic) if value / limit <= MOST else None
