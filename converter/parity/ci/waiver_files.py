"""Waivers in TOML, as a team reviews them:

[[waiver]]
case = "t999"                            # exactly this case; "t999 / epsilon" for one part of its output
statistic = "float32 relative L2"
bound = 3.4                              # in the report's own unit: times the noise floor, or times the limit
reason = "fused attention of the new kernel, see the review of 12 May"
expires = 2027-01-31                     # the last day on which it holds, at most a year ahead
checkpoint = "9f86d0...0a08"             # optional: SHA-256 of the only original that it is for
"""

from __future__ import annotations

import os
import re
from datetime import date
from typing import Any

from ...errors import printable
from ..waivers import MOST, WAIVABLE, Waiver, unit_of
from .tomlfile import Reader, accepting, read_toml, refusal, strict, tables, text

LONGEST = 366  # days


def load_waivers(path: str | os.PathLike[str], today: date | None = None) -> list[Waiver]:
    """The waivers of a TOML file that holds nothing else; `UsageError` for one that should not be granted."""
    content = read_toml(path)
    if other := [key for key in content if key != "waiver"]:
        raise refusal(path, printable(other[0]), "unknown; a file of waivers holds [[waiver]] tables only")
    return parse_waivers(path, content, today)


def parse_waivers(path: str | os.PathLike[str], content: dict[str, Any], today: date | None = None) -> list[Waiver]:
    """The waivers among the content of a TOML file."""
    today, waivers, seen = today or date.today(), list[Waiver](), set[tuple[str, str, str]]()
    for where, table in tables(path, content, "waiver"):
        waiver = Waiver(**strict(path, where, table, _KNOWN, needed=_NEEDED))
        limit = unit_of(waiver.statistic)
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
        waivers.append(waiver)
    return waivers


_KNOWN: dict[str, Reader] = {
    "case": text,
    "statistic": accepting(
        f"one of the statistics that have a tolerance ({', '.join(WAIVABLE)})",
        lambda value: isinstance(value, str) and value in WAIVABLE,
    ),
    "bound": accepting(
        "a number above zero and below 1e9", lambda value: type(value) in (int, float) and 0 < value < 1e9
    ),
    "reason": text,
    "expires": accepting("a day, written 2027-01-31 without quotes", lambda value: type(value) is date),
    "checkpoint": accepting(
        "the 64 lower-case hexadecimal digits of a SHA-256",
        lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value),
    ),
}
_NEEDED = [key for key in _KNOWN if key != "checkpoint"]
