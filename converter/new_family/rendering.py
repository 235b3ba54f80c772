"""A draft as a module of Python: a table, what the file shows, the config, and a `Family` that is registered."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from ..errors import printable
from .draft import COMPUTED, SIDECAR, Draft, DraftRow
from .matching import COPIES, SPLIT
from .values import CONSTANT, HEADS, head_key, quoted

MARK = "# ?"
_WIDTH = 120
_MODULE = '''"""{title}: the original layout to the target's. A draft: look at what is marked with a question mark."""

{comments}

from __future__ import annotations

{imports}
{computed}
KEYS = KeyMapping({{
{rows}
}})


def describe(plan: Any, state: Any, found: converter.Findings) -> None:
    """What the file shows, with the evidence, and what only its user can say."""
{findings}


def config(found: converter.Findings) -> dict[str, Any]:
    """`config.json` of the target's class."""
    return {{
{fields}
    }}


FAMILY = converter.Family(
    name="{name}",
    title="{title}",
    keys=KEYS,
    describe=describe,
    config=config,
    flags={{"{heads}": int}},
)
converter.register(FAMILY)
'''
_COMPUTED = '''

def positions(found: converter.Findings) -> SinCosTable:
    """The table that the target computes."""
    # ? sines and cosines of the columns, then of the rows, of scale 1: a conversion says how far off it is
    return SinCosTable(found.value("hidden_size"), {side}, 1.0)  # ?

'''


def render(name: str, draft: Draft) -> str:
    """The module's text, of a family of that name. What is not certain ends in `# ?`; the comment above says why."""
    title = name.replace("_", " ").title()
    side = 'found.value("sample_size")' + ' // found.value("patch_size")' * ("p" in draft.dims)
    return _MODULE.format(
        name=name,
        title=title,
        heads=HEADS,
        comments="\n".join(_comments(draft)),
        imports="\n".join(_imports(draft)),
        computed=_COMPUTED.format(side=side) if draft.computes else "",
        rows="\n".join(_rows(draft)),
        findings="\n".join(_findings(draft)),
        fields="\n".join(_fields(title, draft)),
    )


def _comments(draft: Draft) -> Iterator[str]:
    yield from _comment("Drafted from " + " and ".join(_plain(file) for file in (draft.source, draft.target) if file))
    sizes = [f"{symbol} {size} ({draft.first[symbol]})" for symbol, size in draft.dims.items()]
    yield from _comment("Symbols of the shapes: " + ", ".join(sizes)) if sizes else ()
    yield from (line for note in draft.notes for line in _comment(f"Note: {note}"))
    yield from _comment(
        "What is not certain ends in `# ?`, and the comment above it says why. A value in config() that does so "
        "without a comment is the target's, and no tensor shows it: is it the same for every checkpoint?"
    )


def _imports(draft: Draft) -> Iterator[str]:
    values = "\n".join(map(_value, draft.rows))  # in which paths have no brackets
    wrappers = [name for name in ("Computed", "Copies", "Extra", "Parameter", "Sparse") if f"{name}(" in values]
    computes = "Computed" in wrappers
    yield from ["from math import isqrt"] * any("isqrt(" in one.code[0] for one in draft.shown)
    yield from ["from typing import Any", "", "import converter"]
    yield f"from converter import {', '.join(sorted(['KeyMapping', *wrappers]))}"
    yield "from converter.families.evidence import configured"
    if computes:
        yield "from converter.families.sincos import SinCosTable"


def _rows(draft: Draft) -> Iterator[str]:
    for row in draft.rows:
        yield from _comment(f"? {row.doubt}", "    ") if row.doubt else ()
        yield from _row(row)
    left = [f"? no row yet: {_plain(path)}" for path in draft.unmatched_source]
    left += [f"? no source yet: {_plain(path)}" for path in draft.unmatched_target]
    yield from (line for words in left for line in _comment(words, "    "))


def _row(row: DraftRow) -> Iterator[str]:
    key = json.dumps(f"{row.source} [{row.pattern}]" if row.pattern else row.source)
    value, end = _value(row), "" if row.sure else f"  {MARK}"
    if len(line := f"    {key}: {value},{end}") <= _WIDTH:
        yield line
        return
    if row.kind == SPLIT:
        before, after = value[: value.index('"')], value[value.rindex('"') + 1 :]
        parts = [f"        {json.dumps(target)}," for target in row.targets]
        lines = [f"    {key}: {before}{end}", *parts, f"    {after},"]
    else:
        lines = [f"    {key}: ({end}", f"        {value}", "    ),"]
    for line in lines:  # a linter says nothing of a line that is one word
        yield line if len(line) <= _WIDTH or " " not in line.strip() else f"{line}  # noqa: E501"


def _value(row: DraftRow) -> str:
    if row.kind == COMPUTED:
        return "Computed(positions)"
    if row.kind == SIDECAR:
        return "Extra()"
    paths = [json.dumps(target) for target in row.targets]
    value = paths[0] if len(paths) == 1 else f"({', '.join(paths)})"
    for wrapper, wanted in (("Parameter", row.bare), ("Copies", row.kind == COPIES), ("Sparse", row.sparse)):
        value = f"{wrapper}({value})" if wanted else value
    return value


def _findings(draft: Draft) -> Iterator[str]:
    for one in draft.shown:
        yield from _call([json.dumps(one.name), *one.code], one.doubt)
    stated = f'configured(state.config, "{head_key(draft.config)}", int)'
    yield from _call(
        [f'"{HEADS}"', stated, '"a file does not show it, only the config.json of a converted folder"'], ""
    )


def _call(arguments: list[str], doubt: str) -> Iterator[str]:
    """A line of `describe`, or several where they do not fit one."""
    yield from _comment(f"? {doubt}", "    ") if doubt else ()
    mark = f"  {MARK}" if doubt else ""
    if len(line := f"    found.file({', '.join(arguments)}){mark}") <= _WIDTH:
        yield line
    else:
        yield from (f"    found.file({mark}", *(f"        {argument}," for argument in arguments), "    )")


def _fields(title: str, draft: Draft) -> Iterator[str]:
    if not draft.fields:
        yield f'        "_class_name": "{title.replace(" ", "")}Transformer",  {MARK}'
        yield from (f'        "{name}": found.value("{name}"),' for name in (*(one.name for one in draft.shown), HEADS))
    for each in draft.fields:
        key, room = quoted(each.key), _WIDTH - 20
        if each.code and len(key) + len(each.code) < room:
            if each.doubt != CONSTANT:  # which is said once, at the top of the module
                yield from _comment(f"? {each.doubt}", "        ") if each.doubt else ()
            yield f"        {key}: {each.code}," + (f"  {MARK}" if each.doubt else "")
        else:
            value = each.value
            kind = f", {len(value)} values" if isinstance(value, dict | list) else f": {_plain(value)}"
            yield from _comment(f"? {_plain(each.key)}{kind}", "        ")


def _plain(text: object) -> str:
    """Text from a file, for a comment: one line of ASCII."""
    return ascii(printable(text, 100))[1:-1]


def _comment(text: str, indent: str = "") -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=f"{start}  ", break_on_hyphens=False)
