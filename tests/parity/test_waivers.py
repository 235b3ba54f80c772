"""Waivers: for noise, for a while, for one case, and never without a line that says so."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toml_values import ANY, toml

from converter.errors import UsageError
from converter.parity import waivers as module
from converter.parity.ci.settings import load_waivers
from converter.parity.waivers import Waiver, apply
from converter.reports.report import Check

TODAY = date(2026, 6, 1)
FLOOR = 5e-7
GOOD = {
    "case": '"t999"',
    "statistic": '"float32 relative L2"',
    "bound": "3.4",
    "reason": '"fused attention"',
    "expires": "2027-01-31",
}


def waiver(**other: Any) -> Waiver:
    return Waiver(**{"case": "t999", "statistic": "float32 relative L2", "bound": 3.4, "reason": "known",
                     "expires": date(2027, 1, 31)} | other)  # fmt: skip


def failed(times: float = 3.2, what: str = "t999 / epsilon", statistic: str = "float32 relative L2") -> Check:
    """A check that measured so many times the noise floor."""
    return Check(what, statistic, times * FLOOR, 3 * FLOOR, False, f"{times} times the noise floor (limit 3)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("waivers")


def write(folder: Path, **other: str) -> Path:
    path = folder / "waivers.toml"
    path.write_text("[[waiver]]\n" + "".join(f"{key} = {value}\n" for key, value in (GOOD | other).items() if value))
    return path


def test_a_file(tmp_path: Path) -> None:
    assert load_waivers(write(tmp_path), TODAY) == [waiver(reason="fused attention")]
    (tmp_path / "empty.toml").touch()
    assert load_waivers(tmp_path / "empty.toml", TODAY) == []


DIGEST = "0123456789abcdef" * 4
# What each key may be, and what is said of anything else.
MAY_BE: dict[str, tuple[Callable[[Any], object], str]] = {
    **dict.fromkeys(
        ("case", "reason"), (lambda v: isinstance(v, str) and v.strip() and "\0" not in v, "a text that is not empty")
    ),
    "statistic": (lambda v: v == "float32 relative L2", "one of the statistics that have a tolerance"),
    "bound": (
        lambda v: type(v) in (int, float) and 3 < v <= 30,
        "a number above zero and below 1e9|more than 3 and at most 30 times the noise floor",
    ),
    "expires": (
        lambda v: type(v) is date and v <= date(2027, 6, 2),
        "a day, written 2027-01-31 without quotes|at most a year ahead",
    ),
    "checkpoint": (lambda v: v == DIGEST, "the 64 lower-case hexadecimal digits of a SHA-256"),
    "atol": (lambda v: False, "unknown"),
    "statistc": (lambda v: False, "unknown; did you mean statistic?"),
}
NEAR = [3, 3.4, 30, 30.001, 5e-7, "3.4", "2027-01-31", date(2027, 6, 2), date(2027, 6, 3), DIGEST, DIGEST.upper()]
NEAR += ["", "  ", "bytes", "config", "caught by", "float32 non-finite", "float32 relative L2", "non-finite"]


@given(st.sampled_from(sorted(MAY_BE)), ANY | st.sampled_from(NEAR))
def test_what_is_granted_and_what_is_not(folder: Path, key: str, value: Any) -> None:
    path, (right, words) = write(folder, **{key: toml(value)}), MAY_BE[key]
    if right(value):
        assert getattr(load_waivers(path, TODAY)[0], key) == value
        return
    with pytest.raises(UsageError) as caught:
        load_waivers(path, TODAY)
    message = str(caught.value)
    assert message.startswith(f"{path}: [[waiver]] 1: {key}: ")
    assert any(rule in message for rule in words.split("|"))
    assert "\n" not in message


@pytest.mark.parametrize("key", GOOD)
def test_what_has_to_be_there(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match=rf"\[\[waiver\]\] 1: {key} is missing"):
        load_waivers(write(tmp_path, **{key: ""}), TODAY)


def test_a_float64_bound_is_in_times_the_limit(tmp_path: Path) -> None:
    statistic = '"float64 relative L2"'
    assert load_waivers(write(tmp_path, statistic=statistic, bound="1.5"), TODAY)[0].bound == 1.5
    with pytest.raises(UsageError, match="more than 1 and at most 10 times the limit, not 11"):
        load_waivers(write(tmp_path, statistic=statistic, bound="11"), TODAY)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("atol = 1", "atol: unknown; a file of waivers holds"),
        ("waiver = 1", r"waiver: written as \[\[waiver\]\]"),
        ("waiver = [1]", r"\[\[waiver\]\] 1: a table, not 1"),
        ("waiver", "not TOML"),
        ("a = " + "[" * 100_000, "not TOML"),
        ("a = " + "9" * 5000, "not TOML"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "w.toml").write_text(content)
    with pytest.raises(UsageError, match=words):
        load_waivers(tmp_path / "w.toml", TODAY)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff = 1")
    (tmp_path / "large").write_bytes(b"#" * 1_000_001)
    for name, words in (("latin", "not TOML"), ("large", "1000001 bytes"), ("gone", "No such file"), (".", "a folder")):
        with pytest.raises(UsageError, match=words):
            load_waivers(tmp_path / name, TODAY)


def test_twice_the_same(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text() * 2)
    with pytest.raises(UsageError, match=r"\[\[waiver\]\] 2: the same case, statistic and checkpoint"):
        load_waivers(path, TODAY)


def test_a_use_is_printed() -> None:
    checks = [failed(), failed(3.4, "t999"), failed(what="t321 / epsilon"), failed(what="t9990 / epsilon")]
    lines = apply([waiver()], checks, TODAY)
    assert [check.waived for check in checks] == ["known (until 2027-01-31)"] * 2 + [""] * 2
    assert lines == [
        "waived: t999 / epsilon, float32 relative L2: 3.2 times the noise floor (limit 3): known (until 2027-01-31)",
        "waived: t999, float32 relative L2: 3.4 times the noise floor (limit 3): known (until 2027-01-31)",
    ]
    assert all(check.passed is False for check in checks)  # what was measured stays what it is


def test_one_part_only() -> None:
    checks = [failed(), failed(what="t999 / variance")]
    apply([waiver(case="t999 / variance")], checks, TODAY)
    assert [bool(check.waived) for check in checks] == [False, True]


def test_over_the_bound() -> None:
    check = failed(3.5)
    lines = apply([waiver()], [check], TODAY)
    assert not check.waived
    assert lines == [
        "waiver for t999, float32 relative L2: does not cover t999 / epsilon, float32 relative L2: 3.5, bound 3.4"
    ]


def test_expired_and_unused() -> None:
    check = failed()
    assert apply([waiver()], [check], date(2027, 2, 1)) == [
        "waiver for t999, float32 relative L2: expired on 2027-01-31, not applied"
    ]
    assert not check.waived
    assert apply([waiver(case="t1")], [check], TODAY) == ["waiver for t1, float32 relative L2: not needed here"]
    assert apply([waiver()], [check], date(2027, 1, 31))  # its last day
    assert check.waived


def test_another_checkpoint() -> None:
    check = failed()
    assert apply([waiver(checkpoint="a" * 64)], [check], TODAY, checkpoint="b" * 64) == []
    assert apply([waiver(checkpoint="a" * 64)], [check], TODAY) == []
    assert not check.waived
    apply([waiver(checkpoint="a" * 64)], [check], TODAY, checkpoint="a" * 64)
    assert check.waived


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, None, "nan", "0", True, -1.0])
@pytest.mark.parametrize("limit", [3 * FLOOR, 0.0, None, "x", math.inf, math.nan, True])
def test_what_is_no_noise_is_never_waived(value: Any, limit: Any) -> None:
    check = Check("t999 / epsilon", "float32 relative L2", value, limit, False, "")
    apply([waiver()], [check], TODAY)
    assert not check.waived


STATISTIC = st.sampled_from(
    [*module.WAIVABLE, "bytes", "config", "float32 non-finite", "caught by", "float16 relative L2"]
)
NUMBER = st.one_of(st.floats(), st.none(), st.text(max_size=3), st.booleans())


@given(
    st.builds(
        Check,
        st.sampled_from(["t999", "t999 / epsilon", "t999/x", "t99", "blocks.0.weight"]),
        STATISTIC,
        NUMBER,
        NUMBER,
        st.sampled_from([True, False, None]),
        st.just("words"),
    ),
    STATISTIC,
    st.floats(0.1, 30),
)
def test_only_a_failed_tolerance_within_the_bound_is_waived(check: Check, statistic: str, bound: float) -> None:
    apply([waiver(statistic=statistic, bound=bound)], [check], TODAY)
    if check.waived:
        assert check.passed is False
        assert check.what in ("t999", "t999 / epsilon")
        assert check.statistic == statistic
        assert check.statistic in module.WAIVABLE
        assert type(check.value) is float
        assert type(check.limit) is float
        unit = 3 if "float32" in statistic else 1
        assert unit < check.value / check.limit * unit <= min(bound, 10 * unit)


def test_the_statistics_are_those_of_the_gates() -> None:
    from converter.parity import gates

    units = {statistic.partition(" ")[0]: module.unit_of(statistic) for statistic in module.WAIVABLE}
    assert units == {"float64": 1.0, "float32": gates.FLOOR_LIMIT}
    names = {f"float64 {name}" for name in gates.GATING}
    names |= {f"float32 {name}{more}" for name in gates.GATING for more in ("", " against the original's")}
    assert set(module.WAIVABLE) == names


@given(
    st.lists(
        st.builds(
            waiver,
            case=st.sampled_from(["a", "a / b", "a / b / c", "b", "a /", " / a"]),
            statistic=st.sampled_from(module.WAIVABLE[:2]),
        ),
        max_size=6,
        unique_by=lambda each: (each.case, each.statistic),
    ),
    st.lists(st.sampled_from(["a", "a / b", "a / b / c", "a / c", "ab", "b / a", " / a", "a / "]), max_size=6),
)
def test_a_waiver_is_for_a_case_and_all_its_parts(waivers: list[Waiver], names: list[str]) -> None:
    checks = [failed(3.2, name, statistic) for name in names for statistic in module.WAIVABLE[:2]]
    apply(waivers, checks, TODAY)
    for check in checks:
        mine = [w for w in waivers if w.statistic == check.statistic and f"{check.what} / ".startswith(f"{w.case} / ")]
        assert bool(check.waived) == bool(mine)


def test_thousands_of_waivers(tmp_path: Path) -> None:
    """Each was once compared with each, and with every check: 8,000 took 50 seconds."""
    count, path = 4000, tmp_path / "waivers.toml"
    one = '[[waiver]]\ncase = "t{}"\nstatistic = "float64 relative L2"\nbound = 3.4\nreason = "r"\n'
    one += "expires = 2026-06-12\n"
    path.write_text("".join(map(one.format, range(count))))
    began = time.process_time()
    waivers = load_waivers(path, TODAY)
    checks = [failed(3.2, f"t{i} / epsilon", "float64 relative L2") for i in range(count)]
    assert len(apply(waivers, checks, TODAY)) == count
    assert all(check.waived for check in checks)
    assert time.process_time() - began < 6
