"""JUnit XML, which every CI service can show: a suite per report and phase, a case per check that decides.

Whatever the verdict rests on, a report that did not pass never makes a file in which all is green.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
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


class Case(NamedTuple):
    """A test case of a suite; what it is but a pass: 'failure', 'error', 'skipped' or 'system-out'."""

    name: str
    kind: str = ""
    verdict: str = ""
    words: str = ""
    more: str = ""


def junit(reports: Sequence[Report]) -> str:
    """The text of a JUnit file."""
    root = ET.Element("testsuites", name="parity")
    for report in reports:
        date = DATE.match(str(report.run.get("date", "")))
        for name, cases in _suites(report):
            suite = ET.SubElement(root, "testsuite", name=_name(f"{facts.name_of(report)}: {name}"))
            if date:
                suite.set("timestamp", "T".join(date.groups()))
            suite.extend(_element(name, case) for case in cases)
    for element in (*root, root):
        element.set("tests", str(sum(1 for _ in element.iter("testcase"))))
        for attribute, kind in COUNTED.items():
            element.set(attribute, str(sum(1 for _ in element.iter(kind))))
    if seconds := [spent for report in reports if (spent := positive(report.run.get("seconds"))) is not None]:
        root.set("time", f"{sum(seconds):.3f}")
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suites(report: Report) -> list[tuple[str, list[Case]]]:
    suites = [(phase.name, list(_cases(phase))) for phase in report.phases]
    wrong = any(case.kind in ("failure", "error") for _, cases in suites for case in cases)
    if report.verdict != PASS and not wrong:
        kind = "failure" if report.verdict == FAIL else "error"
        suites.append(("verdict", [Case(report.verdict, kind, report.verdict, report.reason)]))
    return suites or [("verdict", [Case(report.verdict)])]


def _cases(phase: Phase) -> Iterator[Case]:
    """The deciding checks of a phase, and one case for the phase itself where they do not tell its verdict."""
    for check in phase.gates:
        name = f"{check.what}: {check.statistic}"
        if check.failed:
            compared = f"value {show(check.value)}, limit {show(check.limit)}"
            yield Case(name, "failure", FAIL, check.words, compared)
        elif check.passed:
            yield Case(name)
        else:
            yield Case(name, "system-out", words=f"waived ({check.waived}): {check.words}")
    kind = {NOT_RUN: "skipped", INCONCLUSIVE: "error", FAIL: "failure"}.get(phase.verdict)
    if kind and not (phase.verdict == FAIL and any(phase.failed)):
        yield Case(phase.name, kind, phase.verdict, phase.words)
    elif not phase.gates:
        yield Case(phase.name)


def _element(suite: str, case: Case) -> ET.Element:
    element = ET.Element("testcase", classname=_name(f"parity.{suite}"), name=_name(case.name))
    if case.kind == "system-out":
        ET.SubElement(element, case.kind).text = _words(case.words)
    elif case.kind:
        inside = ET.SubElement(element, case.kind, message=_name(case.words))
        if case.kind != "skipped":
            inside.set("type", _name(case.verdict))
            inside.text = _words(case.words) + (f"\n{_words(case.more)}" if case.more else "")
    return element


def _name(raw: object) -> str:
    """What an attribute can hold: short, and on one line."""
    return _words(raw, NAME_LIMIT)


def _words(raw: object, limit: int = WORDS_LIMIT) -> str:
    shown = printable(raw, limit)
    return FORBIDDEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), shown)
