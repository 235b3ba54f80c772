"""The verification card: a page to publish beside converted weights, so that anybody can check the claim again."""

from __future__ import annotations

from collections.abc import Iterator

from . import facts
from .markdown_text import blocks, bullets, code, fenced, table, text
from .numbers import duration, show
from .published import published
from .report import PASS, Report
from .summary import ICONS
from .wording import PARITY


def card(report: Report) -> str:
    """Markdown: what was compared (by SHA-256), what came out (in words), with what, and how to repeat it; no paths of
    this computer: see `published`."""
    return blocks(_card(published(report)))


def _card(report: Report) -> Iterator[str]:
    yield f"# Verification of {code(facts.name_of(report))}"
    yield f"{ICONS[report.verdict]} **{report.verdict}**: {text(report.reason) or PARITY.meaning[report.verdict]}"
    yield PARITY.meaning[report.verdict] if report.reason.strip() else ""
    if report.run.get("date"):
        yield f"Checked on {text(report.run['date'])}{_took(report)}."
    if report.run.get("cached"):
        yield f"The result is that of a run on {text(report.run['cached'])}, on the same inputs."

    yield "## What was compared"
    rows = []
    for label, side in (("original", report.original), ("converted", report.converted)):
        if side:
            about = "; ".join(f"{k}: {text(v, 200)}" for k, v in facts.side_facts(side) if k != "SHA-256")
            rows.append([label, code(side.get("name", "unnamed")), about, code(side.get("sha256", ""))])
    yield table(["", "name", "about", "SHA-256"], rows) if rows else "Nothing is known of the inputs."
    files = facts.files_of(report.converted)
    if files:
        yield "Files of the converted model:"
        yield table(["file", "size", "SHA-256"], [[code(name), size, code(digest)] for name, size, digest in files])

    yield "## What came out"
    yield bullets(f"{number.label}: **{number.value}** {text(number.words)}" for number in facts.key_numbers(report))
    if report.phases:
        rows = [[text(p.name), f"{ICONS.get(p.verdict, '')} {text(p.verdict)}", text(p.words)] for p in report.phases]
        yield table(["phase", "verdict", "in words"], rows)
    used = list(facts.waived(report))
    if used:
        yield "Waivers were used:"
        yield bullets(f"{text(c.what, 200)}, {text(c.statistic, 200)}: {text(c.waived)}" for _, c in used)

    yield "## Assumed hyper-parameters"
    if report.assumed:
        yield "The original file holds no evidence for these. If one is wrong, both nets were built wrong alike."
        rows = [[code(a.get("name")), code(show(a.get("value"))), text(a.get("why", ""))] for a in report.assumed]
        yield table(["name", "value", "why"], rows)
    else:
        yield "None: all of them are shown by the original file, or were given."
    yield from _repeat(report)


def _repeat(report: Report) -> Iterator[str]:
    yield "## How to repeat it"
    made_with = facts.environment_facts(report)
    if made_with:
        yield "Made with:"
        yield table(["", ""], [[text(label), code(value)] for label, value in made_with])
    yield "Compare the SHA-256 of your files with those above (`sha256sum FILE`), install the same versions, then run:"
    command = report.run.get("command")
    yield fenced(command, "sh") if command else "The command was not recorded."
    expected = "It exits with 0 and says PASS." if report.verdict == PASS else f"It exits with {report.exit_code}."
    yield f"{expected} Its JSON report is the same, byte for byte, but for the block `run`: date, duration and paths."
    threads = report.environment.get("threads")
    if isinstance(threads, int) and "--threads" not in str(command):
        yield f"With another number of cores that takes `--threads {threads}`; another processor may round otherwise."


def _took(report: Report) -> str:
    took = duration(report.run.get("seconds"))
    return f", in {took}" if took else ""
