"""JUnit XML, which every CI service can show: a suite per report and phase, a case per check that decides.

Whatever the verdict rests on, a report that did not pass never makes a file in which all is green.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

from ..errors import printable
from . import facts
from .numbers import positive, show
from .report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Phase, Report

NAME_LIMIT, WORDS_LIMIT = 300, 4000
COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}
# What XML 1.0 allows. The rest cannot be written at all, not even as a character reference.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
DATE = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)", re.ASCII)  # what the schema takes, without a zone


def junit(reports: Sequence[Report]) -> str:
    """The text of a JUnit file."""
    root = ET.Element("testsuites", name="parity")
    for report in reports:
        suites = [(phase.name, list(_cases(phase))) for phase in report.phases]
        wrong = {"failure", "error"} & {kind.tag for _, cases in suites for case in cases for kind in case}
        if report.verdict != PASS and not wrong:
            kind = "failure" if report.verdict == FAIL else "error"
            suites.append(("verdict", [_case("verdict", report.verdict, kind, report.reason, verdict=report.verdict)]))
        date = DATE.match(str(report.run.get("date", "")))
        for name, cases in suites or [("verdict", [_case("verdict", report.verdict)])]:
            suite = ET.SubElement(root, "testsuite", name=_name(f"{facts.name_of(report)}: {name}"))
            if date:
                suite.set("timestamp", "T".join(date.groups()))
            suite.extend(cases)
    for element in (*root, root):
        element.set("tests", str(sum(1 for _ in element.iter("testcase"))))
        for attribute, kind in COUNTED.items():
            element.set(attribute, str(sum(1 for _ in element.iter(kind))))
    if seconds := [spent for report in reports if (spent := positive(report.run.get("seconds"))) is not None]:
        root.set("time", f"{sum(seconds):.3f}")
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _cases(phase: Phase) -> Iterator[ET.Element]:
    """The deciding checks of a phase, and one case for the phase itself where they do not tell its verdict."""
    for check in phase.gates:
        name = f"{check.what}: {check.statistic}"
        compared = f"value {show(check.value)}, limit {show(check.limit)}"
        case = _case(phase.name, name, "failure" * check.failed, check.words, verdict=FAIL, more=compared)
        if check.waived and not check.passed:
            ET.SubElement(case, "system-out").text = _words(f"waived ({check.waived}): {check.words}")
        yield case
    kind = {NOT_RUN: "skipped", INCONCLUSIVE: "error", FAIL: "failure"}.get(phase.verdict, "")
    if kind and not (phase.verdict == FAIL and any(phase.failed)):
        yield _case(phase.name, phase.name, kind, phase.words, verdict=phase.verdict)
    elif not phase.gates:
        yield _case(phase.name, phase.name)


def _case(suite: str, name: str, kind: str = "", words: str = "", *, verdict: str = "", more: str = "") -> ET.Element:
    case = ET.Element("testcase", classname=_name(f"parity.{suite}"), name=_name(name))
    if kind:
        inside = ET.SubElement(case, kind, message=_name(words))
        if kind != "skipped":
            inside.set("type", _name(verdict))
            inside.text = _words(words) + (f"\n{_words(more)}" if more else "")
    return case


def _name(raw: object) -> str:
    """What an attribute can hold: short, and on one line."""
    return _words(raw, NAME_LIMIT)


def _words(raw: object, limit: int = WORDS_LIMIT) -> str:
    shown = printable(raw, limit)
    return FORBIDDEN.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), shown)
