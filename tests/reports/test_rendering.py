"""Reports as files: they say what the report says, hold no text from a file as markup, and never crash."""

from __future__ import annotations

import builtins
import html
import json
import math
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import sample_reports as samples

from converter.errors import UsageError
from converter.reports import KINDS, card, facts, render, worst
from converter.reports.figures.colours import viridis
from converter.reports.figures.drawing import log_range
from converter.reports.figures.scales import Linear, Log
from converter.reports.markdown_text import code, fenced, table, text
from converter.reports.numbers import duration, number, show
from converter.reports.report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Check, Phase, Report

REPORTS = samples.everything()
EVERY = pytest.mark.parametrize("name", REPORTS)
VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Elements with attributes, the visible text, and whether every element was closed where it should be."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.comments: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str, class_: str = "") -> int:
        return sum(t == tag and class_ in ["", *(a.get("class") or "").split()] for t, a in self.elements)


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


@EVERY
@pytest.mark.parametrize("suffix", KINDS)
def test_renders_the_same_every_time(name: str, suffix: str) -> None:
    made = render([REPORTS[name]], suffix)
    assert made == render([samples.everything()[name]], suffix)
    made.encode("utf-8")
    assert made.endswith("\n")


@EVERY
@pytest.mark.parametrize("suffix", KINDS)
def test_a_report_read_back_from_json_renders_alike(name: str, suffix: str) -> None:
    """'nan' and 'inf' are spelled then, and a renderer may not tell the difference."""
    read = Report.from_dict(json.loads(render([REPORTS[name]], ".json")))
    assert render([read], suffix) == render([REPORTS[name]], suffix)


@EVERY
def test_no_control_character_and_no_lone_surrogate_is_written(name: str) -> None:
    for made in (*(render([REPORTS[name]], suffix) for suffix in KINDS), card(REPORTS[name])):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", made)


@pytest.mark.parametrize("suffix", KINDS)
def test_any_part_of_a_report_may_be_missing(suffix: str) -> None:
    """Every key of every detail is taken out in turn, and emptied, and given another type."""
    for phase_name in ("function", "trajectory"):
        detail = (
            samples.failing().phase("function").detail
            if phase_name == "function"
            else samples.tiny().phase("trajectory").detail
        )
        for broken in _broken(detail):
            render([Report(FAIL, "", phases=[Phase(phase_name, FAIL, "", detail=broken)])], suffix)
    for name in ("original", "converted", "environment", "run"):
        for broken in _broken(getattr(samples.tiny(), name)):
            report = samples.rejected()
            setattr(report, name, broken)
            render([report], suffix)
            card(report)


def _broken(detail: dict[str, Any]) -> list[dict[str, Any]]:
    made = []
    for key, value in detail.items():
        made.append({k: v for k, v in detail.items() if k != key})
        made += [detail | {key: other} for other in (None, [], {}, "text", math.nan, 0, -1, [None], [math.nan, "inf"])]
        if isinstance(value, dict):
            made += [detail | {key: inner} for inner in _broken(value)]
    return made


def test_another_suffix_and_no_report_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\.pdf"):
        render([samples.tiny()], ".pdf")
    with pytest.raises(ValueError, match="no report"):
        render([], ".md")


# -- JSON


@EVERY
def test_one_report_is_its_own_json(name: str) -> None:
    made = render([REPORTS[name]], ".json")
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


# -- JUnit


@EVERY
def test_junit_counts_add_up(name: str) -> None:
    report = REPORTS[name]
    root = ET.fromstring(render([report], ".xml"))
    cases = list(root.iter("testcase"))
    for element in (root, *root):
        inside = list(element.iter("testcase"))
        assert int(element.attrib["tests"]) == len(inside) > 0
        for attribute, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(element.attrib[attribute]) == sum(case.find(kind) is not None for case in inside)
    gates = sum(len(facts.gates(phase)) for phase in report.phases)
    failed = sum(len(list(phase.failed)) for phase in report.phases)
    assert len(cases) >= gates
    assert int(root.attrib["failures"]) >= failed
    assert (int(root.attrib["failures"]) + int(root.attrib["errors"]) == 0) == (report.verdict == PASS)
    assert int(root.attrib["skipped"]) == sum(phase.verdict == NOT_RUN for phase in report.phases)


def test_junit_of_a_failure_says_the_words() -> None:
    root = ET.fromstring(render([samples.failing()], ".xml"))
    messages = [failure.attrib["message"] for failure in root.iter("failure")]
    assert (
        "transformer_blocks.14.attn1.to_q.weight holds what belongs in transformer_blocks.14.attn1.to_k.weight"
        in messages
    )
    assert [skip.attrib["message"] for skip in root.iter("skipped")] == [
        "not run: the function differs already",
        "not run: nothing to confirm after a failure",
    ]
    assert [out.text for out in root.iter("system-out")] == [
        "waived (kept for an old pipeline, until 2026): norm_eps is 1e-05"
    ]
    assert float(root.attrib["time"]) == 200.25
    assert root[0].attrib["timestamp"] == "2025-02-03T14:05:06"


