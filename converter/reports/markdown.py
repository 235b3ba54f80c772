"""Reports as Markdown: for a job summary, and as a card to publish beside the weights.

A summary has the verdict first, then what each phase says, then what failed and what would mend it. With a card
anybody can check the claim again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from . import facts
from .markdown_text import blocks, bullets, code, fenced, table, text, under
from .numbers import duration, show
from .published import published
from .report import FAIL, INCONCLUSIVE, INTERNAL, NOT_RUN, PASS, REJECTED, Check, Phase, Report, worst
from .wording import PARITY, Wording

ICONS = {PASS: "✅", FAIL: "❌", INCONCLUSIVE: "⚠️", REJECTED: "⛔", INTERNAL: "💥", NOT_RUN: "⚪"}
NOISE = "float32 output"
FAILED_ROWS = 50  # a job summary may hold 1 MiB, and a reader's patience less


def markdown(reports: Sequence[Report], wording: Wording) -> str:
    """One or several reports. Several begin with a table of their verdicts."""
    parts: list[str] = []
    if len(reports) > 1:
        verdict = worst(reports)
        passed = sum(report.verdict == PASS for report in reports)
        parts.append(f"# {ICONS[verdict]} {verdict}: {passed} of {len(reports)} models passed")
        worsts = [{number.label: number.value for number in facts.key_numbers(report)} for report in reports]
        rows = [
            [_verdict(report.verdict), code(facts.name_of(report)), text(report.reason), values.get(NOISE, show(None))]
            for report, values in zip(reports, worsts, strict=True)
        ]
        parts.append(table(["verdict", "converted model", "reason", "worst, times the noise floor"], rows))
    for report in reports:
        parts += _summary(report, wording)
    return blocks(parts)


def card(report: Report) -> str:
    """What was compared (by SHA-256), what came out (in words), with what, and how to repeat it; no paths of this
    computer: see `published`."""
    return blocks(_card(published(report)))


def _summary(report: Report, wording: Wording) -> Iterator[str]:
    yield f"## {ICONS[report.verdict]} {report.verdict}: {wording.subject}{code(wording.name or facts.name_of(report))}"
    yield f"**{text(report.headline)}**" if report.headline else ""
    yield text(report.details)
    yield wording.meaning[report.verdict]
    subjects = []
    for label, side in facts.sides(report):
        digest = f", SHA-256 {code(side['sha256'])}" if side.get("sha256") else ""
        subjects.append(f"{label.replace('original', 'Original')} {code(side.get('name', 'unnamed'))}{digest}")
    took = duration(report.run.get("seconds"))
    words = ["; ".join(subjects) + "." * bool(subjects), f"Took {took}." if took else "", _cached(report)]
    yield " ".join(filter(None, words))
    yield from _numbers(report)
    failed = [(phase, check) for phase in report.phases for check in phase.failed]
    yield under("### What failed", _checks(failed[:FAILED_ROWS]))
    yield f"... and {len(failed) - FAILED_ROWS} more." if len(failed) > FAILED_ROWS else ""
    for phase in report.phases:
        yield from _details(phase)
    why = "These hyper-parameters have no evidence in the original file, and nobody gave them:"
    yield under("### Assumed", why, _assumed(report))
    notes = [text(note) for note in report.notes]
    notes += [f"{text(phase.name)}: {text(note)}" for phase in report.phases for note in phase.notes]
    yield under("### Notes", bullets(notes))
    yield under("### Waivers used", _checks(facts.waived(report), "reason of the waiver"))


def _card(report: Report) -> Iterator[str]:
    took, command = duration(report.run.get("seconds")), report.run.get("command")
    yield f"# Verification of {code(facts.name_of(report))}"
    yield f"{ICONS[report.verdict]} **{report.verdict}**: {text(report.reason) or PARITY.meaning[report.verdict]}"
    yield PARITY.meaning[report.verdict] if report.reason.strip() else ""
    if report.run.get("date"):
        yield f"Checked on {text(report.run['date'])}{f', in {took}' if took else ''}."
    yield _cached(report)
    yield "## What was compared"
    rows = []
    for label, side in facts.sides(report):
        about = "; ".join(f"{k}: {text(v, 200)}" for k, v in facts.side_facts(side) if k != "SHA-256")
        rows.append([label, code(side.get("name", "unnamed")), about, code(side.get("sha256", ""))])
    yield table(["", "name", "about", "SHA-256"], rows) or "Nothing is known of the inputs."
    files = [[code(name), size, code(digest)] for name, size, digest in facts.files_of(report.converted)]
    yield under("Files of the converted model:", table(["file", "size", "SHA-256"], files))
    yield "## What came out"
    yield from _numbers(report)
    waived = (f"{text(c.what, 200)}, {text(c.statistic, 200)}: {text(c.waived)}" for _, c in facts.waived(report))
    yield under("Waivers were used:", bullets(waived))
    yield "## Assumed hyper-parameters"
    why = "The original file holds no evidence for these. If one is wrong, both nets are equally wrong."
    yield under(why, _assumed(report)) or "None: all of them are shown by the original file, or were given."
    yield "## How to repeat it"
    versions = [[text(label), code(value)] for label, value in facts.environment_facts(report)]
    yield under("Made with:", table(["", ""], versions))
    yield "Compare the SHA-256 of your files with those above (`sha256sum FILE`), install the same versions, then run:"
    yield fenced(command, "sh") if command else "The command was not recorded."
    expected = "It exits with 0 and says PASS." if report.verdict == PASS else f"It exits with {report.exit_code}."
    yield f"{expected} Its JSON report is the same, byte for byte, but for the block `run`: date, duration and paths."
    threads = report.environment.get("threads")
    if isinstance(threads, int) and "--threads" not in str(command):
        yield f"With another number of cores that takes `--threads {threads}`; another processor may round otherwise."


def _cached(report: Report) -> str:
    ran = report.run.get("cached")
    return f"The result is that of a run on {text(ran)}, on the same inputs." if ran else ""


def _numbers(report: Report) -> Iterator[str]:
    """The key numbers, and what each phase says."""
    yield bullets(f"{number.label}: **{number.value}** {text(number.words)}" for number in facts.key_numbers(report))
    rows = [[text(phase.name), _verdict(phase.verdict), text(phase.words)] for phase in report.phases]
    yield table(["phase", "verdict", "in words"], rows)


def _checks(checks: Iterable[tuple[Phase, Check]], reason: str = "") -> str:
    """A row for each check; with `reason`, of a waiver, as the heading of the last column."""
    rows = []
    for phase, check in checks:
        row = [text(phase.name), text(check.what, 200), text(check.statistic, 200), text(check.words)]
        rows.append([*row, text(check.waived)] if reason else row)
    return table(["phase", "what", "statistic", "in words", *([reason] if reason else [])], rows)


def _assumed(report: Report) -> str:
    rows = [[code(a.get("name")), code(show(a.get("value"))), text(a.get("why", ""))] for a in report.assumed]
    return table(["name", "value", "why"], rows)


def _details(phase: Phase) -> Iterator[str]:
    """Where a phase goes wrong, what would mend it, and its tables."""
    stages = (f"**{text(name)}** differs from the original on its own" for name in facts.faulty(phase))
    yield under("### Where", bullets(stages))
    repairs = (f"{'✅' if restores else '❌'} {text(words)}" for words, restores in facts.repairs(phase))
    yield under("### What would mend it", bullets(repairs))
    for about in facts.tables(phase):
        yield f"### {text(about['title'])}"
        yield text(about["words"])
        yield table([text(name) for name in about["header"]], [[text(show(v)) for v in row] for row in about["rows"]])


def _verdict(verdict: str) -> str:
    return f"{ICONS.get(verdict, '')} {text(verdict)}".strip()
