"""JUnit XML, which every CI service can show: a suite per report and phase, a case per check that decides.

Whatever the verdict rests on, a report that did not pass never makes a file in which all is green. The class of a case
is its model and phase, so that class and name together are an id: no two cases of a file share one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from xml.etree import ElementTree as ET

from ..errors import printable
from . import facts
from .limits import margin
from .names import Distinct, short_paths
from .numbers import positive, show, times
from .report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Check, Phase, Report

MODEL_LIMIT, NAME_LIMIT, WORDS_LIMIT = 200, 300, 4000
COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}
# What XML 1.0 allows. The rest cannot be written at all, not even as a character reference.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
DATE = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)", re.ASCII)  # what the schema takes, without a zone
REMEDIES = {
    "weights": "convert the checkpoint again; `pixart diff` lists the tensors that differ",
    "config": "convert the checkpoint again, and state the value where the file does not show it",
    "function": "do not use the converted model; `--save_failing DIR` saves the failing cases to run them again",
    "self-test": "the checks would not have seen this fault: compare again with a larger `--profile`",
}


def junit(reports: Sequence[Report]) -> str:
    """The text of a JUnit file."""
    root = ET.Element("testsuites", name="parity")
    model, name = Distinct(), Distinct()
    for report, label in zip(reports, short_paths([*map(facts.name_of, reports)]), strict=True):
        title = model(_words(label, MODEL_LIMIT))
        suites = [(phase.name, list(_cases(report, phase))) for phase in report.phases]
        wrong = {"failure", "error"} & {kind.tag for _, cases in suites for case in cases for kind in case}
        if report.verdict != PASS and not wrong:
            kind = "failure" if report.verdict == FAIL else "error"
            suites.append(("verdict", [_case("verdict", kind, report.reason, report.verdict)]))
        date = DATE.match(str(report.run.get("date", "")))
        for phase, cases in suites or [("verdict", [_case("verdict")])]:
            suite = ET.SubElement(root, "testsuite", name=_name(f"{title}: {phase}"))
            if date:
                suite.set("timestamp", "T".join(date.groups()))
            for case in cases:
                classname = _name(f"parity.{title}.{phase}")
                case.attrib = {"classname": classname, "name": name(case.attrib["name"], classname)}
            suite.extend(cases)
    for element in (*root, root):
        element.set("tests", str(sum(1 for _ in element.iter("testcase"))))
        for attribute, kind in COUNTED.items():
            if element is not root or kind != "skipped":  # the schema has none of it there
                element.set(attribute, str(sum(1 for _ in element.iter(kind))))
    if seconds := [spent for report in reports if (spent := positive(report.run.get("seconds"))) is not None]:
        root.set("time", f"{sum(seconds):.3f}")
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _cases(report: Report, phase: Phase) -> Iterator[ET.Element]:
    """The deciding checks of a phase, and one case for the phase itself where they do not tell its verdict."""
    for check in phase.gates:
        more = _measured(report, phase, check) if check.failed else ()
        case = _case(f"{check.what}: {check.statistic}", "failure" * check.failed, check.words, FAIL, more)
        if check.waived and not check.passed:
            ET.SubElement(case, "system-out").text = _words(f"waived ({check.waived}): {check.words}")
        yield case
    kind = {NOT_RUN: "skipped", INCONCLUSIVE: "error", FAIL: "failure"}.get(phase.verdict, "")
    if kind and not (phase.verdict == FAIL and any(phase.failed)):
        yield _case(phase.name, kind, phase.words, phase.verdict)
    elif not phase.gates:
        yield _case(phase.name)


def _measured(report: Report, phase: Phase, check: Check) -> Iterator[str]:
    """The numbers of a failure, what they are of, and what can be done about it."""
    share = margin(check)
    used = f" ({times(share)} times the limit)" if share is not None and share < inf else ""
    yield f"{'case' if phase.name == 'function' else 'what'}: {check.what}"
    yield f"statistic: {check.statistic}"
    if check.value is not None:
        yield f"measured: {show(check.value) or 'nothing'}{used}"
        yield f"allowed: {show(check.limit)}"
    yield from (f"{label}: {report.run.get(label) or side.get('name')}" for label, side in facts.sides(report))
    diagnosis = facts.diagnosis(report) if phase.name == "function" else []
    yield from (f"to do: {words}" for words in [*diagnosis, REMEDIES.get(phase.name, "")] if words)


def _case(name: str, kind: str = "", words: str = "", verdict: str = "", more: Iterable[str] = ()) -> ET.Element:
    case = ET.Element("testcase", name=_name(name))
    if kind:
        inside = ET.SubElement(case, kind, message=_name(words))
        if kind != "skipped":
            inside.set("type", _name(verdict))
            inside.text = "\n".join(map(_words, (words, *more)))
    return case


def _name(raw: object) -> str:
    """What an attribute can hold: short, and on one line."""
    return _words(raw, NAME_LIMIT)


def _words(raw: object, limit: int = WORDS_LIMIT) -> str:
    shown = printable(raw, limit)
    return FORBIDDEN.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), shown)
