"""Reports as files: JSON for scripts, JUnit for a CI service, Markdown for a job summary, HTML for people.

Everything here only reads a `Report`; whatever text it holds may come from a hostile file, and is escaped.

>>> from converter.reports.report import Report
>>> render([Report("PASS", "outputs identical in float32")], ".md").splitlines()[0]
'## ✅ PASS: `unnamed`'
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from .report import EXIT_CODES, REPORT_VERSION, Report, gravity, worst
from .wording import PARITY, Wording

__all__ = ["KINDS", "render", "worst"]

KINDS = (".json", ".xml", ".md", ".html")


def to_json(reports: Sequence[Report]) -> str:
    """One report as it is; several under their common verdict. Canonical: sorted keys, the same bytes every time."""
    if len(reports) == 1:
        return reports[0].to_json()
    verdict = worst(reports)
    content = {
        "version": REPORT_VERSION,
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "reports": [report.as_dict() for report in reports],
    }
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"


def render(reports: Sequence[Report], suffix: str, wording: Wording = PARITY) -> str:
    """The text of a file with that suffix, for one or several reports of one kind. People see the worst first; programs
    see them in the order of the comparisons.

    Raises: ValueError for another suffix, or without a report: nothing compared is no result to show.
    UsageError for HTML without jinja2 or matplotlib.
    """
    if suffix not in KINDS:
        raise ValueError(f"a report is one of {', '.join(KINDS)}, not {suffix!r}")
    if not reports:
        raise ValueError("no report to render")
    # Imported where they are used: a conversion shows no report.
    from .junit import junit
    from .markdown import markdown
    from .page import page

    if suffix in (".json", ".xml"):
        return to_json(reports) if suffix == ".json" else junit(reports)
    return (markdown if suffix == ".md" else page)(sorted(reports, key=gravity), wording)
