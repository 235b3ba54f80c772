"""The HTML report: one file that opens offline, with pictures and without a script.

What makes it safe to hold text from any file: jinja2 escapes every value, each is cleaned of control characters
before, and a content security policy in the page forbids whatever might slip through to run or to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from ..errors import UsageError, printable
from . import facts
from .figures import figures, localisation, styled
from .figures.drawing import NEEDS
from .numbers import duration, mapping, sequence, show
from .report import NOT_RUN, Check, Phase, Report, worst
from .wording import Wording

TEXT_LIMIT, NAME_LIMIT = 2000, 200


def page(reports: Sequence[Report], wording: Wording) -> str:
    """The HTML of one or several reports. Raises: UsageError without jinja2 or matplotlib, which are extras."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise UsageError(NEEDS.format("jinja2")) from error

    with styled():
        views = [_view(report, i, wording) for i, report in enumerate(reports, 1)]
    html: str = _template(jinja2, Markup).render(
        style=_read("report.css"),
        verdict=worst(reports),
        views=views,
        marks=facts.MARKS,
        wording=wording,
    )
    return html.strip() + "\n"


@cache
def _template(jinja2: Any, markup: type[str]) -> Any:
    def cleaned(value: object) -> object:
        """What every `{{ }}` of the template passes through. Only what this package has drawn is taken as markup."""
        return value if isinstance(value, markup | jinja2.Undefined) else printable(value, TEXT_LIMIT)

    environment = jinja2.Environment(autoescape=True, finalize=cleaned, trim_blocks=True, lstrip_blocks=True)
    environment.filters["show"] = show
    environment.filters["brief"] = lambda value: printable(value, NAME_LIMIT)
    environment.filters["drawn"] = markup
    return environment.from_string(_read("report.html.j2"))


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _view(report: Report, place: int, wording: Wording) -> dict[str, Any]:
    """A report as the template wants it."""
    return {
        "report": report,
        "anchor": f"report-{place}",
        "name": f"{wording.subject}{wording.name or facts.name_of(report)}",
        "numbers": facts.key_numbers(report),
        "diagnosis": facts.diagnosis(report),
        "sides": [
            {"label": label, "name": side.get("name") or "unnamed", "facts": facts.side_facts(side), "files": found}
            for label, side in (("Original", report.original), ("Converted", report.converted))
            if side
            for found in [facts.files_of(side)]
        ],
        "phases": [_phase(phase, wording) for phase in report.phases],
        "waived": list(facts.waived(report)),
        "environment": facts.environment_facts(report),
        "took": duration(report.run.get("seconds")),
    }


def _phase(phase: Phase, wording: Wording) -> dict[str, Any]:
    decided, repairs = phase.gates, facts.repairs(phase)
    mended = {words for words, _ in repairs}
    return {
        "phase": phase,
        "ran": phase.verdict != NOT_RUN,
        "failed": list(phase.failed),
        "passed": sum(bool(check.passed or check.waived) for check in decided),
        "decided": len(decided),
        "groups": list(_groups(phase)),
        "where": list(localisation(phase)),
        "figures": list(figures(phase)),
        "about": wording.about.get(phase.name, ""),
        "cases": [mapping(case) for case in sequence(phase.detail.get("cases"))],
        "tables": list(facts.tables(phase)),
        "notes": [note for note in phase.notes if note not in mended],
        "repairs": repairs,
        "mutants": sorted(decided, key=lambda check: bool(check.passed)) if phase.name == "self-test" else [],
    }


def _groups(phase: Phase) -> Iterator[tuple[str, list[Check]]]:
    """The checks under what they are about, in the order in which the report has them."""
    groups: dict[str, list[Check]] = {}
    for check in phase.checks:
        groups.setdefault(check.what, []).append(check)
    if all(len(checks) == 1 for checks in groups.values()):
        groups = {"": phase.checks} if phase.checks else {}
    yield from groups.items()
