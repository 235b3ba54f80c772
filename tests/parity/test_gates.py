"""The limits: exact, floored, capped; and what is said."""

from __future__ import annotations

from math import inf, nan, nextafter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.parity import gates
from converter.parity.gates import GATING, LIMITS, MIN_FLOOR, Statistics
from converter.reports.report import FLOOR_LIMIT, Check

NOTHING = Statistics(dict.fromkeys(GATING, 0.0), {})
REST = {"mean signed bias": -0.5, "worst index": "[0, 0, 0, 0]: 1 for 1"}
each = pytest.mark.parametrize("name", GATING)


def errors(value: float, only: str | None = None) -> Statistics:
    """Every gating statistic of this size, or one of them."""
    return Statistics(NOTHING.gated | dict.fromkeys([only] if only else GATING, value), {})


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.statistic: check for check in checks}


def test_the_published_numbers() -> None:
    """What the README and the reports say of the tolerance. To loosen one is a decision, not a fix."""
    assert LIMITS["relative L2"] == 1e-7
    assert (gates.FLOOR_LIMIT, gates.CAPS["relative L2"], gates.HALF_LIMIT) == (3.0, 1e-5, 1.25)
    assert set(LIMITS) == set(GATING) == set(gates.CAPS)


@each
def test_the_floor_is_capped_in_every_statistic(name: str) -> None:
    """One bad pixel of the original's own would else excuse any bad pixel of the converted net's."""
    cap = gates.CAPS[name]
    assert gates.above_cap(errors(cap, name)) == ""
    for value in (nextafter(cap, 1), inf, nan):
        assert gates.above_cap(errors(value, name)) == f"{value:.2g} ({name}), above the cap of {cap:g}"


# float64.


@each
def test_float64_at_the_limit(name: str) -> None:
    for value, right in ((LIMITS[name], True), (nextafter(LIMITS[name], 1), False), (inf, False), (nan, False)):
        checks = by_name(list(gates.float64_checks("t999 / epsilon", errors(value, name))))
        assert len(checks) == len(GATING)
        assert [c.statistic for c in checks.values() if not c.passed] == ([] if right else [f"float64 {name}"])
        assert checks[f"float64 {name}"].limit == LIMITS[name]


def test_float64_words() -> None:
    made = by_name(list(gates.float64_checks("t999 / epsilon", errors(2.5e-7))))["float64 relative L2"]
    assert made.what == "t999 / epsilon"
    assert made.words == "2.50 times the limit of 1e-07"
    assert next(gates.float64_checks("a", errors(inf))).words.startswith("infinitely many times")


@pytest.mark.parametrize(
    ("times", "words"),
    [(0.1234, "0.12"), (0.1, "0.1"), (9.96, "9.96"), (530_214, "530,000"), (123.4, "123"), (2.5e9, "2.5e9")],
)
def test_multiples_in_words(times: float, words: str) -> None:
    made = next(gates.float64_checks("a", errors(times * LIMITS["relative L2"], "relative L2")))
    assert made.words == f"{words} times the limit of 1e-07"


def test_a_lone_stage() -> None:
    assert gates.float64_check("native / patch embedding", 1e-7).passed
    wrong = gates.float64_check("native / patch embedding", nextafter(1e-7, 1))
    assert wrong.passed is False
    assert gates.float64_check("native / patch embedding", inf).passed is False
    assert "the limit of 1e-07" in wrong.words


# float32.


def floor(own: float, converted: Statistics, between: Statistics = NOTHING) -> list[Check]:
    return list(gates.float32_checks("a", errors(own), converted, between))


@each
@given(own=st.floats(MIN_FLOOR, 1e-3))
def test_float32_at_the_limit(name: str, own: float) -> None:
    limit = FLOOR_LIMIT * own
    for value, right in ((limit, True), (nextafter(limit, 1), False)):
        statistic = f"float32 {name}"
        assert [c.statistic for c in floor(own, errors(value, name)) if not c.passed] == [statistic] * (not right)
        against = f"float32 {name} against the original's"
        found = floor(own, NOTHING, errors(value, name))
        assert [c.statistic for c in found if not c.passed] == [against] * (not right)
        assert by_name(found)[against].limit == limit


