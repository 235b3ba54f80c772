"""The reports of an initialisation: what they say, and that no text breaks out of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from math import inf
from pathlib import Path
from typing import Any

import pytest
from begun import SMALL, origin

from converter.initialisation import Initialisation
from converter.initialisation.proof import prove
from converter.initialisation.report import KINDS, render
from converter.initialisation.timesteps import measure

HOSTILE = '<script>alert(1)</script>|`*](x)"\x1b[31m\u202e'
VOID = {"meta", "br", "img"}


class Strict(HTMLParser):
    """Counts elements, and whether every one is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


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


def parsed(page: str) -> Strict:
    strict = Strict()
    strict.feed(page)
    assert strict.open == []
    return strict


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
    strict = parsed(render(done, "dit.pt", ".html"))
    assert strict.seen["svg"] == 2
    assert "script" not in strict.seen
    assert "PASS" in strict.text
    assert "made equal here" in strict.text
    assert "What failed" not in strict.text
    page = render(failing(done), HOSTILE, ".html")
    strict = parsed(page)
    assert "script" not in strict.seen
    assert "FAIL" in strict.text
    assert "What failed" in strict.text
    assert "… and 8 more." in strict.text
    assert "alert(1)" in strict.text  # it shows as what it is
    assert "\x1b" not in page
    assert "default-src 'none'" in page


def test_without_other_timesteps(done: Initialisation) -> None:
    short = replace(done, proof=replace(done.proof, distances=None))
    assert parsed(render(short, "dit.pt", ".html")).seen["svg"] == 1
    assert "At other timesteps" not in render(short, "dit.pt", ".md")
    assert "distances" not in json.loads(render(short, "dit.pt", ".json"))


def test_there_is_a_picture_with_a_line_for_each_choice(done: Initialisation) -> None:
    page = render(done, "dit.pt", ".html")
    assert done.proof.distances
    for choice, values in done.proof.distances.distances.items():
        for t, value in zip(done.proof.distances.timesteps, values, strict=True):
            assert f"<title>t = {t}, --t_block {choice}: {value:.3g}</title>" in page
    assert 'class="converted"' in page
    assert 'class="second"' in page


def test_the_kinds() -> None:
    assert set(KINDS) == {".json", ".md", ".html"}
    with origin(replace(SMALL, t_block="paper")) as opened:
        assert opened.with_t_block("paper") is opened
