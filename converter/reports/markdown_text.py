"""Markdown that text from a file cannot break out of: no HTML, no links, no mentions, no extra table columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..errors import printable

NAME_LIMIT, WORDS_LIMIT = 200, 600
# Everything that begins a construct of GitHub's Markdown, wherever it stands. Each becomes a character reference.
# (An underscore inside a word begins none.)
SPECIAL = re.compile(r"[&<>|`*\[\]\\~@#$!{}^]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# A character reference hides a mention or a bare address from the parser, but not from the filters that run on the
# rendered text. A zero-width space inside does; `printable` has spelled out any that the text itself held.
LINKS = re.compile(r"(&#64;|&#35;(?=\w)|(?<=\w):(?=//)|\bmailto:|\bxmpp:|\bwww(?=\.))", re.IGNORECASE)
SAFE_CODE = re.compile(r"[\w./ +=:,%()-]*[\w./+=:,%()-]", re.ASCII)


def text(raw: object, limit: int = WORDS_LIMIT) -> str:
    """Prose of whatever origin, as one line that shows as itself.

    >>> text("<b>|x|")
    '&#60;b&#62;&#124;x&#124;'
    """
    escaped = SPECIAL.sub(lambda match: f"&#{ord(match[0])};", printable(raw, limit).strip())
    return LINKS.sub(lambda match: match[0] + "&#8203;", escaped)


def code(raw: object, limit: int = NAME_LIMIT) -> str:
    """A name, a digest or a value, in the typeface of code; it may hold backticks and pipes."""
    shown = printable(raw, limit).strip()
    if not shown:
        return ""
    if SAFE_CODE.fullmatch(shown):
        return f"`{shown}`"
    return f"<code>{text(shown, len(shown))}</code>"


def fenced(raw: object, language: str = "", limit: int = 8000) -> str:
    """A block of code. Lines stay lines; the fence is longer than any run of backticks inside."""
    lines = [printable(line, limit) for line in str(raw)[:limit].splitlines()]
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; every row has the columns of the header. '' without a row."""
    lines = [header, ["---"] * len(header), *rows]
    if odd := next((cells for cells in lines if len(cells) != len(header)), None):
        raise ValueError(f"a row of {len(odd)} cells in a table of {len(header)} columns")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) if len(lines) > 2 else ""


def bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def under(*parts: str) -> str:
    """What stands above something, and that; '' where there is nothing."""
    return "\n\n".join(parts) if parts[-1] else ""


def blocks(parts: Iterable[str]) -> str:
    """Paragraphs, with an empty line between them."""
    return "\n\n".join(filter(None, parts)) + "\n"