@pytest.mark.parametrize("name", ["rejected", "internal"])
def test_junit_without_phases_is_one_error(name: str) -> None:
    root = ET.fromstring(render([REPORTS[name]], ".xml"))
    assert (root.attrib["tests"], root.attrib["errors"]) == ("1", "1")
    assert root.find(".//error").attrib["message"] == REPORTS[name].reason


def test_junit_of_a_verdict_that_no_phase_explains() -> None:
    report = samples.tiny()
    report.verdict = INCONCLUSIVE
    root = ET.fromstring(render([report], ".xml"))
    assert (root.attrib["failures"], root.attrib["errors"]) == ("0", "1")


def test_junit_of_several_has_a_suite_per_report_and_phase() -> None:
    root = ET.fromstring(render([samples.passing(), samples.rejected(), samples.failing()], ".xml"))
    assert len(root) == 6 + 1 + 6
    assert len({suite.attrib["name"] for suite in root}) == 13
    assert float(root.attrib["time"]) == 400.5


# -- Markdown


@EVERY
def test_markdown_tables_keep_their_columns(name: str) -> None:
    for made in (render([REPORTS[name]], ".md"), render([REPORTS[name], samples.tiny()], ".md"), card(REPORTS[name])):
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
    assert [row[0] for row in tables(made)[0][2:]] == ["✅ PASS", "❌ FAIL", "⛔ REJECTED"]
    assert "pixart parity" not in made.split("## ")[0]


@EVERY
def test_markdown_holds_no_markup_from_a_file(name: str) -> None:
    """Neither HTML, nor links, mentions, headings or emphasis, outside a block of code."""
    for made in (render([REPORTS[name]], ".md"), card(REPORTS[name])):
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


# -- HTML


