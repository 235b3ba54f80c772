"""The HTML report: one file that opens offline, with pictures and without a script.

What makes it safe to hold text from any file: jinja2 escapes every value, each is cleaned of control characters
before, and a content security policy in the page forbids whatever might slip through to run or to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from ..errors import UsageError, printable
from . import facts
from .drawing import NEEDS, styled
from .figures import figures, localisation
from .numbers import duration, show
from .report import Report, worst
from .wording import Wording

TEXT_LIMIT, NAME_LIMIT = 2000, 200


def page(reports: Sequence[Report], wording: Wording) -> str:
    """The HTML of one or several reports. Raises: UsageError without jinja2 or matplotlib, which are extras."""
    try:
        import jinja2
    except ImportError as error:
        raise UsageError(NEEDS.format("jinja2")) from error
    with styled():
        html: str = _template(jinja2).render(
            reports=reports,
            verdict=worst(reports),
            wording=wording,
            subject=lambda report: f"{wording.subject}{wording.name or facts.name_of(report)}",
        )
    return html.strip() + "\n"


@cache
def _template(jinja2: Any) -> Any:
    from markupsafe import Markup

    def cleaned(value: object) -> object:
        """What every `{{ }}` of the template passes through. Only what this package has drawn is taken as markup."""
        return value if isinstance(value, Markup | jinja2.Undefined) else printable(value, TEXT_LIMIT)

    loader = jinja2.PackageLoader(__package__, "")
    environment = jinja2.Environment(loader=loader, autoescape=True, finalize=cleaned)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {"show": show, "duration": duration, "drawn": Markup}
    environment.filters["brief"] = lambda value: printable(value, NAME_LIMIT)
    environment.globals |= {"facts": facts, "figures": figures, "localisation": localisation}
    return environment.get_template("report.html.j2")
