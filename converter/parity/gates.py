"""The tolerance: the original's own rounding noise, measured on the same inputs; nothing that a user could loosen.

Two gates. In float64 the two nets differ by little more than what both compute in float32 (the frequencies of
the timestep, diffusers' table of positions). In float32 the converted net may be no further from the truth, which is
the original in float64, than a small multiple of what the original itself is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from ..reports import limits
from ..reports.limits import IDENTICAL, SCALES
from ..reports.numbers import times
from ..reports.report import FLOOR_LIMIT, Check

MIN_FLOOR = 2.0**-26  # half a last place of float32, below which no float32 output can be asked to be
HALF_LIMIT = 1.25  # times the original's own error in half precision; reported
# In float64. Clean conversions are 1e-15 apart, or 1e-8 where only one side computes some part in float32.
LIMITS = {"relative L2": 1e-7, "max abs over RMS": 1e-6, "worst channel": 2e-7, "worst patch position": 2e-7}
# Of the float32 floor, in the same proportions: a larger one (TF32, a broken kernel) would widen its own tolerance.
CAPS = {"relative L2": 1e-5, "max abs over RMS": 1e-4, "worst channel": 2e-5, "worst patch position": 2e-5}
AGAINST = f"{limits.AGAINST}the original's"  # of a statistic: held against the original in the same precision
GATING = tuple(LIMITS)


SHOWN = {  # what people ask for besides, in words; none of it can tell right from wrong on its own
    "cosine": "{:.12f}",
    "SQNR in dB": "{:.1f} dB",
    "mean signed bias": "{:+.2g} of the RMS",
    "quantile 50 %": "{:.2g} of the RMS",
    "quantile 99 %": "{:.2g} of the RMS",
    "worst index": "{}",
}


@dataclass(frozen=True)
class Statistics:
    """How far a candidate is from a reference: what is `gated` and what is `shown`, by name.

    `nonfinite`: elements that are NaN or infinite in the candidate and in the reference; `scale`: RMS of the reference,
    0 where there is nothing to be relative to.
    """

    gated: dict[str, float]
    shown: dict[str, float | str]
    nonfinite: tuple[int, int] = (0, 0)
    scale: float = inf


def nonfinite(what: str, precision: str, count: tuple[int, int]) -> Check | None:
    """A failed check where the converted output is not finite and the original's is; only shown where neither is; None
    where both are."""
    converted, original = count
    if not converted and not original:
        return None
    words = f"{converted} elements are NaN or infinite, {original} in the original's output"
    passed = None if original else False
    return Check(what, f"{precision} non-finite", float(converted), 0.0, passed=passed, words=words)


def above_cap(floor: Statistics) -> str:
    """What of the original's own noise in float32 is more than rounding explains, in words; '' where nothing is."""
    for name, value in floor.gated.items():
        if not value <= CAPS[name]:
            return f"{value:.2g} ({name}), above the cap of {CAPS[name]:g}"
    return ""


def float64_check(what: str, value: float, name: str = "relative L2") -> Check:
    """The float64 gate of one statistic, of an output or of one stage by itself."""
    limit = LIMITS[name]
    words = f"{_times(value / limit)} the limit of {limit:g}" if value else IDENTICAL
    return Check(what, f"float64 {name}", value, limit, passed=value <= limit, words=words)


def float64_checks(what: str, statistics: Statistics) -> Iterator[Check]:
    """The float64 gate of one output."""
    return (float64_check(what, value, name) for name, value in statistics.gated.items())


def float32_checks(what: str, own: Statistics, converted: Statistics, between: Statistics) -> Iterator[Check]:
    """The float32 gate of one output: `converted` against the truth, and `between` it and the original, by the
    original's `own` noise."""
    for against, candidate in (("", converted), (AGAINST, between)):
        for name, value in candidate.gated.items():
            floor = max(own.gated[name], MIN_FLOOR)
            limit, ratio = FLOOR_LIMIT * floor, value / floor
            words = f"{_times(ratio)} the noise floor (limit {FLOOR_LIMIT:g})" if ratio < inf else "not finite"
            words = words if value else IDENTICAL
            yield Check(what, f"float32 {name}{against}", value, limit, passed=value <= limit, words=words)


def half_check(what: str, precision: str, own: Statistics, converted: Statistics) -> Check:
    """Half precision is reported and gates nothing: its own noise is as large as a gross fault."""
    name = "relative L2"
    floor, value = own.gated[name], converted.gated[name]
    ratio = value / floor if floor else inf
    verdict = "no worse" if ratio <= HALF_LIMIT else "WORSE"
    words = f"{ratio:.2f} times the original's own error of {floor:.2g} "
    words += f"({verdict} than {HALF_LIMIT:g} times it; reported)"
    return Check(what, f"{precision} {name}", value, HALF_LIMIT * floor, passed=None, words=words)


def shown(what: str, precision: str, statistics: Statistics) -> Iterator[Check]:
    """What is only shown."""
    for name, value in statistics.shown.items():
        yield Check(what, f"{precision} {name}", value, None, passed=None, words=SHOWN[name].format(value))


def smallest_passing(what: str, precision: str, checks: list[Check]) -> Check:
    """How much of its limit the largest of the checks uses: 1 is the limit itself."""
    numbers = [(c.value, c.limit) for c in checks if isinstance(c.value, float) and isinstance(c.limit, float)]
    used = max((value / limit if limit else inf for value, limit in numbers), default=inf)
    unit = SCALES[precision].limit
    words = f"{_times(used * unit)} the {'noise floor' if unit > 1 else 'limits'}" if used else IDENTICAL
    return Check(what, f"{precision} smallest passing tolerance", used * unit, None, passed=None, words=words)


def _times(ratio: float) -> str:
    """A multiple in words: '1.2 times', '530,000 times'."""
    return f"{times(ratio)} times" if ratio < inf else "infinitely many times"
