"""The page of many reports: whole, alone and safe; every number and every verdict is in its table and its pictures."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import sys
from functools import cache

import pytest
import sample_reports as samples
from html_page import Page

from converter.errors import UsageError
from converter.reports.overview import Entry, overview
from converter.reports.report import FAIL, INCONCLUSIVE, PASS, REJECTED, Check, Phase, Report

FLOOR = 5e-7


def report(verdict: str = PASS, times: float | None = 1.1, share: float = 0.1) -> Report:
    """One whose worst is so many times the noise floor in float32, and that share of the limit in float64."""
    checks = [
        Check("t999 / epsilon", "float32 relative L2", (times or 0) * FLOOR, 3 * FLOOR, True),
        Check("t999 / variance", "float32 relative L2", 0.5 * (times or 0) * FLOOR, 3 * FLOOR, True),
        Check("t999 / epsilon", "float64 relative L2", share * 1e-7, 1e-7, True),
        Check("t999 / epsilon", "float32 worst channel", 0.25 * (times or 0) * FLOOR, 3 * FLOOR, True),
        Check(
            "t999 / epsilon",
            "float32 worst channel against the original's",
            0.2 * (times or 0) * FLOOR,
            3 * FLOOR,
            True,
        ),
        Check("t999 / epsilon", "float32 cosine", 0.5, None, None),
    ]
    phases = [] if times is None else [Phase("function", verdict, "", checks)]
    return Report(verdict, f"the reason of {verdict}", phases=phases)


def entry(report: Report, step: int, run: str = "runs/a", unit: str = "step") -> Entry:
    return Entry(report, f"{run.rpartition('/')[2]}_{step}", run, unit, step, f"{step}.html")


@cache
def page_of_run() -> tuple[str, Page]:
    return page_of(*RUN)


def page_of(*entries: Entry, notes: list[str] | None = None) -> tuple[str, Page]:
    made = overview(entries, "a team's runs", notes or [])
    return made, Page(made)


def rows(made: str) -> list[dict[str, tuple[int, str]]]:
    """Row by row, the ranks and the texts of the cells by the heads of their columns."""
    heads = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", made)
    body = made.partition("<tbody>")[2].partition("</tbody>")[0]
    cells = [
        re.findall(r'<td [^>]*data-rank="(\d+)".*?>(.*?)</td>', row, re.DOTALL)
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    ]
    return [
        {head: (int(rank), Page(f"<p>{text}</p>").text.strip()) for head, (rank, text) in zip(heads, row, strict=True)}
        for row in cells
    ]


def dots(page: Page) -> dict[str, str]:
    """What the dots of the pictures say, and their styles."""
    return dict(page.tooltips)


RUN = [
    entry(report(), 900),
    entry(report(FAIL, 24600.0, 530.0), 1000),
    entry(report(REJECTED, None), 2000),
    entry(report(PASS, 2.5, 0.2), 10000),
    entry(report(INCONCLUSIVE, math.nan), 11000),
    entry(report(), 1000, "runs/b"),
    entry(report(), 2000, "runs/b"),
]


def test_the_page_is_whole_and_alone_and_its_only_script_is_named_in_its_policy() -> None:
    made, page = page_of_run()
    assert page.comments == []
    tags = [tag for tag, _ in page.elements]
    assert not {*tags} & {"iframe", "object", "embed", "link", "base", "form", "img"}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert {a["href"] for tag, a in page.elements if tag == "a"} == {each.link for each in RUN}
    (script,) = re.findall(r"<script>(.*?)</script>", made, re.DOTALL)
    policy = next(a["content"] or "" for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'" in policy
    assert not re.search(r"url\((?!#)|@import|https?:", made)
    assert page_of(*RUN)[0] == made


def test_the_table_begins_with_the_worst_and_can_be_sorted_by_every_column() -> None:
    made, page = page_of_run()
    assert "4 of 7 checkpoints passed" in page.text
    assert "4 PASS, 1 FAIL, 1 REJECTED, 1 INCONCLUSIVE" in page.text
    table = rows(made)
    assert [row["checkpoint"][1] for row in table] == [
        "a_1000",
        "a_2000",
        "a_11000",
        "a_900",
        "a_10000",
        "b_1000",
        "b_2000",
    ]
    assert [row["verdict"][1] for row in table][:4] == ["✗ FAIL", "⊘ REJECTED", "? INCONCLUSIVE", "✓ PASS"]
    assert {row["run"][1] for row in table} == {"a", "b"}

    def by(head: str) -> list[str]:
        return [text for _, text in sorted(row[head] for row in table)]

    assert by("step") == ["900", "1,000", "1,000", "2,000", "2,000", "10,000", "11,000"]
    assert by("worst in float32") == ["–", "1.10×", "1.10×", "1.10×", "2.50×", "24,600×", "∞"]
    assert by("worst in float64") == ["–", *["1e-8"] * 4, "2e-8", "5.3e-5"]
    assert by("checkpoint")[:3] == ["a_900", "a_1000", "a_2000"]
    assert by("verdict")[0] == "✗ FAIL"
    assert table[0]["reason"][1] == "the reason of FAIL"


def test_a_column_stands_only_where_it_says_something() -> None:
    made, page = page_of(Entry(report(REJECTED, None), "last", "runs/a", "", 0, "a.html"))
    assert list(rows(made)[0]) == ["verdict", "checkpoint", "reason"]
    assert "0 of 1 checkpoint passed" in page.text
    assert page.count("svg") == 0
    made, page = page_of(entry(report(), 3, unit="epoch"), Entry(report(), "last", "runs/a", "", 0, "a.html"))
    assert [row["epoch"][1] for row in rows(made)] == ["3", ""]
    assert page.text.count("checkpoints in order") == 5, "steps that are known of some only are no axis"
    assert page.count("p", "legend") == 0


def test_the_pictures_show_every_checkpoint_and_the_limit() -> None:
    made, page = page_of_run()
    titles = re.findall("<h4>(.*?)</h4>", made)
    worst = ["Worst in float32", "Worst in float64"]
    assert titles == [*worst, "Relative L2 in float32", "Relative L2 in float64", "Worst channel in float32"]
    assert page.count("svg") == 5
    tips = dots(page)
    assert len(page.tooltips) == 5 * len(RUN)
    for words in ("a_900: 1.10×, PASS", "a_1000: 24,600×, FAIL", "a_2000: –, REJECTED", "a_11000: ∞, INCONCLUSIVE"):
        assert words in tips
    assert [words for words, style in tips.items() if "--fail" in style] == [
        "a_1000: 24,600×, FAIL",
        "a_1000: 5.3e-5, FAIL",
        "a_1000: 6,150×, FAIL",
    ]
    assert "--s1" in tips["b_2000: 1.10×, PASS"]
    assert "--series" in tips["a_900: 1.10×, PASS"]
    assert (page.text.count("limit 3"), page.text.count("limit 1")) == (3, 2)
    assert page.text.count("log scale") == 5
    assert page.count("p", "legend") == 1
    for tag, attributes in page.elements:
        for key in {"x", "y", "d", "viewbox"} & attributes.keys():
            assert not re.search("nan|inf|e[-+]", attributes[key] or ""), (tag, attributes)


def test_the_axis_is_linear_where_all_is_well() -> None:
    _, page = page_of(entry(report(), 1), entry(report(PASS, 1.2), 2))
    assert "log scale" not in page.text
    assert "limit 3" in page.text


def test_what_is_equal_to_the_last_digits_of_float64_is_far_below_the_limit() -> None:
    """Not so many decades below it that the limit is all that can be seen."""
    runs = [entry(report(share=3.5e-9 * step), step) for step in (1, 2)]
    made, page = page_of(*runs)
    assert [row["worst in float64"][1] for row in rows(made)] == ["3.5e-16", "7e-16"]
    assert {"a_1: 3.5e-16, PASS", "a_2: 7e-16, PASS"} <= dots(page).keys()
    assert "log scale" not in page.text


def test_a_negative_distance_is_no_number() -> None:
    made, page = page_of(entry(report(PASS, -5.0, -2.0), 1), entry(report(), 2), entry(report(), 3))
    table = {row["checkpoint"][1]: row for row in rows(made)}
    assert table["a_1"]["worst in float32"][1] == table["a_1"]["worst in float64"][1] == "–"
    assert "a_1: –, PASS" in dots(page)


def test_more_runs_than_colours() -> None:
    entries = [entry(report(), step, f"runs/{run}") for run in range(20) for step in (1, 2)]
    made, _ = page_of(*entries)
    legend = made.partition('<p class="legend">')[2].partition("</p>")[0]
    signs = re.findall(r'color: var\((--\w+)\)">(.)<', legend)
    assert len(signs) == 20
    assert len(set(signs)) == 16


def test_hostile_text_is_shown_and_not_interpreted() -> None:
    text = samples.HOSTILE
    made, page = page_of(
        *(Entry(samples.hostile(), text, text, "step", step, "a.html") for step in (1, 2)),
        entry(report(), 10**11),
        notes=[text],
    )
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in page.text
    assert made.count("<script") == 1
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", made)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_all_kinds_of_reports() -> None:
    reports = samples.everything()
    made, page = page_of(*(entry(each, step) for step, each in enumerate(reports.values(), 1)))
    assert len(rows(made)) == len(reports)
    assert f"{sum(each.verdict == PASS for each in reports.values())} of {len(reports)} checkpoints passed" in page.text


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_the_page_needs_an_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=rf"needs {missing}: pip install 'convert-pixart\[report\]'"):
        page_of(entry(report(), 1))
