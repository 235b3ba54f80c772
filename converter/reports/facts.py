"""What several kinds of report tell alike: the order of verdicts, their meaning, and the numbers that matter most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any

from ..errors import human_bytes
from .numbers import mapping, number, positive, sequence, show, times
from .report import FAIL, FLOOR_LIMIT, INCONCLUSIVE, INTERNAL, NOT_RUN, PASS, REJECTED, Check, Phase, Report

MARKS = {PASS: "✓", FAIL: "✗", INCONCLUSIVE: "?", REJECTED: "⊘", INTERNAL: "!", NOT_RUN: "–"}


@dataclass(frozen=True)
class Table:
    """Numbers of a phase to read one by one: `detail["tables"]` holds such, as dicts."""

    title: str
    words: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @property
    def numeric(self) -> list[bool]:
        """Of each column whether it holds numbers alone."""
        return [all(number(value) is not None for value in column) for column in zip(*self.rows, strict=True)]


def name_of(report: Report) -> str:
    """What a report is about, in a few words: the converted model's name, its path where it is one of several, or the
    original's name."""
    names = (report.run.get("converted_path"), report.converted.get("name"), report.original.get("name"))
    return next((str(name) for name in names if name), "unnamed")


def waived(report: Report) -> Iterator[tuple[Phase, Check]]:
    return ((phase, check) for phase in report.phases for check in phase.checks if check.waived)


def precision_of(check: Check) -> tuple[str, str]:
    """'float32 relative L2' is of float32, and a relative L2."""
    precision, _, statistic = check.statistic.partition(" ")
    return precision, statistic


def floor_limit(phase: Phase) -> float:
    """How many times the noise floor is allowed."""
    return positive(mapping(phase.detail.get("blocks")).get("limit")) or FLOOR_LIMIT


def margin(check: Check) -> float | None:
    """What share of its limit a check uses up: above 1 it fails; None where the two are not numbers."""
    value, limit = number(check.value), number(check.limit)
    if value is None or limit is None:
        return None
    if isnan(value) or isnan(limit):
        return inf
    return value / limit if limit > 0 else inf if value > 0 else 0.0


@dataclass(frozen=True)
class KeyNumber:
    """One of the few numbers that a headline shows: '1.06×', 'the original's own noise floor (limit 3)'."""

    label: str
    value: str
    words: str
    good: bool


def key_numbers(report: Report) -> list[KeyNumber]:
    """What a person asks first: how many checks passed, how far from the limits, and whether faults would be seen."""
    decided = [check for phase in report.phases for check in phase.gates]
    shown = []
    if decided:
        passed = sum(bool(check.passed or check.waived) for check in decided)
        shown.append(
            KeyNumber("Checks passed", f"{passed} of {len(decided)}", "that decide the verdict", passed == len(decided))
        )
    function = report.phase("function")
    if function is not None:
        for precision, unit, words in (
            ("float32", floor_limit(function), "the original's own noise floor"),
            ("float64", 1.0, "the limit"),
        ):
            used = [(margin(check), check) for check in function.gates if precision_of(check)[0] == precision]
            numbers = [used for used, _ in used if used is not None]
            if numbers:
                good = all(check.passed or check.waived for _, check in used)
                limit = f" (limit {show(unit)})" if unit != 1 else ""
                largest = times(max(numbers) * unit)
                shown.append(KeyNumber(f"Worst in {precision}", f"{largest}×", f"{words}{limit}", good))
    if (steps := trajectory(report)) and steps.words:
        shown.append(steps)
    mutants = phase.gates if (phase := report.phase("self-test")) else []
    if mutants:
        killed = sum(bool(check.passed) for check in mutants)
        words = "caught by the checks: deliberate faults; let pass: a harmless change"
        shown.append(KeyNumber("Self-test", f"{killed} of {len(mutants)}", words, killed == len(mutants)))
    return shown


def trajectory(report: Report) -> KeyNumber | None:
    """How far sampling drifts apart, at the last step."""
    phase = report.phase("trajectory")
    steps = sequence(phase.detail.get("steps")) if phase else []
    last = mapping(steps[-1]) if steps else {}
    error, floor = number(last.get("error")), number(last.get("floor"))
    if phase is None or error is None or not floor:
        return None
    words = f"the noise floor after {len(steps)} sampler steps"
    return KeyNumber("Trajectory", f"{times(error / floor)}×", words, phase.verdict == PASS)