@each
def test_both_comparisons_gate_in_float32(name: str) -> None:
    checks = floor(1e-6, errors(1e-3, name), errors(1e-3, name))
    assert len(checks) == 2 * len(GATING)
    assert len([c for c in checks if c.passed is False]) == 2


def test_a_floor_below_the_least_counts_as_the_least() -> None:
    """Where the original happens to be exact, the converted net need not be."""
    for own in (0.0, MIN_FLOOR / 100):
        assert all(c.passed for c in floor(own, errors(3 * MIN_FLOOR)))
        assert not any(c.passed for c in floor(own, errors(3.01 * MIN_FLOOR), errors(3.01 * MIN_FLOOR)))
    assert MIN_FLOOR == 2.0**-26


def test_a_floor_that_is_a_number_of_its_own() -> None:
    """The floor of each statistic, not one for all."""
    own = Statistics(dict.fromkeys(GATING, 1e-6) | {"max abs over RMS": 1e-4}, {})
    made = by_name(list(gates.float32_checks("a", own, errors(2e-4), NOTHING)))
    assert made["float32 max abs over RMS"].passed
    assert made["float32 relative L2"].passed is False


def test_float32_words() -> None:
    first = floor(1e-6, errors(1.06e-6))[0]
    assert first.words == "1.06 times the noise floor (limit 3)"
    wrong = floor(1e-6, errors(inf))[0]
    assert wrong.words == "not finite"
    assert wrong.passed is False
    assert floor(1e-6, errors(nan))[0].passed is False


# Half precision.


@pytest.mark.parametrize(
    ("error", "words"), [(1.24e-2, "no worse"), (1.25e-2, "no worse"), (1.0, "WORSE"), (inf, "WO")]
)
def test_half_never_gates(error: float, words: str) -> None:
    check = gates.half_check("a", "bfloat16", errors(1e-2), errors(error))
    assert check.passed is None
    assert words in check.words
    assert "reported" in check.words


def test_half_with_an_exact_original() -> None:
    check = gates.half_check("a", "float16", NOTHING, errors(1e-2))
    assert check.passed is None
    assert "WORSE" in check.words


# Not finite, shown, and how much is used.


def test_nonfinite() -> None:
    assert gates.nonfinite("a", "float32", (0, 0)) is None
    ours = gates.nonfinite("a", "float32", (3, 0))
    assert ours
    assert ours.passed is False
    assert "3 elements are NaN or infinite, 0 in the original's output" in ours.words
    for both in ((3, 3), (0, 2)):
        made = gates.nonfinite("a", "float32", both)
        assert made
        assert made.passed is None


def test_what_is_shown_never_gates() -> None:
    made = list(gates.shown("a", "float64", Statistics({}, {"cosine": -1.0, "SQNR in dB": -inf, **REST})))
    assert {check.passed for check in made} == {None}
    assert by_name(made)["float64 cosine"].words == "-1.000000000000"
    assert by_name(made)["float64 mean signed bias"].words == "-0.5 of the RMS"
    assert by_name(made)["float64 worst index"].words == REST["worst index"]


def test_what_is_exactly_right_is_identical() -> None:
    checks = [*gates.float64_checks("a", errors(0.0)), *floor(1e-6, errors(0.0))]
    checks += [gates.smallest_passing("a", precision, checks) for precision in ("float64", "float32")]
    assert {check.words for check in checks} == {"identical"}


@given(st.floats(0.001, 99))
def test_the_smallest_tolerance_that_would_pass(times: float) -> None:
    checks = list(gates.float64_checks("a", errors(times * LIMITS["relative L2"], "relative L2")))
    made = gates.smallest_passing("a", "float64", checks)
    assert made.passed is None
    assert made.value == pytest.approx(times)
    checks = floor(1e-6, errors(times * 1e-6, "max abs over RMS"))
    made = gates.smallest_passing("a", "float32", checks)
    assert made.value == pytest.approx(times)
    assert float(made.words.removesuffix(" times the noise floor")) == pytest.approx(times, rel=0.05)


def test_the_smallest_tolerance_of_nothing() -> None:
    assert gates.smallest_passing("a", "float64", []).value == inf
    assert gates.smallest_passing("a", "float64", [Check("a", "b", 1.0, 0.0, False, "")]).value == inf
