"""The HTML report: one file that opens offline, with pictures and without a script.

What makes it safe to hold text from any file: jinja2 escapes every value, each is cleaned of control characters
before, and a content security policy in the page forbids whatever might slip through to run or to load.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from ..errors import UsageError, plural, printable
from . import facts
from .drawing import NEEDS, styled
from .figures import figures, localisation
from .numbers import duration, show
from .report import Report, worst
from .wording import Wording

TEXT_LIMIT, NAME_LIMIT = 2000, 200
# Inside what is longer than a word a line may end as well: in a path, a key, a digest. A number is whole, and
# so is an option.
ENDS = (
    (re.compile(r"[^\s/\\.]{25,}"), lambda match: re.sub("_(?=[^_])", "_<wbr>", match[0])),
    (re.compile(r"[/\\](?=\w)|(?<=[^\W\d])\.(?=\w)|(?<=\d)\.(?=[^\W\d])"), r"\g<0><wbr>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), lambda match: re.sub(r"\w{8}(?=\w)", r"\g<0><wbr>", match[0])),
    (re.compile(r"\b\d[\d.]*e-\d+|(?<![\w-])--[a-z_]{1,40}\b"), r'<span class="whole">\g<0></span>'),
)
PLAIN_WORD = re.compile(r"[a-z][a-z0-9-]*(?=[\s,:;]|$)")


def page(reports: Sequence[Report], wording: Wording) -> str:
    """The HTML of one or several reports. Raises: UsageError without jinja2 or matplotlib, which are extras."""
    return rendered(
        "report.html.j2",
        reports=reports,
        verdict=worst(reports),
        wording=wording,
        subject=lambda report: f"{wording.subject}{wording.name or facts.name_of(report)}",
    )


def rendered(template: str, **values: Any) -> str:
    """A template of this package with values. Raises: UsageError without jinja2 or matplotlib, which are extras."""
    try:
        import jinja2
    except ImportError as error:
        raise UsageError(NEEDS.format("jinja2")) from error
    with styled():
        html: str = _environment(jinja2).get_template(template).render(values)
    return html.strip() + "\n"


@cache
def _environment(jinja2: Any) -> Any:
    from markupsafe import Markup, escape

    def cleaned(value: object) -> object:
        """What every `{{ }}` of the template passes through. Only what this package has drawn is taken as markup."""
        return value if isinstance(value, Markup | jinja2.Undefined) else printable(value, TEXT_LIMIT)

    def shown(value: object, limit: int = TEXT_LIMIT) -> Markup:
        return Markup(breakable(str(escape(printable(value, limit)))))

    loader = jinja2.PackageLoader(__package__, "")
    environment = jinja2.Environment(loader=loader, autoescape=True, finalize=cleaned)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {"show": show, "duration": duration, "drawn": Markup}
    environment.filters["brief"] = lambda value: printable(value, NAME_LIMIT)
    environment.filters |= {"prose": shown, "name": lambda value: shown(value, NAME_LIMIT)}
    environment.filters["sentence"] = lambda text: shown(capitalised(str(text)))
    environment.globals |= {"facts": facts, "figures": figures, "localisation": localisation, "plural": plural}
    return environment


def breakable(escaped: str) -> str:
    """HTML that is text only, with the places where a line may end besides between words.

    >>> breakable("blocks.0.attn.qkv is 0.5, 1e-07 apart")
    'blocks.<wbr>0.<wbr>attn.<wbr>qkv is 0.5, <span class="whole">1e-07</span> apart'
    """
    for inside, ends in ENDS:
        escaped = inside.sub(ends, escaped)
    return escaped


def capitalised(sentence: str) -> str:
    """With a capital, unless it begins with the name of a tensor or a file.

    >>> capitalised("no converted folder"), capitalised("attn1.to_q and attn1.to_k swapped")
    ('No converted folder', 'attn1.to_q and attn1.to_k swapped')
    """
    return sentence[0].upper() + sentence[1:] if PLAIN_WORD.match(sentence) else sentence
