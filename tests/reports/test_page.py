"""The HTML report: whole, alone and safe; its pictures show every number, and what is wrong in them."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import sample_reports as samples
from html_page import Page
from sample_reports import written

from converter.errors import UsageError
from converter.reports import facts, render
from converter.reports.report import FAIL, Check, Phase, Report
from converter.reports.wording import ABOUT, GLOSSARY

REPORTS = samples.everything()
EVERY = pytest.mark.parametrize("name", REPORTS)


@cache
def page_of(name: str) -> Page:
    return Page(written(name, ".html"))


@EVERY
def test_the_page_is_whole_and_alone(name: str) -> None:
    """Nothing that runs, nothing that is loaded from elsewhere, every element closed, ids unique."""
    page = page_of(name)
    assert page.comments == []
    assert page.loose == [], "what may be wider than a page stands in a box that scrolls"
    boxes = [attributes for _, attributes in page.elements if attributes.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in boxes), "by keyboard, named"
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "foreignobject", "b1"}
    for tag, attributes in page.elements:
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
            if value := attributes.get(key):
                drawn = tag in ("image", "img") and value.startswith("data:image/png;base64,")
                assert value.startswith("#") or drawn, value
        assert tag != "img" or attributes["alt"]
    named = [(attributes["id"], (tag, attributes)) for tag, attributes in page.elements if "id" in attributes]
    ids = [name for name, (tag, _) in named if tag not in ("path", "clippath")]
    assert len(ids) == len(set(ids))
    drawn = [(name, element) for name, element in named if element[0] in ("path", "clippath")]
    assert all(element == dict(drawn)[name] for name, element in drawn), "what has the same id is the same"
    assert not {name for name, _ in drawn} & set(ids)
    anchors = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert {anchor[1:] for anchor in anchors if anchor} <= set(ids)
    used = {attributes["xlink:href"] for tag, attributes in page.elements if tag == "use"}
    assert {name[1:] for name in used} <= {name for name, _ in drawn}
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_the_style_loads_nothing() -> None:
    style = re.search(r"<style>(.*?)</style>", written("tiny", ".html"), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_pictures_stand_side_by_side_with_words_for_who_cannot_see_them() -> None:
    made = written("passing", ".html")
    images = [attributes for tag, attributes in page_of("passing").elements if tag == "img"]
    assert [image["alt"].partition(":")[0] for image in images] == ["original", "converted", "difference × 100"]
    assert {image["src"] for image in images} == {f"data:image/png;base64,{samples.PNG}"}
    assert re.search(r"\.pictures { display: grid", made)
    hostile = [attributes for tag, attributes in page_of("hostile").elements if tag == "img"]
    assert len(hostile) == 1, "what is no file in base64 is left out"
    assert hostile[0]["src"] == images[0]["src"]


def test_hostile_text_is_shown_and_not_interpreted() -> None:
    made, page = written("hostile", ".html"), page_of("hostile")
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in page.text
    assert "{{ 7*7 }}" in page.text, "text is no template"
    assert "\\u202eRTL" in page.text
    assert "<script" not in made
    assert "N" * 3000 not in made


@EVERY
def test_every_point_is_a_number_within_its_picture(name: str) -> None:
    width = height = 0.0
    shapes: dict[str, list[tuple[float, float]]] = {}
    for tag, attributes in page_of(name).elements:
        if tag == "svg":
            width, height = (float(n) for n in attributes["viewbox"].split()[2:])
        for key in {"x", "y", "width", "height", "d", "viewbox", "transform"} & attributes.keys():
            assert not re.search("nan|inf|None|e[-+]", attributes[key] or "nan"), (tag, attributes)
        points = [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", attributes.get("d", ""))]
        if "id" in attributes and tag == "path":
            shapes["#" + attributes["id"]], points = points, []
        if tag in ("use", "text"):
            x, y = float(attributes["x"]), float(attributes["y"])
            points = [(x + dx, y + dy) for dx, dy in shapes.get(attributes.get("xlink:href", ""), [(0.0, 0.0)])]
        assert all(-7 <= x <= width + 7 and -7 <= y <= height + 7 for x, y in points), (tag, attributes)


def test_the_pictures_have_the_colours_of_the_page() -> None:
    """Variables alone, but for the maps, so that a dark page needs no second set; and the font of the page."""
    content = written("many", ".html")
    drawn = "".join(re.findall(r"<svg.*?</svg>", content, re.DOTALL))
    assert not re.search(r"(fill|stroke): #", drawn)
    assert re.search(r"svg text {[^}]*font-family: inherit !important", content)
    names = set(re.findall(r"var\(--([\w-]+)\)", drawn))
    assert names <= set(re.findall(r"--([\w-]+):", content))
    assert names >= {"series", "floor", "limit", "fail", "mute", "ink", "grid"}


def test_a_picture_reads_no_text_as_mathematics_and_needs_no_font() -> None:
    names = ["$x^2$ \\frac{", "病例", "\U0001f600", "&amp;"]
    detail = {"stages": names, "converted": [1e-7] * 4, "floor": [1e-7] * 4, "limit": 3.0}
    page = Page(render([Report(FAIL, "", phases=[Phase("function", FAIL, "", detail={"blocks": detail})])], ".html"))
    assert all(name in page.text for name in names)


@pytest.mark.parametrize(("name", "blocks"), [("tiny", 4), ("passing", 28), ("forty-two", 42)])
def test_the_page_of_a_pass(name: str, blocks: int) -> None:
    report = REPORTS[name]
    page = page_of(name)
    assert report.headline.capitalize() in page.text
    assert report.details.capitalize() in page.text
    for words in (
        "Error along the net",
        "Where the outputs differ",
        "Distance from the limit",
        "Error along the trajectory",
    ):
        assert page.text.count(words) == 1
    assert "Where it goes wrong" not in page.text
    words = [words for words, _ in page.tooltips]
    names = [*samples.stage_names(blocks), *(f"{step} (t {1124 - 125 * step})" for step in range(1, 9))]
    for name in names:
        assert (
            sum(
                re.match(rf"{re.escape(name)}: [\d.e-]+, [\d.]+ times the noise floor of ", w) is not None
                for w in words
            )
            == 1
        )
    checks = [check for check in report.phase("function").checks if check.passed is not None]
    assert set(words) >= {f"{check.what}, {check.statistic}: {check.words}" for check in checks}
    assert not [style for _, style in page.tooltips if "--fail" in style]
    assert f"block {blocks - 1}" in page.text
    assert "final layer" in page.text
    assert page.count("image") == 8 + 1
    assert report.original["sha256"] in page.text
    assert report.converted["sha256"] in page.text
    assert report.run["command"] in page.text


def test_the_page_of_a_failure() -> None:
    page = page_of("many")
    assert page.text.index("Where it goes wrong") < page.text.index("Distance from the limit")
    for block in (3, 14, 20):
        assert f"Inside block {block}" in page.text
    faulty = [words.split(":")[0] for words, style in page.tooltips if "--fail" in style and "/" not in words]
    assert faulty == [*("block 3", "block 14", "block 20"), *("attn1 q", "attn1 k") * 3], (
        "faulty stages, and two parts of each"
    )
    assert page.text.index("swapping attn1.to_q") < page.text.index("adding 1 to the timestep"), (
        "what helps comes first"
    )
    assert page.count("section", "v-fail") == 1
    assert "Waived: kept for an old pipeline" in page.text


def test_surviving_mutants_come_first() -> None:
    page = page_of("inconclusive")
    after = page.text[page.text.index("deliberate faults, and what caught them") :]
    assert after.index("✗ survived") < after.index("✓ caught")
    assert page.text.count("✗ survived") == 2


def test_several_reports_begin_with_a_summary() -> None:
    reports = [samples.passing(), samples.failing(), samples.inconclusive(), samples.rejected()]
    page = Page(render([replace(report, phases=[]) for report in reports], ".html"))
    assert "1 of 4 models passed" in page.text
    assert [a["href"] for t, a in page.elements if t == "a"][:4] == [f"#report-{i}" for i in (1, 2, 3, 4)]
    assert page.count("article") == 4


def test_a_broken_number_is_seen() -> None:
    """NaN must not vanish from a picture: it is what the reader has to see."""
    detail = {"stages": ["a", "b"], "converted": [1e-7, math.nan], "floor": [1e-7, 1e-7], "limit": 3.0}
    heat = {"channels": ["c"], "rows": 1, "columns": 2, "values": [[math.nan, 1e-7]]}
    check = Check("case / epsilon", "float32 relative L2", math.nan, 1e-6, False, "not finite")
    phase = Phase("function", FAIL, "", [check], detail={"blocks": detail, "heat": heat})
    page = Page(render([Report(FAIL, "", phases=[phase])], ".html"))
    crosses = {f"#{a['id']}" for _, a in page.elements if "id" in a and a.get("d", "").count("M") == 2}
    drawn = [a for tag, a in page.elements if tag == "use" and a["xlink:href"] in crosses]
    assert len([a for a in drawn if "--fail" in a["style"]]) == 2
    assert {words for words, _ in page.tooltips} >= {"b: NaN", "c: at most 1e-7, 1 not finite"}
    assert "not finite (1)" in page.text


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_html_needs_an_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=rf"needs {missing}: pip install 'convert-pixart\[report\]'"):
        render([samples.tiny()], ".html")
    for suffix in (".json", ".xml", ".md"):
        render([samples.tiny()], suffix)


def test_a_first_picture_is_silent_and_needs_no_home(tmp_path: Path) -> None:
    """matplotlib keeps a cache of fonts, and would tell of it on standard error."""
    code = "import sample_reports as s; from converter.reports import render; print(render([s.tiny()], '.html')[:15])"
    home = tmp_path / "file"
    home.touch()
    paths = ":".join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    environment = {"PYTHONPATH": paths, "HOME": str(home), "MPLCONFIGDIR": str(home / "none"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("<!doctype html>\n", "", 0)


def test_a_page_says_what_is_wrong_at_the_top_and_explains_its_words() -> None:
    """Whoever sees one for the first time: the cause under the verdict, what each phase does, what the terms mean."""
    report = samples.failing()
    function = report.phase("function")
    assert function
    mended = "swapping attn1.to_q and attn1.to_k of block 14 restores 1.1 times the noise floor"
    function.notes = [mended, "something else"]
    function.detail["cases"] = [{"name": "t999", "axes": "timestep 999 <b>"}, {"name": "t0", "axes": "timestep 0"}]
    made = render([report], ".html").replace("<wbr>", "")
    hero = made.partition('<section class="hero')[2].partition("</section>")[0]
    assert f'<p class="diagnosis">S{mended[1:]}</p>' in hero
    assert made.count(mended[1:]) == 2, "there and under what would mend it, and not once more among the notes"
    assert "something else" in made
    not_run = [ABOUT[name] for name in ("trajectory", "self-test", "images")]
    for words in ABOUT.values():
        assert (words[1:].replace("'", "&#39;") in made) == (words not in not_run)
    assert "The 2 cases, and what each tries" in made
    assert "timestep 999 &lt;b&gt;" in made
    for term, words in GLOSSARY.items():
        assert f"<dt>{term}</dt>" in made
        assert words.replace("'", "&#39;") in made
    passed = written("passing", ".html")
    assert 'class="diagnosis"' not in passed
    assert "How to read this report" not in render([samples.rejected()], ".html")


def test_the_diagnosis() -> None:
    report = samples.failing(faulty=(3, 14))
    function = report.phase("function")
    assert function
    function.detail["localisation"]["repairs"] = []
    assert facts.diagnosis(report) == ["It goes wrong in block 3 (attn1 q, attn1 k), block 14 (attn1 q, attn1 k)"]
    function.detail["localisation"]["stages"] = []
    assert facts.diagnosis(report) == []
    assert facts.diagnosis(samples.passing()) == facts.diagnosis(samples.rejected()) == []


def test_what_comes_after_the_first_wrong_part_inherits_its_error() -> None:
    def named(*wrong: str) -> list[str]:
        names = ["norm1 modulated", "attn1 q", "attn1 k", "attn1 v", "attn1 out", "attn2 q", "ff hidden", "ff out"]
        inside = [{"name": name, "faulty": name in wrong} for name in names]
        stages = [{"name": "block 2", "faulty": True, "inside": inside}]
        return facts.faulty(Phase("function", "FAIL", "", detail={"localisation": {"stages": stages}}))

    assert named("attn1 q", "attn1 k", "attn1 out", "attn2 q", "ff out") == ["block 2 (attn1 q, attn1 k)"]
    assert named("attn1 v", "attn1 out", "attn2 q") == ["block 2 (attn1 v)"]
    assert named("ff hidden", "ff out") == ["block 2 (ff hidden)"]
    assert named("norm1 modulated", "attn1 q") == ["block 2 (norm1 modulated)"]
    assert named() == ["block 2"]
