"""JUnit: what CI services read, counts that add up, an id for every case, and failures that can be acted on."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from xml.etree import ElementTree as ET

import pytest
import sample_reports as samples
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.reports import render
from converter.reports.report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Check, Phase, Report

REPORTS = samples.everything()
EVERY = pytest.mark.parametrize("name", REPORTS)
COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}

# The schema by which Jenkins' xUnit plugin checks a file (junit-10.xsd): per element its attributes, with those that
# it needs first, and what may stand in it.
SUITE = {"name", "tests", "failures", "errors"}
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), SUITE | {"time"}, {"testsuite"}),
    "testsuite": (SUITE, {"skipped", "time", "timestamp"}, {"testcase"}),
    "testcase": ({"name"}, {"classname", "time"}, {"skipped", "error", "failure", "system-out"}),
    "failure": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "skipped": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}
TIME, TIMESTAMP = r"\d+\.\d{3}", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"


@cache
def written(name: str) -> str:
    return render([REPORTS[name]], ".xml")


def parsed(*reports: Report) -> ET.Element:
    return ET.fromstring(render(reports, ".xml"))


def ids(root: ET.Element) -> list[tuple[str, str]]:
    return [(case.attrib["classname"], case.attrib["name"]) for case in root.iter("testcase")]


@EVERY
def test_the_schema_of_ci_services(name: str) -> None:
    root = ET.fromstring(written(name))
    assert root.tag == "testsuites"
    for element in root.iter():
        needed, more, inside = SCHEMA[element.tag]
        assert needed <= element.attrib.keys() <= needed | more, element.tag
        assert {child.tag for child in element} <= inside
        assert re.fullmatch(TIME, element.get("time", "0.000"))
        assert re.fullmatch(TIMESTAMP, element.get("timestamp", "2025-02-03T14:05:06"))
        assert all(element.attrib[word].isdigit() for word in element.attrib.keys() & {"tests", *COUNTED})


@EVERY
def test_junit_counts_add_up(name: str) -> None:
    report = REPORTS[name]
    root = ET.fromstring(written(name))
    cases = list(root.iter("testcase"))
    for element in (root, *root):
        inside = list(element.iter("testcase"))
        assert int(element.attrib["tests"]) == len(inside) > 0
        for attribute, kind in COUNTED.items():
            if element is not root or attribute != "skipped":
                assert int(element.attrib[attribute]) == sum(case.find(kind) is not None for case in inside)
    gates = sum(len(phase.gates) for phase in report.phases)
    failed = sum(len(list(phase.failed)) for phase in report.phases)
    assert len(cases) >= gates
    assert int(root.attrib["failures"]) >= failed
    assert (int(root.attrib["failures"]) + int(root.attrib["errors"]) == 0) == (report.verdict == PASS)
    assert sum(int(suite.attrib["skipped"]) for suite in root) == sum(
        phase.verdict == NOT_RUN for phase in report.phases
    )


def test_junit_of_a_failure_says_the_words() -> None:
    root = parsed(samples.failing())
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
    root = ET.fromstring(written(name))
    assert (root.attrib["tests"], root.attrib["errors"]) == ("1", "1")
    assert root.find(".//error").attrib["message"] == REPORTS[name].reason


def test_junit_of_a_verdict_that_no_phase_explains() -> None:
    report = samples.tiny()
    report.verdict = INCONCLUSIVE
    root = parsed(report)
    assert (root.attrib["failures"], root.attrib["errors"]) == ("0", "1")


def test_junit_of_several_has_a_suite_per_report_and_phase() -> None:
    root = parsed(samples.passing(), samples.rejected(), samples.failing())
    assert len(root) == 7 + 1 + 6
    assert len({suite.attrib["name"] for suite in root}) == 14
    assert float(root.attrib["time"]) == 400.5


def test_the_class_of_a_case_is_its_model_and_phase() -> None:
    """Two pairs with the same names in different folders are told apart by as little of their paths as that takes."""
    reports = [samples.passing(), samples.passing(), samples.failing()]
    for report, path in zip(
        reports, ("/ci/converted/run1/epoch_5", "/ci/converted/run2/epoch_5", "x/e.7"), strict=True
    ):
        report.run["converted_path"] = path
    root = parsed(*reports)
    models = {classname.removeprefix("parity.").rpartition(".")[0] for classname, _ in ids(root)}
    assert models == {"run1/epoch_5", "run2/epoch_5", "x/e.7"}
    assert ("parity.run1/epoch_5.function", "t999 / epsilon: float64 relative L2") in ids(root)
    assert len(set(ids(root))) == len(ids(root))
    alone = {classname for classname, _ in ids(parsed(reports[0]))}
    assert "parity.epoch_5.weights" in alone
    again = [classname for classname, _ in ids(parsed(reports[0], reports[0]))]
    assert "parity.epoch_5 (2).weights" in again


NAMES = st.text(st.sampled_from("ab/.\\ 2()\n\x1b\ufffe"), max_size=6) | st.sampled_from(
    ["epoch_5", "x" * 301, "x" * 302]
)
CHECKS = st.builds(Check, NAMES, NAMES, passed=st.booleans())
PHASES = st.builds(Phase, NAMES, st.sampled_from([PASS, FAIL, NOT_RUN]), st.just(""), st.lists(CHECKS, max_size=3))
PATHS = st.builds("/".join, st.lists(NAMES, min_size=1, max_size=3))
BATCHES = st.lists(st.tuples(PATHS, st.lists(PHASES, max_size=3)), min_size=1, max_size=4)


@settings(max_examples=150)
@given(BATCHES)
def test_no_two_cases_share_an_id(batch: list[tuple[str, list[Phase]]]) -> None:
    reports = [Report(FAIL, "", phases=phases, run={"converted_path": path}) for path, phases in batch]
    every = ids(parsed(*reports))
    assert len(every) >= len(batch)
    assert len(set(every)) == len(every)
    assert all(len(part) < 340 for each in every for part in each)


def test_a_failure_says_what_was_measured_and_allowed_and_what_to_do() -> None:
    root = parsed(samples.failing())
    texts = {failure.attrib["message"]: failure.text or "" for failure in root.iter("failure")}
    (check, *_) = [c for c in samples.failing().phases[3].failed if c.statistic == "float32 relative L2"]
    assert isinstance(check.value, float)
    lines = texts[check.words].splitlines()
    assert lines[:3] == [check.words, f"case: {check.what}", "statistic: float32 relative L2"]
    measured, allowed = (float(line.split()[1]) for line in lines[3:5])
    assert measured == pytest.approx(check.value, rel=0.01)
    assert allowed == pytest.approx(check.limit, rel=0.01)
    assert [line.partition(":")[0] for line in lines[3:5]] == ["measured", "allowed"]
    assert float(re.findall(r"\((.*) times the limit\)$", lines[3])[0]) == pytest.approx(measured / allowed, rel=0.01)
    assert lines[5:7] == [f"{side}: {samples.failing().run[side]}" for side in ("original", "converted")]
    mended = "to do: swapping attn1.to_q and attn1.to_k of block 14 restores 1.1 times the noise floor"
    assert lines[7] == mended
    assert "--save_failing" in lines[8]
    key = "transformer_blocks.14.attn1.to_q.weight"
    weights = next(text for message, text in texts.items() if message.startswith(key)).splitlines()
    assert weights[1:3] == [f"what: {key}", "statistic: bytes"]
    assert weights[-1].startswith("to do: convert the checkpoint again")
    assert not any(line.startswith("measured") for line in weights), "there is no number of it"


def test_a_value_of_a_config_and_a_fault_that_nothing_caught() -> None:
    config = Check("norm_eps", "config", "1e-05", "1e-06", False, "norm_eps is 1e-05")
    survivor = Check("mask ignored", "caught by", "", "function", False, "nothing noticed it")
    report = Report(FAIL, "", phases=[Phase("config", FAIL, "", [config]), Phase("self-test", FAIL, "", [survivor])])
    one, other = ((failure.text or "").splitlines() for failure in parsed(report).iter("failure"))
    assert one[3:5] == ["measured: 1e-05", "allowed: 1e-06"]
    assert other[3:5] == ["measured: nothing", "allowed: function"]
    assert [lines[-1].partition(":")[0] for lines in (one, other)] == ["to do", "to do"]


def test_what_was_waived_is_no_failure() -> None:
    report = samples.tiny()
    report.phases[3].checks[0] = replace(report.phases[3].checks[0], passed=False, waived="reviewed")
    root = parsed(report)
    assert [root.attrib[name] for name in ("failures", "errors")] == ["0", "0"]
    assert [(out.text or "")[:17] for out in root.iter("system-out")] == ["waived (reviewed)"]
