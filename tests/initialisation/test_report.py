"""The reports of an initialisation: what they say, and that no text breaks out of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from html_page import Page
from init_helpers import SMALL, origin

from converter.initialisation import Initialisation
from converter.initialisation.proof import prove
from converter.initialisation.report import KINDS, render
from converter.initialisation.timesteps import measure
from converter.reports.numbers import show

HOSTILE = '<script>alert(1)</script>|`*](x)"\x1b[31m\u202e'


@pytest.fixture(scope="module")
def done() -> Initialisation:
    with origin() as opened:
        proof = prove(opened, opened.state())
        proof.distances = measure(opened)
        return Initialisation(Path("init.pth"), opened.choices, ["a note"], proof, True)


def failing(done: Initialisation) -> Initialisation:
    """The same with a block that is wrong, and one that is not finite."""
    stages = [replace(stage) for stage in done.proof.stages]
    stages[2].error = stages[3].error = stages[3].apart = inf
    checks = [replace(check) for check in done.proof.checks]
    for check in checks[5:25]:
        check.passed = False
    return replace(done, proof=replace(done.proof, stages=stages, checks=checks), notes=[HOSTILE], written=False)


def test_json(done: Initialisation) -> None:
    told = json.loads(render(done, "dit.pt", ".json"))
    assert (told["version"], told["source"], told["verdict"], told["passed"]) == (1, "dit.pt", "PASS", True)
    assert done.proof.distances
    assert told["distances"] == done.proof.distances.distances
    assert told["nearer"] in told["mean"]
    assert [row["name"] for row in told["stages"]] == [stage.name for stage in done.proof.stages]
    assert told["choices"]["t_block"] == "mean"
    assert told["choices"]["num_attention_heads"] == 4
    told = json.loads(render(failing(done), HOSTILE, ".json"), parse_constant=pytest.fail)
    assert (told["verdict"], told["stages"][3]["error"], told["source"]) == ("FAIL", "inf", HOSTILE)


def test_markdown(done: Initialisation) -> None:
    text = render(done, "dit.pt", ".md")
    assert text.startswith("## ✅ PASS: PixArt initialised from `dit.pt`")
    assert re.search(r"^\| block 2 \|", text, re.M)
    assert re.search(r"^\| 500 \| \S+e-\d+ \| \S+e-\d+ \|$", text, re.M)
    assert "is nearer to the DiT" in text
    text = render(failing(done), HOSTILE, ".md")
    assert "### What failed" in text
    assert "<script" not in text
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_html(done: Initialisation) -> None:
    page = Page(render(done, "dit.pt", ".html"))
    assert page.count("svg") == 3
    assert page.count("script") == 0
    for words in ("PASS", "PixArt initialised from dit.pt", "made equal here", "is nearer to the DiT", "a note"):
        assert words in page.text
    assert "What failed" not in page.text
    content = render(failing(done), HOSTILE, ".html")
    page = Page(content)
    assert page.count("script") == 0
    assert "FAIL" in page.text
    assert "What failed" in page.text
    assert "alert(1)" in page.text  # it shows as what it is
    assert "\x1b" not in content
    assert "default-src 'none'" in content
    failed = [check for check in failing(done).proof.checks if check.passed is False]
    assert all(check.words in page.text for check in failed)


def test_every_choice_and_every_number_of_a_stage_is_shown(done: Initialisation) -> None:
    page, text = Page(render(done, "dit.pt", ".html")), render(done, "dit.pt", ".md")
    for name, value in done.choices.items():
        assert f"{name} {show(value)}" in page.text
        assert f"| {name} | {show(value)} |" in text
    for s in done.proof.stages:
        row = [s.name, s.case, *map(show, (s.error, s.apart, s.floor, s.times, s.exact))]
        assert " ".join(row) in page.text
        assert f"| {' | '.join(row)} |" in text


def test_without_other_timesteps(done: Initialisation) -> None:
    short = replace(done, proof=replace(done.proof, distances=None))
    assert Page(render(short, "dit.pt", ".html")).count("svg") == 2
    assert "At other timesteps" not in render(short, "dit.pt", ".md")
    assert "distances" not in json.loads(render(short, "dit.pt", ".json"))


def test_there_is_a_picture_with_a_line_for_each_choice(done: Initialisation) -> None:
    assert done.proof.distances
    words = {words: style for words, style in Page(render(done, "dit.pt", ".html")).tooltips}
    colours = set()
    for choice, values in done.proof.distances.distances.items():
        for t, value in zip(done.proof.distances.timesteps, values, strict=True):
            style = words[f"t = {t}, --t_block {choice}: {value:.3g}"]
            colours.add(re.search(r"fill: var\(--\w+\)", style)[0])
    assert len(colours) == 2


def test_the_kinds() -> None:
    assert set(KINDS) == {".json", ".md", ".html"}
    with origin(replace(SMALL, t_block="paper")) as opened:
        assert opened.with_t_block("paper") is opened
