"""Numbers as people read them. A report read back from JSON spells what JSON lacks: 'nan', 'inf', '-inf'."""

from __future__ import annotations

import math
from typing import Any

SPELLED = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
UNKNOWN = "–"


def number(value: object) -> float | None:
    """A number, finite or not; None for anything else.

    >>> number("inf"), number(3), number("three"), number(True)
    (inf, 3.0, None, None)
    """
    if isinstance(value, str):
        return SPELLED.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def positive(value: object) -> float | None:
    """A finite number above zero, which is what a logarithmic scale can place; None for anything else."""
    parsed = number(value)
    return parsed if parsed is not None and 0 < parsed < math.inf else None


def broken(value: object) -> bool:
    """Whether a value is a number that is not finite: the thing that a picture must not leave out."""
    parsed = number(value)
    return parsed is not None and not math.isfinite(parsed)


def show(value: object) -> str:
    """A value for a table cell.

    >>> [show(v) for v in (5.13e-07, 0.0004, 0.25, 1152, float("nan"), None, "none", True)]
    ['5.13e-7', '4e-4', '0.25', '1152', 'NaN', '–', 'none', 'yes']
    """
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    parsed = number(value)
    if parsed is None:
        return str(value)
    if not math.isfinite(parsed):
        return "NaN" if math.isnan(parsed) else "∞" if parsed > 0 else "−∞"
    if parsed == 0 or 1e-3 <= abs(parsed) < 1e6:
        return f"{parsed:.0f}" if parsed == int(parsed) else f"{parsed:.4g}"
    digits, _, exponent = f"{parsed:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def times(ratio: float) -> str:
    """A multiple with the digits that matter.

    >>> [times(ratio) for ratio in (1.056, 0.0941, 0.1, 24_617, 53_000_000, 0)]
    ['1.06', '0.094', '0.1', '24,600', '5.3e7', '0']
    """
    if ratio and not 1e-3 <= abs(ratio) < 1e7:
        return show(ratio)
    if abs(ratio) >= 100:
        return f"{float(f'{ratio:.3g}'):,.0f}"
    return f"{ratio:.2f}" if ratio >= 1 else f"{ratio:.2g}"


def duration(value: object) -> str:
    """Seconds as people say them: '4.2 s', '3 min 20 s', '2 h 5 min'; '' where there are none."""
    total = number(value)
    if total is None or not 0 <= total < math.inf:
        return ""
    if total < 60:
        return f"{total:.2g} s" if total < 10 else f"{total:.0f} s"
    minutes, seconds = divmod(round(total), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def mapping(value: Any) -> dict[str, Any]:
    """What should be a dict, or an empty one: the parts of a report's detail are all optional."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """What should be a list, or an empty one."""
    return list(value) if isinstance(value, list | tuple) else []