@EVERY
def test_the_page_is_whole_and_alone(name: str) -> None:
    """Nothing that runs, nothing that is loaded from elsewhere, every element closed, ids unique."""
    page = Page(render([REPORTS[name], samples.tiny()], ".html"))
    assert page.open == []
    assert page.comments == []
    tags = {tag for tag, _ in page.elements}
    assert not tags & {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "img",
        "base",
        "form",
        "foreignobject",
        "use",
        "b1",
    }
    for tag, attributes in page.elements:
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
            if value := attributes.get(key):
                assert value.startswith("#") or (tag == "image" and value.startswith("data:image/png;base64,")), value
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert {anchor[1:] for anchor in anchors if anchor} <= set(ids)
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_the_style_loads_nothing() -> None:
    style = re.search(r"<style>(.*?)</style>", render([samples.tiny()], ".html"), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_hostile_text_is_shown_and_not_interpreted() -> None:
    made = render([samples.hostile()], ".html")
    page = Page(made)
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in page.text
    assert "{{ 7*7 }}" in page.text, "text is no template"
    assert "\\u202eRTL" in page.text
    assert "<script" not in made
    assert "N" * 3000 not in made


@EVERY
def test_no_coordinate_is_missing(name: str) -> None:
    page = Page(render([REPORTS[name]], ".html"))
    drawn = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height", "d", "viewbox", "transform"}
    for tag, attributes in page.elements:
        for key in drawn & attributes.keys():
            assert not re.search("nan|inf|None|e[-+]", attributes[key] or "nan"), (tag, attributes)
        for key in ("width", "height"):
            if key in attributes:
                assert float(attributes[key]) >= 0, (tag, attributes)


@EVERY
def test_every_point_lies_within_its_picture(name: str) -> None:
    width = 0.0
    for tag, attributes in Page(render([REPORTS[name]], ".html")).elements:
        if tag == "svg":
            width, height = (float(n) for n in attributes["viewbox"].split()[2:])
        elif tag in ("circle", "rect", "line") and width:
            xs = [float(attributes[key]) for key in ("cx", "x", "x1", "x2") if key in attributes]
            ys = [float(attributes[key]) for key in ("cy", "y", "y1", "y2") if key in attributes]
            assert all(-7 <= x <= width for x in xs), (tag, attributes)
            assert all(-7 <= y <= height for y in ys), (tag, attributes)


@pytest.mark.parametrize(("name", "blocks"), [("tiny", 4), ("passing", 28), ("forty-two", 42)])
def test_the_page_of_a_pass(name: str, blocks: int) -> None:
    report = REPORTS[name]
    page = Page(render([report], ".html"))
    assert report.reason in page.text
    for words in (
        "Error along the net",
        "Where the outputs differ",
        "Distance from the limit",
        "Error along the trajectory",
    ):
        assert page.text.count(words) == 1
    assert "Where it goes wrong" not in page.text
    assert page.count("circle", "dot") == (blocks + 4) + 8 + 2, "stages, steps, and one in each legend"
    assert page.count("circle", "over") == 0
    assert f"block {blocks - 1}" in page.text
    assert "final layer" in page.text
    assert page.count("image") == 8 + 1
    assert report.original["sha256"] in page.text
    assert report.converted["sha256"] in page.text
    assert report.run["command"] in page.text


def test_the_page_of_a_failure() -> None:
    page = Page(render([REPORTS["many"]], ".html"))
    assert page.text.index("Where it goes wrong") < page.text.index("Distance from the limit")
    for block in (3, 14, 20):
        assert f"Inside block {block}" in page.text
    assert page.count("rect", "over") == 3 + 3 * 2 + 1, "faulty stages, two parts of each, the legend"
    assert page.text.index("swapping attn1.to_q") < page.text.index("adding 1 to the timestep"), (
        "what helps comes first"
    )
    assert page.count("section", "v-fail") == 1
    assert "Waived: kept for an old pipeline" in page.text


def test_surviving_mutants_come_first() -> None:
    page = Page(render([samples.inconclusive()], ".html"))
    after = page.text[page.text.index("deliberate faults, and what caught them") :]
    assert after.index("survived") < after.index("caught", 60)
    assert page.text.count("✗ survived") == 2


def test_several_reports_begin_with_a_summary() -> None:
    reports = [samples.passing(), samples.failing(), samples.inconclusive(), samples.rejected()]
    page = Page(render(reports, ".html"))
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
    assert page.count("path", "cross") == 2
    assert "b: NaN" in page.text
    assert "not finite (1)" in page.text


def test_html_needs_jinja2(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "jinja2":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'convert-pixart\[report\]'"):
        render([samples.tiny()], ".html")
    for suffix in (".json", ".xml", ".md"):
        render([samples.tiny()], suffix)


def test_a_page_says_what_is_wrong_at_the_top_and_explains_its_words() -> None:
    """Whoever sees one for the first time: the cause under the verdict, what each phase does, what the terms mean."""
    report = samples.failing()
    function = report.phase("function")
    assert function
    mended = "swapping attn1.to_q and attn1.to_k of block 14 restores 1.1 times the noise floor"
    function.notes = [mended, "something else"]
    function.detail["cases"] = [{"name": "t999", "axes": "timestep 999 <b>"}, {"name": "t0", "axes": "timestep 0"}]
    made = render([report], ".html")
    hero = made.partition('<section class="hero')[2].partition("</section>")[0]
    assert f'<p class="diagnosis">{mended}</p>' in hero
    assert made.count(mended) == 2, "there and under what would mend it, and not once more among the notes"
    assert "something else" in made
    for words in facts.ABOUT.values():
        assert (words.replace("'", "&#39;") in made) == (
            words != facts.ABOUT["trajectory"] and words != facts.ABOUT["self-test"]
        )
    assert "The 2 cases, and what each tries" in made
    assert "timestep 999 &lt;b&gt;" in made
    for term, words in facts.GLOSSARY.items():
        assert f"<dt>{term}</dt>" in made
        assert words.replace("'", "&#39;") in made
    passed = render([samples.passing()], ".html")
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


# -- the numbers behind it


def test_key_numbers() -> None:
    found = {number.label: number for number in facts.key_numbers(samples.passing())}
    assert list(found) == ["Checks passed", "Worst in float32", "Worst in float64", "Trajectory", "Self-test"]
    assert found["Checks passed"].value == "276 of 276"
    assert 1.3 < float(found["Worst in float32"].value.rstrip("×")) <= 1.35
    assert all(number.good for number in found.values())
    wrong = {number.label: number for number in facts.key_numbers(samples.failing())}
    assert not wrong["Worst in float32"].good
    assert wrong["Worst in float64"].value == "∞×", "a count above a limit of zero"


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


def test_scales() -> None:
    log = Log(1e-8, 1e-5, 300.0, 0.0)
    assert log(1e-8) == 300
    assert log(1e-5) == 0
    assert log(0) == 300, "what lies below is drawn at the edge"
    assert [tick.words for tick in log.ticks() if tick.words] == ["10⁻⁸", "10⁻⁷", "10⁻⁶", "10⁻⁵"]
    assert [tick.words for tick in Linear(0.0, 3.6, 0.0, 100.0).ticks()] == ["0", "1", "2", "3"]
    assert log_range([None, 0.0, math.nan, "inf", -1.0]) is None
    assert log_range([1e-320, 1e308])[0] > 0
    brightness = [sum(w * c for w, c in zip((0.3, 0.6, 0.1), viridis(i / 20), strict=True)) for i in range(21)]
    assert brightness == sorted(brightness), "more is brighter, in grey too"