def sides(report: Report) -> list[tuple[str, dict[str, Any]]]:
    """What was compared, as far as it is known: 'original' and 'converted'."""
    return [(label, side) for label in ("original", "converted") if (side := getattr(report, label))]


def side_facts(side: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of an input: (label, value), the digest last."""
    size = number(side.get("size"))
    pairs = [("size", _bytes(int(size)))] if size is not None and 0 <= size < 1e18 else []
    known = ("container", "weights")
    pairs += [(label, str(side[label])) for label in known if side.get(label)]
    pairs += [
        (str(label), show(value))
        for label, value in sorted(side.items())
        if label not in ("name", "size", "sha256", "files", *known) and isinstance(value, str | int | float)
    ]
    return pairs + ([("SHA-256", str(side["sha256"]))] if side.get("sha256") else [])


def _bytes(count: int) -> str:
    return human_bytes(count) if count < 1000 else f"{human_bytes(count)} ({count:,} bytes)"


def files_of(side: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The files of a folder: name, size in words, SHA-256."""
    rows = []
    for name, about in sorted(mapping(side.get("files")).items()):
        size = number(mapping(about).get("size"))
        words = human_bytes(int(size)) if size is not None and 0 <= size < 1e18 else show(None)
        rows.append((str(name), words, str(mapping(about).get("sha256") or "")))
    return rows


def environment_facts(report: Report) -> list[tuple[str, str]]:
    """Versions and switches, the ones that people ask for first."""
    first = ("tool", "torch", "diffusers", "numpy", "python")
    known = report.environment
    order = [key for key in first if key in known] + sorted(key for key in known if key not in first)
    return [(key.replace("_", " "), _spell(known[key])) for key in order]


def _spell(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_spell(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_spell(item)}" for key, item in sorted(value.items()))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else show(value)


def tables(phase: Phase) -> Iterator[Table]:
    """The tables of a phase, every row as long as its header."""
    for raw in map(mapping, sequence(phase.detail.get("tables"))):
        header = [str(name) for name in sequence(raw.get("header"))]
        rows = [(sequence(row) + [None] * len(header))[: len(header)] for row in sequence(raw.get("rows"))]
        if header and rows:
            yield Table(str(raw.get("title", "")), str(raw.get("words", "")), header, rows)


def cases(phase: Phase) -> list[dict[str, Any]]:
    """The cases that were run: `name`, and as `axes` what each tries."""
    return [mapping(case) for case in sequence(phase.detail.get("cases"))]


def repairs(phase: Phase) -> list[tuple[str, bool]]:
    """What was tried to mend a failure: (words, whether it restores parity), the ones that do first."""
    raw: Sequence[Any] = sequence(mapping(phase.detail.get("localisation")).get("repairs"))
    proposals = [(str(mapping(item).get("words", "")), bool(mapping(item).get("restores"))) for item in raw]
    return sorted(proposals, key=lambda repair: not repair[1])


def faulty(phase: Phase) -> list[str]:
    """The stages that differ on their own, with what is wrong in them first: 'block 14 (attn1 q, attn1 k)'."""
    names = []
    for stage in sequence(mapping(phase.detail.get("localisation")).get("stages")):
        if mapping(stage).get("faulty"):
            named = ", ".join(_first([mapping(part) for part in sequence(stage.get("inside"))]))
            names.append(f"{stage.get('name', '')} ({named})" if named else str(stage.get("name", "")))
    return names


def _first(inside: Sequence[dict[str, Any]]) -> list[str]:
    """The first part that is wrong, and its siblings ("attn1 q", "attn1 k"): what comes after inherits the error."""
    wrong = [str(part.get("name", "")) for part in inside if part.get("faulty")]
    group, _, letter = wrong[0].rpartition(" ") if wrong else ("", "", "")
    return [name for i, name in enumerate(wrong) if i == 0 or (len(letter) == 1 and _sibling(name, group))]


def _sibling(name: str, group: str) -> bool:
    return name.startswith(f"{group} ") and len(name) == len(group) + 2


def diagnosis(report: Report) -> list[str]:
    """What a FAIL comes down to, as far as that was found: what would mend it, else where it goes wrong."""
    function = report.phase("function")
    if report.verdict != FAIL or function is None:
        return []
    mended = [words for words, restores in repairs(function) if restores]
    stages = faulty(function)
    return mended or (
        [f"It goes wrong in {', '.join(stages[:6])}" + (" and more" if len(stages) > 6 else "")] if stages else []
    )
