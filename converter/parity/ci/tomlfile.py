"""TOML files that people write for the checker, read strictly: an unknown key is an error.

A misspelt `profil = "full"` that is silently ignored is a nightly run that checks less than its owner believes.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any

from ...checkpoint.file import InputFile
from ...errors import InputError, UsageError, printable
from ..choices import Rule, wanted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LIMIT = 1_000_000  # bytes; people write some hundreds
MOST_PARTS = 16  # of a dotted key, whose every part holds the next: the parser's time and memory grow with the square
DEEPEST = 16  # arrays and inline tables inside each other
_TOKEN = re.compile(
    r'''"""(?:[^\\]|\\.)*?"""|\'\'\'.*?\'\'\'|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#[^\n]*|[\w+-]+|[ \t]+|.''',
    re.DOTALL,
)


def refusal(path: str | os.PathLike[str], where: str, rule: str) -> UsageError:
    """The error that names the file, the table and key in it ('' for the whole), and the rule."""
    return UsageError(": ".join(filter(None, [printable(path), where, rule])))


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a TOML file, or a `UsageError` in one line."""
    try:
        with InputFile(path) as file:
            if file.size > LIMIT:
                raise refusal(path, "", f"{file.size} bytes, where {LIMIT} are allowed")
            raw = file.read(0, file.size)
    except InputError as error:
        raise UsageError(str(error)) from None
    try:
        content = raw.decode()
        if rule := _excessive(content):
            raise refusal(path, "", f"not TOML that people write: {rule}")
        return tomllib.loads(content)
    except RecursionError:
        raise refusal(path, "", "not TOML that people write: nested too deeply") from None
    except ValueError as error:  # of TOML, of UTF-8, of a number with thousands of digits
        raise refusal(path, "", f"not TOML: {printable(error)}") from None


def _excessive(content: str) -> str:
    """What would take the parser too long, '' where nothing would. One pass, in linear time."""
    parts, depth = 1, 0
    for match in _TOKEN.finditer(content):
        token = match[0]
        if token == ".":
            parts += 1
        elif not (token[0].isalnum() or token[0] in "_+- \t\"'"):
            parts = 1  # a key ends here
        if token in ('"', "'"):  # not closed, so that nothing after it is read as TOML
            return ""
        depth += (token in ("[", "{")) - (token in ("]", "}"))
        if parts > MOST_PARTS or depth > DEEPEST:
            long = f"a key of more than {MOST_PARTS} parts"
            rule = long if parts > MOST_PARTS else f"more than {DEEPEST} arrays and tables inside each other"
            return f"line {1 + content.count(chr(10), 0, match.start())}: {rule}"
    return ""


def strict(
    path: str | os.PathLike[str], where: str, table: Any, known: Mapping[str, Rule], *, needed: Collection[str] = ()
) -> dict[str, Any]:
    """A table, each of whose values keeps its rule; every key has to be known, and the needed ones there.

    >>> strict("parity.toml", "[[checkpoint]] 2", {"profil": "full"}, {"profile": text})
    Traceback (most recent call last):
    converter.errors.UsageError: parity.toml: [[checkpoint]] 2: profil: unknown; did you mean profile?
    """
    if not isinstance(table, dict):
        raise refusal(path, where, f"a table, not {printable(repr(table), 60)}")
    for key, value in table.items():
        place = ": ".join(filter(None, [where, printable(key)]))
        if key not in known:
            alike = difflib.get_close_matches(key[:80], known, 1)
            hint = f"did you mean {alike[0]}?" if alike else f"allowed: {', '.join(known)}"
            raise refusal(path, place, f"unknown; {hint}")
        try:
            known[key](value)
        except ValueError as error:
            raise refusal(path, place, f"{error}, not {printable(repr(value), 60)}") from None
    if missing := [key for key in needed if key not in table]:
        raise refusal(path, where, f"{missing[0]} is missing")
    return table


def tables(path: str | os.PathLike[str], content: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    """The [[name]] tables of a file with what an error calls them, such as "[[waiver]] 2"."""
    listed = content.get(name, [])
    if not isinstance(listed, list):
        raise refusal(path, name, f"written as [[{name}]], once for each")
    return [(f"[[{name}]] {i}", table) for i, table in enumerate(listed, 1)]


text = wanted("a text that is not empty", lambda value: isinstance(value, str) and value.strip() and "\0" not in value)
