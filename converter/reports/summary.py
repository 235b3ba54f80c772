"""Markdown for a job summary: the verdict first, then what each phase says, then what failed and what would mend it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import facts
from .markdown_text import blocks, bullets, code, table, text
from .numbers import duration, show
from .report import FAIL, INCONCLUSIVE, INTERNAL, NOT_RUN, PASS, REJECTED, Phase, Report, worst
from .wording import Wording

ICONS = {PASS: "✅", FAIL: "❌", INCONCLUSIVE: "⚠️", REJECTED: "⛔", INTERNAL: "💥", NOT_RUN: "⚪"}
FAILED_ROWS = 50  # a job summary may hold 1 MiB, and a reader's patience less


def markdown(reports: Sequence[Report], wording: Wording) -> str:
    """One or several reports. Several begin with a table of their verdicts."""
    parts: list[str] = []
    if len(reports) > 1:
        verdict = worst(reports)
        passed = sum(report.verdict == PASS for report in reports)
        parts.append(f"# {ICONS[verdict]} {verdict}: {passed} of {len(reports)} models passed")
        rows = [[_verdict(r.verdict), code(facts.name_of(r)), text(r.reason), _worst(r)] for r in reports]
        parts.append(table(["verdict", "converted model", "reason", "worst, times the noise floor"], rows))
    for report in reports:
        parts += _report(report, wording)
    return blocks(parts)


def _report(report: Report, wording: Wording) -> Iterator[str]:
    yield f"## {ICONS[report.verdict]} {report.verdict}: {wording.subject}{code(wording.name or facts.name_of(report))}"
    yield f"**{text(report.reason)}**" if report.reason.strip() else ""
    yield wording.meaning[report.verdict]
    yield _subject(report)
    yield bullets(f"{number.label}: **{number.value}** {text(number.words)}" for number in facts.key_numbers(report))
    if report.phases:
        rows = [[text(phase.name), _verdict(phase.verdict), text(phase.words)] for phase in report.phases]
        yield table(["phase", "verdict", "in words"], rows)
    yield from _failed(report)
    for phase in report.phases:
        yield from _localised(phase)
        for about in facts.tables(phase):
            yield f"### {text(about.title)}"
            yield text(about.words)
            yield table([text(name) for name in about.header], [[text(show(v)) for v in row] for row in about.rows])
    if report.assumed:
        yield "### Assumed"
        yield "These hyper-parameters have no evidence in the original file, and nobody gave them:"
        rows = [[code(a.get("name")), code(show(a.get("value"))), text(a.get("why", ""))] for a in report.assumed]
        yield table(["name", "value", "why"], rows)
    yield from _notes(report)


def _subject(report: Report) -> str:
    parts = []
    for label, side in (("Original", report.original), ("converted", report.converted)):
        if side:
            digest = f", SHA-256 {code(side['sha256'])}" if side.get("sha256") else ""
            parts.append(f"{label} {code(side.get('name', 'unnamed'))}{digest}")
    words = "; ".join(parts) + "." if parts else ""
    if took := duration(report.run.get("seconds")):
        words += f" Took {took}."
    if report.run.get("cached"):
        words += f" The result is that of a run on {text(report.run['cached'])}, on the same inputs."
    return words.strip()


def _failed(report: Report) -> Iterator[str]:
    failed = [(phase, check) for phase in report.phases for check in phase.failed]
    if failed:
        yield "### What failed"
        rows = [
            [text(phase.name), text(check.what, 200), text(check.statistic, 200), text(check.words)]
            for phase, check in failed[:FAILED_ROWS]
        ]
        yield table(["phase", "what", "statistic", "in words"], rows)
    if len(failed) > FAILED_ROWS:
        yield f"... and {len(failed) - FAILED_ROWS} more."


def _localised(phase: Phase) -> Iterator[str]:
    found, tried = facts.faulty(phase), facts.repairs(phase)
    if found:
        yield "### Where"
        yield bullets(f"**{text(name)}** differs from the original on its own" for name in found)
    if tried:
        yield "### What would mend it"
        yield bullets(f"{'✅' if restores else '❌'} {text(words)}" for words, restores in tried)


def _notes(report: Report) -> Iterator[str]:
    notes = [text(note) for note in report.notes]
    notes += [f"{text(phase.name)}: {text(note)}" for phase in report.phases for note in phase.notes]
    if notes:
        yield "### Notes"
        yield bullets(notes)
    used = list(facts.waived(report))
    if used:
        yield "### Waivers used"
        rows = [
            [text(p.name), text(c.what, 200), text(c.statistic, 200), text(c.words), text(c.waived)] for p, c in used
        ]
        yield table(["phase", "what", "statistic", "in words", "reason of the waiver"], rows)


def _verdict(verdict: str) -> str:
    return f"{ICONS.get(verdict, '')} {text(verdict)}".strip()


def _worst(report: Report) -> str:
    numbers = [number.value for number in facts.key_numbers(report) if number.label == "Worst in float32"]
    return numbers[0] if numbers else show(None)
