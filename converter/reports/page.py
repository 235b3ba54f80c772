"""The HTML report: one file that opens offline, with pictures and without a script.

What makes it safe to hold text from any file: jinja2 escapes every value, each is cleaned of control characters
before, and a content security policy in the page forbids whatever might slip through to run or to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from ..errors import UsageError, printable
from . import facts
from .drawing import NEEDS, styled
from .figures import figures, localisation
from .numbers import duration, show
from .report import Check, Phase, Report, worst
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
        html: str = _template(jinja2, Markup).render(
            reports=reports,
            verdict=worst(reports),
            wording=wording,
            subject=lambda report: f"{wording.subject}{wording.name or facts.name_of(report)}",
            style=_read("report.css"),
        )
    return html.strip() + "\n"


@cache
def _template(jinja2: Any, markup: type[str]) -> Any:
    def cleaned(value: object) -> object:
        """What every `{{ }}` of the template passes through. Only what this package has drawn is taken as markup."""
        return value if isinstance(value, markup | jinja2.Undefined) else printable(value, TEXT_LIMIT)

    environment = jinja2.Environment(autoescape=True, finalize=cleaned, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"show": show, "duration": duration, "drawn": markup}
    environment.filters["brief"] = lambda value: printable(value, NAME_LIMIT)
    environment.globals |= {"facts": facts, "figures": figures, "localisation": localisation, "grouped": grouped}
    return environment.from_string(_read("report.html.j2"))


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def grouped(phase: Phase) -> dict[str, list[Check]]:
    """The checks under what they are about, in the order in which the report has them; under '' where none has two."""
    groups: dict[str, list[Check]] = {}
    for check in phase.checks:
        groups.setdefault(check.what, []).append(check)
    return groups if len(groups) < len(phase.checks) else {"": phase.checks}
