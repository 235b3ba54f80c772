"""What several kinds of report tell alike: the order of verdicts, their meaning, and the numbers that matter most."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import human_bytes, plural, shortened
from .limits import IDENTICAL, SCALES, closest, identical, measured, precision_of
from .numbers import mapping, number, positive, sequence, show, times
from .report import FAIL, FLOOR_LIMIT, INCONCLUSIVE, INTERNAL, NOT_RUN, PASS, REJECTED, Check, Phase, Report

MARKS = {PASS: "✓", FAIL: "✗", INCONCLUSIVE: "?", REJECTED: "⊘", INTERNAL: "!", NOT_RUN: "–"}
USUAL = f"up to {FLOOR_LIMIT:g} is usual"
UNITS = {"function": ("statistic", "passed"), "config": ("field", "passed"), "self-test": ("fault", "caught")}


def name_of(report: Report) -> str:
    """What a report is about, in a few words: the converted model's name, its path where it is one of several, or the
    original's name."""
    names = (report.run.get("converted_path"), report.converted.get("name"), report.original.get("name"))
    return next((str(name) for name in names if name), "unnamed")


def when(report: Report) -> str:
    """The day and the minute of a run.

    >>> when(Report("PASS", "", run={"date": "2026-05-12T14:05:06+00:00"}))
    '2026-05-12 14:05 UTC'
    """
    date = str(report.run.get("date") or "")
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\+00:00$", r"\1 \2 UTC", date)


def waived(report: Report) -> list[tuple[Phase, Check]]:
    return [(phase, check) for phase in report.phases for check in phase.checks if check.waived]


@dataclass(frozen=True)
class KeyNumber:
    """One of the few numbers at the top: '1.06×', 'the noise floor, which is ... (limit 3)', and its `judgement`: that
    this is 'within the limit', and `good`."""

    label: str
    value: str
    words: str
    good: bool
    judgement: str


def key_numbers(report: Report) -> list[KeyNumber]:
    """What a person asks first: how far from the limits, whether faults would be seen, and how much was checked."""
    function = report.phase("function")
    shown = [number for precision in SCALES for number in _output(precision, function.gates)] if function else []
    for phase in (phase for name in ("trajectory", "images") if (phase := report.phase(name))):
        steps = sequence(phase.detail.get("steps"))
        last = mapping(steps[-1]) if steps else {}
        error, floor = number(last.get("error")), number(last.get("floor"))
        if error is not None and floor:
            value, words = f"{times(error / floor)}×", f"the noise floor after {len(steps)} sampler steps ({USUAL})"
            good = phase.verdict == PASS
            judgement = "both nets stay together" if good else "the nets part"
            shown.append(KeyNumber(phase.name.title(), value if error else IDENTICAL, words, good, judgement))
    if phase := report.phase("self-test"):
        shown += _passed("Self-test", faults(phase), "deliberate faults caught", ("all of them", "missed"))
    gates = [check for phase in report.phases for check in phase.gates]
    return shown + _passed("Checks passed", gates, "comparisons that decide the verdict", ("all of them", "failed"))


def _output(precision: str, gates: Sequence[Check]) -> Iterator[KeyNumber]:
    checks = [check for check in gates if precision_of(check)[0] == precision]
    if most := closest(checks, precision):
        good, value = not any(check.failed for check in checks), measured(most, precision)
        allowed = [limit for check in (most, *checks) if (limit := positive(check.limit))]  # none of what is not finite
        words = SCALES[precision].words.format(limit=next(iter(allowed), 0.0))
        if identical([check for check in checks if check.limit]):
            value, words = IDENTICAL, "every number is the original's"
        yield KeyNumber(f"{precision} output", value, words, good, "within the limit" if good else "over the limit")


def _passed(label: str, checks: Sequence[Check], words: str, judgements: tuple[str, str]) -> list[KeyNumber]:
    wrong = sum(check.failed for check in checks)
    judgement = f"{wrong} {judgements[1]}" if wrong else judgements[0]
    value = f"{len(checks) - wrong} of {len(checks)}"
    return [KeyNumber(label, value, words, not wrong, judgement)] if checks else []


def faults(phase: Phase) -> list[Check]:
    """The deliberate faults of a self-test, without the harmless change, which nothing is to catch."""
    return [check for check in phase.gates if check.limit]


def tally(phase: Phase) -> str:
    """How many of the checks that decide have passed, and what they are: '25 of 25 statistics passed'."""
    unit, outcome = UNITS.get(phase.name, ("check", "passed"))
    checks = faults(phase) if phase.name == "self-test" else phase.gates
    good = sum(not check.failed for check in checks)
    return f"{good} of {plural(len(checks), unit)} {outcome}" if checks else ""


def sides(report: Report) -> list[tuple[str, dict[str, Any]]]:
    """What was compared, as far as it is known."""
    return [(label, side) for label, side in (("original", report.original), ("converted", report.converted)) if side]


