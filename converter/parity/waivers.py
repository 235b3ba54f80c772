"""Waivers: the only way to let a failed tolerance pass, and not a quiet one.

    [[waiver]]
    case = "t999"                            # exactly this case; "t999 / epsilon" for one part of its output
    statistic = "float32 relative L2"
    bound = 3.4                              # in the report's own unit: times the noise floor, or times the limit
    reason = "fused attention of the new kernel, see the review of 12 May"
    expires = 2027-01-31                     # the last day on which it holds, at most a year ahead
    checkpoint = "9f86d0...0a08"             # optional: SHA-256 of the only original that it is for

A waiver is made for noise. What it can never let pass: NaN and infinity, a finding of the weight or config audit, a
mutant that survives, or an error of more than ten times its limit, which no rounding has ever explained.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from ..errors import printable
from ..reports.report import Check
from .choices import FLOAT32, FLOAT64
from .gates import AGAINST, FLOOR_LIMIT, GATING
from .tomlfile import Reader, read_toml, refusal, strict, tables, text

PRECISIONS = {FLOAT64: 1.0, FLOAT32: FLOOR_LIMIT}  # the limit of each, in the unit that its words have
WAIVABLE = tuple(
    f"{precision} {name}{against}"
    for precision, againsts in ((FLOAT64, ("",)), (FLOAT32, ("", AGAINST)))
    for name in GATING
    for against in againsts
)
MOST = 10.0  # times the limit
LONGEST = 366  # days


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


def load_waivers(path: str | os.PathLike[str], today: date | None = None) -> list[Waiver]:
    """The waivers of a TOML file that holds nothing else; `UsageError` for one that should not be granted."""
    content = read_toml(path)
    if other := [key for key in content if key != "waiver"]:
        raise refusal(path, printable(other[0]), "unknown; a file of waivers holds [[waiver]] tables only")
    return parse_waivers(path, content, today)


def parse_waivers(path: str | os.PathLike[str], content: dict[str, Any], today: date | None = None) -> list[Waiver]:
    """The waivers among the content of a TOML file."""
    today, made, seen = today or date.today(), list[Waiver](), set[tuple[str, str, str]]()
    for where, table in tables(path, content, "waiver"):
        waiver = Waiver(**strict(path, where, table, _KNOWN, ("case", "statistic", "bound", "reason", "expires")))
        limit = _unit(waiver.statistic)
        if not limit < waiver.bound <= MOST * limit:
            unit = "the noise floor" if limit > 1 else "the limit"
            rule = f"more than {limit:g} and at most {MOST * limit:g} times {unit}, not {waiver.bound:g}"
            raise refusal(path, where, f"bound: {rule}")
        if (waiver.expires - today).days > LONGEST:
            raise refusal(path, where, f"expires: at most a year ahead, not {waiver.expires}: then look at it again")
        target = waiver.case, waiver.statistic, waiver.checkpoint
        if target in seen:
            raise refusal(path, where, "the same case, statistic and checkpoint as a waiver before it")
        seen.add(target)
        made.append(waiver)
    return made


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
    today, lines, failed = today or date.today(), [], _failed(checks)
    for waiver in waivers:
        if waiver.checkpoint not in ("", checkpoint):
            continue
        if not waiver.active(today):
            lines.append(f"{waiver.title}: expired on {waiver.expires}, not applied")
            continue
        mine = [check for check in failed.get((waiver.case, waiver.statistic), ()) if not check.waived]
        for check in mine:
            what, size = f"{printable(check.what)}, {check.statistic}", _times(check)
            if size is not None and size <= waiver.bound:
                check.waived = f"{printable(waiver.reason)} (until {waiver.expires})"
                lines.append(f"waived: {what}: {check.words}: {check.waived}")
            else:
                shown = "no noise" if size is None else f"{size:.4g}"
                lines.append(f"{waiver.title}: does not cover {what}: {shown}, bound {waiver.bound:g}")
        if not mine:
            lines.append(f"{waiver.title}: not needed here")
    return lines


def _failed(checks: Iterable[Check]) -> dict[tuple[str, str], list[Check]]:
    """The checks that failed, by what a waiver for them may name: the case, or a part of it, and the statistic."""
    made: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        if check.passed is False:
            parts = check.what.split(" / ")
            for case in {" / ".join(parts[:count]) for count in range(1, len(parts) + 1)}:
                made.setdefault((case, check.statistic), []).append(check)
    return made


def _times(check: Check) -> float | None:
    """What was measured, in the unit of the check's words; None for what no waiver is for."""
    value, limit = check.value, check.limit
    if check.statistic not in WAIVABLE or isinstance(value, str | bool | None) or isinstance(limit, str | bool | None):
        return None
    if not (math.isfinite(value) and math.isfinite(limit) and value > limit > 0):
        return None
    times = value / limit
    return times * _unit(check.statistic) if times <= MOST else None


def _unit(statistic: str) -> float:
    return PRECISIONS[statistic.partition(" ")[0]]


def _statistic(value: Any) -> str:
    if not isinstance(value, str) or value not in WAIVABLE:
        raise ValueError(f"one of the statistics that have a tolerance ({', '.join(WAIVABLE)})")
    return value


def _bound(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ValueError("a number above zero, and no huge one")
    return float(value)


def _day(value: Any) -> date:
    if not isinstance(value, date) or isinstance(value, datetime):
        raise ValueError("a day, written 2027-01-31 without quotes")
    return value


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("the 64 lower-case hexadecimal digits of a SHA-256")
    return value


_KNOWN: dict[str, Reader] = {
    "case": text,
    "statistic": _statistic,
    "bound": _bound,
    "reason": text,
    "expires": _day,
    "checkpoint": _sha256,
}
