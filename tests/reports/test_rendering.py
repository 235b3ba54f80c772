"""Reports as files: they say what the report says, hold no text from a file as markup, and never crash."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
import sample_reports as samples
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_reports import written

from converter.reports import KINDS, facts, render, worst
from converter.reports.markdown import card
from converter.reports.markdown_text import code, fenced, table, text
from converter.reports.numbers import duration, number, show
from converter.reports.report import FAIL, PASS, Check, Phase, Report, counted, gravity

REPORTS = samples.everything()
EVERY = pytest.mark.parametrize("name", REPORTS)
MORE_OF_THE_SAME = ("inconclusive", "forty-two", "many")  # as many pictures again, each of which takes half a second


def tables(markdown: str) -> list[list[list[str]]]:
    """The tables of a Markdown text as GitHub reads them: a pipe ends a cell unless a backslash stands before it."""
    found: list[list[list[str]]] = []
    fence, inside = "", False
    for line in markdown.splitlines():
        if match := re.match(r"(`{3,})", line):
            fence = "" if fence == match[1] else fence or match[1]
        inside_now = not fence and line.startswith("|")
        if inside_now:
            if not inside:
                found.append([])
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        inside = inside_now
    return found


# -- every format, every report


@pytest.mark.parametrize(
    ("name", "suffix"),
    [(name, suffix) for name in REPORTS for suffix in KINDS if suffix != ".html" or name not in MORE_OF_THE_SAME],
)
def test_a_report_renders_the_same_every_time(name: str, suffix: str) -> None:
    """Also one read back from JSON: 'nan' and 'inf' are spelled then, and a renderer may not tell the difference."""
    read = Report.from_dict(json.loads(samples.everything()[name].to_json()))
    content = render([read], suffix)
    assert content == written(name, suffix)
    content.encode("utf-8")
    assert content.endswith("\n")


@EVERY
def test_no_control_character_and_no_lone_surrogate_is_written(name: str) -> None:
    for content in (*(written(name, suffix) for suffix in KINDS), card(REPORTS[name])):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", content)


def _damaged(detail: dict[str, Any]) -> list[dict[str, Any]]:
    """With every key taken out in turn, and emptied, and given another type."""
    every = []
    for key, value in detail.items():
        every.append({k: v for k, v in detail.items() if k != key})
        every += [detail | {key: other} for other in (None, [], {}, "text", math.nan, 0, -1, [None], [math.nan, "inf"])]
        if isinstance(value, dict):
            every += [detail | {key: inner} for inner in _damaged(value)]
    return every


DAMAGED = [
    Report(FAIL, "", phases=[Phase(name, FAIL, "", detail=damaged)])
    for name, detail in samples.smallest_details()
    for damaged in _damaged(detail)
]


def test_any_part_of_a_report_may_be_missing() -> None:
    for report in DAMAGED:
        render([report], ".md")
    for name in ("original", "converted", "environment", "run"):
        for damaged in _damaged(getattr(samples.tiny(), name)):
            report = samples.rejected()
            setattr(report, name, damaged)
            card(report)
            for suffix in KINDS:
                render([report], suffix)


@settings(max_examples=8)
@given(st.sampled_from(DAMAGED))
def test_any_part_of_a_picture_may_be_missing(report: Report) -> None:
    render([report], ".html")


def test_another_suffix_and_no_report_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\.pdf"):
        render([samples.tiny()], ".pdf")
    with pytest.raises(ValueError, match="no report"):
        render([], ".md")


# -- JSON


@EVERY
def test_one_report_is_its_own_json(name: str) -> None:
    made = written(name, ".json")
    assert made == REPORTS[name].to_json()
    assert Report.from_dict(json.loads(made)).to_json() == made


def test_several_reports_stand_under_their_worst_verdict() -> None:
    reports = [samples.passing(), samples.failing(), samples.inconclusive()]
    made = json.loads(render(reports, ".json"))
    assert (made["verdict"], made["exit_code"]) == (FAIL, 1)
    assert made["reports"] == [report.as_dict() for report in reports]
    assert render(reports, ".json") == json.dumps(made, indent=1, sort_keys=True) + "\n"


def test_the_order_of_verdicts() -> None:
    order = ["PASS", "INCONCLUSIVE", "REJECTED", "FAIL", "INTERNAL"]
    for i, verdict in enumerate(order):
        assert worst([Report(v, "") for v in order[: i + 1]]) == verdict
    reports = [Report(verdict, "") for verdict in (*order, *order)]
    assert [report.verdict for report in sorted(reports, key=gravity)] == [v for v in reversed(order) for _ in "ab"]
    assert counted(reports) == "2 PASS, 2 FAIL, 2 REJECTED, 2 INCONCLUSIVE, 2 INTERNAL"


def test_people_see_the_worst_first_and_programs_the_order_of_the_comparisons() -> None:
    reports = [samples.passing(), samples.rejected(), samples.failing(), samples.tiny()]
    reports = [replace(report, phases=[]) for report in reports]  # pictures take long to draw, and are not looked at
    names = [facts.name_of(report) for report in reports]
    worst_first = [names[i] for i in (2, 1, 0, 3)]
    for suffix, wanted in ((".md", worst_first), (".html", worst_first), (".json", names), (".xml", names)):
        content = render(reports, suffix).replace("<wbr>", "")
        listed = content[content.index("<h2>") :] if suffix == ".html" else content
        assert sorted(names, key=listed.index) == wanted, suffix


# -- Markdown


@EVERY
def test_markdown_tables_keep_their_columns(name: str) -> None:
    for made in (written(name, ".md"), render([REPORTS[name], samples.tiny()], ".md"), card(REPORTS[name])):
        for rows in tables(made):
            assert len(rows) > 2, "a table has a row"
            assert len({len(row) for row in rows}) == 1
            assert set(rows[1]) == {"---"}


def test_markdown_says_what_failed_where_and_what_would_mend_it() -> None:
    made = render([samples.failing()], ".md")
    assert made.startswith("## ❌ FAIL: `PixArt-alpha-XL-2-512-diffusers`\n")
    assert "- **block 14 (attn1 q, attn1 k)** differs from the original on its own" in made
    assert "- ✅ swapping attn1.to_q and attn1.to_k of block 14 restores 1.1 times the noise floor" in made
    assert "and 192 more" in made
    assert "kept for an old pipeline, until 2026" in made
    failed = next(rows for rows in tables(made) if rows[0] == ["phase", "what", "statistic", "in words"])
    assert len(failed) == 2 + 50


def test_markdown_of_several_begins_with_a_table() -> None:
    made = render([samples.passing(), samples.failing(), samples.rejected()], ".md")
    assert made.startswith("# ❌ FAIL: 1 of 3 models passed\n")
    assert [row[0] for row in tables(made)[0][2:]] == ["❌ FAIL", "⛔ REJECTED", "✅ PASS"]
    assert "pixart parity" not in made.split("## ")[0]


@EVERY
def test_markdown_holds_no_markup_from_a_file(name: str) -> None:
    """Neither HTML, nor links, mentions, headings or emphasis, outside a block of code."""
    for made in (written(name, ".md"), card(REPORTS[name])):
        prose = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", made)
        assert set(re.findall(r"<[^>]*>", prose)) <= {"<code>", "</code>"}
        spans = re.sub(r"`[\w./ +=:,%()-]+`", "", prose, flags=re.ASCII)
        assert not re.search(r"[\[\]@~!]|://|www\.|`", spans)
        assert {line.split()[0] for line in prose.splitlines() if line.startswith("#")} <= {"#", "##", "###"}


def test_markdown_text_shows_as_itself() -> None:
    zero_width = "\u200b"
    for raw in ("a|b", "<b>", "[x](y)", "*_`~", "@me", "#12", "http://a.b", "www.a.b", "a & b", "snake_case _it_"):
        assert html.unescape(text(raw)).replace(zero_width, "") == raw
        assert html.unescape(code(raw)).replace(zero_width, "").removeprefix("<code>").removesuffix("</code>").strip(
            "`"
        ) == raw.strip("`")
    assert text("a\nb") == "a&#92;nb"
    assert text("snake_case") == "snake_case"
    assert len(text("x" * 10000)) < 1000


def test_a_fence_is_longer_than_what_it_holds() -> None:
    made = fenced("a\n````\nb", "sh").splitlines()
    assert made == ["`````sh", "a", "````", "b", "`````"]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells"):
        table(["a", "b"], [["x"]])


# -- the verification card


@pytest.mark.parametrize("name", ["passing", "failing", "inconclusive"])
def test_the_card_lets_anybody_repeat_the_check(name: str) -> None:
    report = REPORTS[name]
    made = card(report)
    assert f"```sh\n{report.run['command']}\n```" in made
    digests = [report.original["sha256"], report.converted["sha256"]]
    digests += [about["sha256"] for about in report.converted["files"].values()]
    assert all(f"`{digest}`" in made for digest in digests)
    assert all(version in made for version in ("convert-pixart 0.1.0", "2.6.0", "0.32.1"))
    assert report.verdict in made.splitlines()[2]
    assert report.run["date"] in made
    assert "`norm_eps`" in made
    assert f"exits with {report.exit_code}" in made
    assert report.run["original"] not in made, "a path of somebody's computer is not published"


def test_the_card_says_what_the_same_bytes_take() -> None:
    report = samples.passing()
    threads = report.environment["threads"]
    assert f"With another number of cores that takes `--threads {threads}`" in card(report)
    report.run["command"] += f" --threads {threads}"
    assert "With another number of cores" not in card(report)


def test_the_card_of_nothing() -> None:
    made = card(samples.internal())
    assert "The command was not recorded." in made
    assert "None: all of them" in made


# -- the numbers behind it


def test_key_numbers() -> None:
    found = {number.label: number for number in facts.key_numbers(samples.passing())}
    assert list(found) == ["float32 output", "float64 output", "Trajectory", "Images", "Self-test", "Checks passed"]
    assert found["Checks passed"].value == "276 of 276"
    assert 1.3 < float(found["float32 output"].value.rstrip("×")) <= 1.35
    assert all(number.good for number in found.values())
    assert found["float32 output"].words.endswith("(limit 3)")
    assert float(found["float64 output"].value) <= 1e-6
    assert re.fullmatch(r"largest difference, of \d?e-0[67] allowed", found["float64 output"].words)
    assert found["float32 output"].judgement == "within the limit"
    wrong = {number.label: number for number in facts.key_numbers(samples.failing())}
    assert (wrong["float32 output"].good, wrong["float32 output"].judgement) == (False, "over the limit")
    assert wrong["float64 output"].value == "∞", "a count above a limit of zero"
    assert wrong["Checks passed"].judgement.endswith(" failed")


def test_an_output_that_is_the_same_is_identical() -> None:
    near = [Check("t0 / epsilon", "float32 relative L2", 1e-7, 3e-7, True)]
    same = [Check("t0 / epsilon", "float32 relative L2 against the original's", 0.0, 3e-7, True)]
    for checks, value in ((near + same, "identical"), (near, "1.00×"), ([], None)):
        found = facts.key_numbers(Report(PASS, "", phases=[Phase("function", PASS, "", checks)]))
        assert [number.value for number in found if number.label == "float32 output"] == ([value] if value else [])


def test_a_self_test_counts_its_faults_and_not_the_harmless_change() -> None:
    harmless = Check("tensors copied", "caught by", "", "", True)
    trials = [Check("q and k swapped", "caught by", "weights", "weights", True), harmless]
    phase = Phase("self-test", PASS, "all 1 deliberate faults were caught", trials)
    (number, _) = facts.key_numbers(Report(PASS, "", phases=[phase]))
    assert (number.value, number.judgement, facts.tally(phase)) == ("1 of 1", "all of them", "1 of 1 fault caught")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *[(0, "0"), (0.0, "0"), (28, "28"), (1e-7, "1e-7"), (-2.1e-9, "-2.1e-9"), (4.4e-4, "4.4e-4"), (2e9, "2e9")],
        *[(math.nan, "NaN"), ("nan", "NaN"), ("inf", "∞"), (-math.inf, "−∞"), (10**400, "∞")],
        *[(None, "–"), (True, "yes"), ("x", "x")],
    ],
)
def test_a_value_for_people(value: object, words: str) -> None:
    assert show(value) == words


def test_seconds_for_people() -> None:
    assert [duration(s) for s in (4.21, 42, 200.2, 7500, None, "nan", -1)] == [
        "4.2 s",
        "42 s",
        "3 min 20 s",
        "2 h 5 min",
        "",
        "",
        "",
    ]
    assert number("1e3") is None