def side_facts(side: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of an input: (label, value), the digest last."""
    size = _size(side)
    exact = f" ({side['size']:,} bytes)" if size and side["size"] >= 1000 else ""
    pairs = [("size", f"{size}{exact}")] if size else []
    known = ("container", "weights")
    pairs += [(label, str(side[label])) for label in known if side.get(label)]
    pairs += [
        (str(label), show(value))
        for label, value in sorted(side.items())
        if label not in ("name", "size", "sha256", "files", *known) and isinstance(value, str | int | float)
    ]
    for one in map(mapping, sequence(side.get("adapters"))):
        words = f"{one.get('name')} at {show(one.get('strength'))}, SHA-256 {one.get('sha256')}"
        pairs.append(("adapter merged into it", words))
    return pairs + ([("SHA-256", str(side["sha256"]))] if side.get("sha256") else [])


def files_of(side: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The files of a folder: name, size in words, SHA-256."""
    files = [(str(name), mapping(about)) for name, about in sorted(mapping(side.get("files")).items())]
    return [(name, _size(about) or show(None), str(about.get("sha256") or "")) for name, about in files]


def _size(about: dict[str, Any]) -> str:
    size = number(about.get("size"))
    return human_bytes(int(size)) if size is not None and 0 <= size < 1e18 else ""


def environment_facts(report: Report) -> list[tuple[str, str]]:
    """Versions and switches, the ones that people ask for first."""
    first = ("tool", "torch", "diffusers", "numpy", "python")
    known = report.environment
    order = [key for key in first if key in known] + sorted(key for key in known if key not in first)
    return [(key.replace("_", " "), _spell(known[key])) for key in order]


def _spell(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_spell, value))
    return str(value) if type(value) is int else show(value)


def tables(phase: Phase) -> Iterator[dict[str, Any]]:
    """Numbers to read one by one: `title`, `words`, `header`, and `rows`, each as long as the header."""
    for table in map(mapping, sequence(phase.detail.get("tables"))):
        header = [str(name) for name in sequence(table.get("header"))]
        rows = [(sequence(row) + [None] * len(header))[: len(header)] for row in sequence(table.get("rows"))]
        if header and rows:
            yield {"title": table.get("title", ""), "words": table.get("words", ""), "header": header, "rows": rows}


def pictures(phase: Phase) -> Iterator[dict[str, str]]:
    """Small pictures side by side: `title`, `words`, and `png`, the file in base64."""
    for picture in map(mapping, sequence(phase.detail.get("pictures"))):
        png = picture.get("png")
        if isinstance(png, str) and re.fullmatch("[A-Za-z0-9+/]+=*", png):
            yield {"title": str(picture.get("title", "")), "words": str(picture.get("words", "")), "png": png}


def grouped(phase: Phase) -> dict[str, list[Check]]:
    """The checks under what they are about, in the order in which the report has them; under '' where none has two."""
    groups: dict[str, list[Check]] = {}
    for check in phase.checks:
        groups.setdefault(check.what, []).append(check)
    return groups if len(groups) < len(phase.checks) else {"": phase.checks}


def localised(phase: Phase, name: str) -> list[dict[str, Any]]:
    """The `stages` or `repairs` that the search for a fault came to."""
    return [mapping(item) for item in sequence(mapping(phase.detail.get("localisation")).get(name))]


def repairs(phase: Phase) -> list[tuple[str, bool]]:
    """What was tried to mend a failure: (words, whether it restores parity), the ones that do first."""
    proposals = [(str(item.get("words", "")), bool(item.get("restores"))) for item in localised(phase, "repairs")]
    return sorted(proposals, key=lambda repair: not repair[1])


def faulty(phase: Phase) -> list[str]:
    """The stages that differ on their own, with what is wrong in them first: 'block 14 (attn1 q, attn1 k)'.

    Of the parts those are named that are called like the first, but for a letter: what comes after inherits the error.
    """
    names = []
    for stage in localised(phase, "stages"):
        if stage.get("faulty"):
            inside = map(mapping, sequence(stage.get("inside")))
            wrong = [str(part.get("name", "")) for part in inside if part.get("faulty")]
            first = [name for name in wrong if re.sub(r" \w$", " ", name) == re.sub(r" \w$", " ", wrong[0])]
            names.append(str(stage.get("name", "")) + (f" ({', '.join(first)})" if any(first) else ""))
    return names


def diagnosis(report: Report) -> list[str]:
    """What a FAIL comes down to, as far as that was found: what would mend it, else where it goes wrong."""
    function = report.phase("function")
    if report.verdict != FAIL or function is None:
        return []
    stages = [f"It goes wrong in {shortened(stages, 6)}"] if (stages := faulty(function)) else []
    return [words for words, restores in repairs(function) if restores] or stages
