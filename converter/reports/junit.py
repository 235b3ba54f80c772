"""JUnit XML, which every CI service can show: a suite per report and phase, a case per check that decides.

Whatever the verdict rests on, a report that did not pass never makes a file in which all is green.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from ..errors import printable
from . import facts
from .numbers import positive, show
from .report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Check, Phase, Report

NAME_LIMIT, WORDS_LIMIT = 300, 4000
# What XML 1.0 allows. The rest cannot be written at all, not even as a character reference.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
DATE = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)", re.ASCII)  # what the schema takes, without a zone


def junit(reports: Sequence[Report]) -> str:
    """The text of a JUnit file."""
    root = ET.Element("testsuites", name="parity")
    for report in reports:
        root.extend(_suites(report))
    for suite in root:
        _count(suite, list(suite))
    _count(root, [case for suite in root for case in suite])
    seconds = [found for report in reports if (found := positive(report.run.get("seconds"))) is not None]
    if seconds:
        root.set("time", f"{sum(seconds):.3f}")
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suites(report: Report) -> list[ET.Element]:
    suites = [_suite(report, phase.name, _cases(phase)) for phase in report.phases]
    wrong = any(case.find(kind) is not None for suite in suites for case in suite for kind in ("failure", "error"))
    if report.verdict != PASS and not wrong:
        kind = "failure" if report.verdict == FAIL else "error"
        suites.append(
            _suite(report, "verdict", [_case("verdict", report.verdict, kind, report.verdict, words=report.reason)])
        )
    elif not suites:
        suites.append(_suite(report, "verdict", [_case("verdict", report.verdict)]))
    return suites


def _suite(report: Report, name: str, cases: list[ET.Element]) -> ET.Element:
    suite = ET.Element("testsuite", name=_name(f"{facts.name_of(report)}: {name}"))
    if date := DATE.match(str(report.run.get("date", ""))):
        suite.set("timestamp", "T".join(date.groups()))
    suite.extend(cases)
    return suite


def _cases(phase: Phase) -> list[ET.Element]:
    """The deciding checks of a phase, and one case for the phase itself where they do not tell its verdict."""
    cases = [_checked(phase, check) for check in phase.gates]
    failed = any(case.find("failure") is not None for case in cases)
    if phase.verdict == NOT_RUN:
        cases.append(_case(phase.name, phase.name, "skipped", "", words=phase.words))
    elif phase.verdict == INCONCLUSIVE:
        cases.append(_case(phase.name, phase.name, "error", INCONCLUSIVE, words=phase.words))
    elif phase.verdict == FAIL and not failed:
        cases.append(_case(phase.name, phase.name, "failure", FAIL, words=phase.words))
    elif not cases:
        cases.append(_case(phase.name, phase.name))
    return cases


def _checked(phase: Phase, check: Check) -> ET.Element:
    name = f"{check.what}: {check.statistic}"
    if check.passed:
        return _case(phase.name, name)
    if check.waived:
        case = _case(phase.name, name)
        ET.SubElement(case, "system-out").text = _words(f"waived ({check.waived}): {check.words}")
        return case
    case = _case(phase.name, name, "failure", FAIL, words=check.words)
    case[0].text = f"{_words(check.words)}\n{_words(f'value {show(check.value)}, limit {show(check.limit)}')}"
    return case


def _case(phase: str, name: str, kind: str = "", type_: str = "", words: str = "") -> ET.Element:
    case = ET.Element("testcase", classname=_name(f"parity.{phase}"), name=_name(name))
    if kind:
        inside = ET.SubElement(case, kind, message=_name(words))
        if type_:
            inside.set("type", _name(type_))
            inside.text = _words(words)
    return case


def _count(element: ET.Element, cases: list[ET.Element]) -> None:
    element.set("tests", str(len(cases)))
    for attribute, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(attribute, str(sum(case.find(kind) is not None for case in cases)))


def _name(raw: object) -> str:
    """What an attribute can hold: short, and on one line."""
    return _words(raw, NAME_LIMIT)


def _words(raw: object, limit: int = WORDS_LIMIT) -> str:
    shown = printable(raw, limit)
    return FORBIDDEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), shown)
