"""The style of a page: words stay whole, colours stand out from their ground, what is wide scrolls or reflows."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from html_page import Page
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.reports import render
from converter.reports.report import FAIL, Phase, Report

CSS = (files("converter.reports") / "report.css").read_text()
TEXT = ("ink", "mute", "link", "pass", "fail", "inconclusive")
VERDICTS = ("pass", "fail", "inconclusive", "rejected", "internal")
MODES = {"light": 0, "dark": 1}


def colours(mode: str) -> dict[str, tuple[int, ...]]:
    rules = re.findall(r":root {(.*?)}", CSS, re.DOTALL)
    found = re.findall(r"--([\w-]+): #(\w{6});", rules[MODES[mode]])
    return {name: tuple(int(code[i : i + 2], 16) for i in (0, 2, 4)) for name, code in found}


def luminance(colour: tuple[int, ...]) -> float:
    """As WCAG 2 defines it."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_text_has_the_contrast_of_wcag_aa(mode: str) -> None:
    known = colours(mode)
    pairs = [(name, ground) for name in TEXT for ground in ("card", "page")]
    pairs += [(name, f"{verdict}-soft") for verdict in VERDICTS for name in (verdict, "ink", "mute")]
    pairs += [("mute", "soft"), ("ink", "soft"), *(("card", verdict) for verdict in VERDICTS)]
    for text, ground in pairs:
        light, dark = sorted((luminance(known[text]), luminance(known[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text} on {ground}"


def test_no_word_is_broken_and_nothing_is_cut() -> None:
    rules = re.sub(r"/\*.*?\*/", "", CSS, flags=re.DOTALL)
    assert not re.search(r"break-all|anywhere|hyphens|overflow(-[xy])?: (hidden|clip)|text-overflow", rules)
    assert re.search(r"\.scroll {[^}]*overflow-x: auto", rules)
    narrow = rules.partition("@media screen and (max-width: 760px)")[2]
    assert re.search(r"\.stack tr {[^}]*flex-wrap: wrap", narrow), "rows of a table reflow"


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["blocks", "attn1", "to_q", "0", "runs", "e-07", "<b>", "&", "_" * 30, "N" * 40])))
def test_a_name_reads_the_same_wherever_a_line_may_end(parts: list[str]) -> None:
    for separator in (".", "/", "_", " "):
        words = f"X {separator.join(parts)} z"
        page = Page(render([Report(FAIL, words, phases=[Phase("config", FAIL, words)])], ".html"))
        assert " ".join(words.split()) in page.text


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("transformer_blocks.1.attn1.to_q.weight", "transformer_blocks.<wbr>1.<wbr>attn1.<wbr>to_q.<wbr>weight"),
        ("runs/epoch_1/model.pth", "runs/<wbr>epoch_1/<wbr>model.<wbr>pth"),
        ("my_finetune_of_alpha_epoch_12", "my_<wbr>finetune_<wbr>of_<wbr>alpha_<wbr>epoch_<wbr>12"),
        ("within 0.1 times 1e-07", 'within 0.1 times <span class="whole">1e-07</span>'),
        ("ab" * 32, "<wbr>".join(["ab" * 4] * 8)),
    ],
)
def test_a_line_may_end_inside_a_name_but_not_inside_a_number(words: str, shown: str) -> None:
    assert f"x: {shown}" in render([Report(FAIL, f"x: {words}")], ".html").replace("X:", "x:")
