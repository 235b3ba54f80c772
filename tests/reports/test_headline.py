"""The headline: the verdict in at most twelve words, the same wherever a report is shown, and the rest behind it."""

from __future__ import annotations

import json
import re

import pytest
import sample_reports as samples
from hypothesis import given
from hypothesis import strategies as st

from converter.reports import render
from converter.reports.markdown import card
from converter.reports.report import FAIL, INCONCLUSIVE, PASS, REJECTED, Report

REPORTS = samples.everything()
MARKS = r"^\s*([;:,.]+(\s+|$))+"  # of a clause, without the clause
KNOWN = st.sampled_from([report.reason for report in REPORTS.values()])


@given(st.text() | KNOWN | st.lists(st.sampled_from(["word", "case:", "a,", "b;", "end.", "\n"])).map(" ".join))
def test_any_headline_has_at_most_twelve_words_and_loses_none(reason: str) -> None:
    report = Report(FAIL, reason)
    headline, words = report.headline.split(), reason.split()
    assert 1 <= len(headline) <= 12
    if not re.sub(MARKS, "", reason).strip():
        assert (report.headline, report.details) == ("no reason is given", "")
        return
    letters = "".join(filter(str.isalnum, reason))
    if report.headline.endswith("…") and not reason.rstrip(".").endswith("…"):
        assert report.details == re.sub(MARKS, "", reason).strip().lstrip(";:,. "), (
            "cut inside a clause: all of it comes below"
        )
    elif "".join(words) == "".join(reason.split(" ")):  # else white space is another there
        assert "".join(filter(str.isalnum, report.headline + report.details)) == letters


@pytest.mark.parametrize(
    ("verdict", "reason", "headline", "details"),
    [
        (
            PASS,
            "outputs identical in float32; float64 output within 1e-08 (limit 1e-07); 25 statistics checked",
            "outputs identical in float32",
            "float64 output within 1e-08 (limit 1e-07); 25 statistics checked",
        ),
        (
            FAIL,
            "config: num_attention_heads is 4, and has to be 8: --num_attention_heads is what was given, and 3 more",
            "config: num_attention_heads is 4, and has to be 8",
            "--num_attention_heads is what was given, and 3 more",
        ),
        (
            INCONCLUSIVE,
            "self-test: 1 of 10 deliberate faults missed: mask ignored (caught by nothing, NOT by function)",
            "self-test: 1 of 10 deliberate faults missed",
            "mask ignored (caught by nothing, NOT by function)",
        ),
        (
            REJECTED,
            "a.pth: archive/data.pkl: calls os.system, which no checkpoint needs",
            "a.pth: archive/data.pkl: calls os.system, which no checkpoint needs",
            "",
        ),
        (
            REJECTED,
            "one two three four five six seven eight nine ten eleven twelve thirteen",
            "one two three four five six seven eight nine ten eleven twelve…",
            "one two three four five six seven eight nine ten eleven twelve thirteen",
        ),
    ],
)
def test_a_headline_and_the_rest(verdict: str, reason: str, headline: str, details: str) -> None:
    report = Report(verdict, reason)
    assert (report.headline, report.details) == (headline, details)


@pytest.mark.parametrize(
    ("reason", "headline"),
    [
        (
            "v1. final.pth: archive/data.pkl: not a pickle; save it again",
            "v1. final.pth: archive/data.pkl: not a pickle",
        ),
        ("run; b.pth: it is truncated; fetch it again", "run; b.pth: it is truncated"),
        ("no converted folder at my run; b: convert it first", "no converted folder at my run; b: convert it first"),
        ("a part of my run; b/v2. x.bin is gone; fetch it", "a part of my run; b/v2. x.bin is gone"),
        ("the key 'a. b; c, d' is not known; remove it", "the key 'a. b; c, d' is not known"),
        ("weights; function differs in block 3; more", "weights; function differs in block 3"),
        ("; x", "x"),
        ("./a.pth: truncated", "./a.pth: truncated"),
        ("; .", "no reason is given"),
        (" \n", "no reason is given"),
        ("a b c d e f g h i j my run; b lasts", "a b c d e f g h i j…"),
    ],
)
def test_a_headline_ends_behind_a_clause_and_never_inside_of_a_name(reason: str, headline: str) -> None:
    report = Report(REJECTED, reason, converted={"name": "my run; b"}, run={"original": "x.pth"})
    assert report.headline == headline


@pytest.mark.parametrize("name", ["tiny", "failing", "inconclusive", "rejected"])
def test_every_format_has_the_same_headline(name: str) -> None:
    report = REPORTS[name]
    assert len(report.headline.split()) <= 12
    plain = {"&#95;": "_", "&#42;": "*"}
    for shown in (render([report], ".md"), card(report)):
        for reference, character in plain.items():
            shown = shown.replace(reference, character)
        assert report.headline in shown
    assert json.loads(render([report], ".json"))["headline"] == report.headline
