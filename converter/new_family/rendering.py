"""A draft as a module of Python: a table, what the file shows, the config, and a `Family` that is registered."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator
from typing import Any

from ..errors import printable
from .draft import COMPUTED, SIDECAR, Draft, DraftRow
from .matching import COPIES, SPLIT

MARK = "# ?"
_WIDTH = 120
_SYMBOLS = {"D": "hidden_size", "C": "in_channels", "p": "patch_size"}
_HEADS = "num_attention_heads"
# Fields of a target's `config.json` -> what they are called here.
_FIELDS = {
    "hidden_size": ("hidden_size", "inner_dim", "width", "model_dim", "cross_attention_dim"),
    "in_channels": ("in_channels",),
    "patch_size": ("patch_size",),
    "sample_size": ("sample_size",),
    "depth": ("num_layers", "depth", "n_layers", "num_blocks"),
    _HEADS: (_HEADS, "num_heads", "n_heads", "heads"),
}
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
    side = found.value("sample_size") // {patch}
    return SinCosTable(found.value("hidden_size"), side, 1.0)  # ?

'''


def render(name: str, draft: Draft) -> str:
    """The module's text, of a family of that name. What is not certain ends in `# ?`; the comment above says why."""
    title = name.replace("_", " ").title()
    patch = 'found.value("patch_size")' if "p" in draft.dims else "1"
    return _MODULE.format(
        name=name,
        title=title,
        heads=_HEADS,
        comments="\n".join(_comments(draft)),
        imports="\n".join(_imports(draft)),
        computed=_COMPUTED.format(patch=patch) if draft.computes else "",
        rows="\n".join(_rows(draft)),
        findings="\n".join(_findings(draft)),
        fields="\n".join(_fields(title, draft)),
    )


def _comments(draft: Draft) -> Iterator[str]:
    yield from _comment("Drafted from " + " and ".join(_plain(file) for file in (draft.source, draft.target) if file))
    sizes = [f"{symbol} {size} ({draft.first[symbol]})" for symbol, size in draft.dims.items()]
    yield from _comment("Symbols of the shapes: " + ", ".join(sizes)) if sizes else ()
    yield from (line for note in draft.notes for line in _comment(f"Note: {note}"))


def _imports(draft: Draft) -> Iterator[str]:
    values = "\n".join(map(_value, draft.rows))  # in which paths have no brackets
    wrappers = [name for name in ("Computed", "Copies", "Extra", "Parameter", "Sparse") if f"{name}(" in values]
    computes = "Computed" in wrappers
    yield from ["from math import isqrt"] * computes
    yield from ["from typing import Any", "", "import converter"]
    yield f"from converter import {', '.join(sorted(['KeyMapping', *wrappers]))}"
    if computes:
        yield "from converter.families.evidence import configured"
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
        before, _, after = value.partition("(")
        parts = [f"        {json.dumps(target)}," for target in row.targets]
        lines = [f"    {key}: {before}({end}", *parts, f"    {after[after.rindex(')') :]},"]
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
    for symbol in draft.dims:
        if symbol in _SYMBOLS:
            shown = f'plan.dims.get("{symbol}"), plan.evidence.get("{symbol}", "no tensor shows it")'
            yield f'    found.file("{_SYMBOLS[symbol]}", {shown})'
    if draft.blocks:
        stacks = {row.source.partition("{}")[0] for row in draft.rows if "{}" in row.source}
        depth = "plan.blocks" if len(stacks) == 1 else "max(plan.stacks.values(), default=0)"  # all are as deep
        yield f'    found.file("depth", {depth} or None, f"{{{depth}}} blocks")'
    if draft.computes:
        side = 'isqrt(plan.dims.get("N", 0))' + (' * plan.dims.get("p", 1)' if "p" in draft.dims else "")
        yield f'    side = {side} or configured(state.config, "sample_size", int)'
        yield '    found.file("sample_size", side, plan.evidence.get("N", "config.json: sample_size"))'
    yield f'    found.given_or_assumed("{_HEADS}", None, "a file does not show it")'


def _fields(title: str, draft: Draft) -> Iterator[str]:
    fields = {key: value for key, value in draft.config.items() if key != "_name_or_path"}
    known: dict[str, Any] = {_SYMBOLS[s]: size for s, size in draft.dims.items() if s in _SYMBOLS}
    known |= {"depth": draft.blocks} if draft.blocks else {}
    if draft.computes:
        known["sample_size"] = math.isqrt(draft.dims["N"]) * draft.dims.get("p", 1)
    if not fields:
        yield f'        "_class_name": "{title.replace(" ", "")}Transformer",  {MARK}'
        yield from (f'        "{name}": found.value("{name}"),' for name in (*known, _HEADS))
    for key, value in fields.items():
        yield from _field(key, value, known)


def _field(key: str, value: Any, known: dict[str, Any]) -> Iterator[str]:
    """A line of the target's config: what a file shows is taken from there, another value as it is, and marked."""
    name = next((name for name, keys in _FIELDS.items() if key in keys), "")
    quoted, literal = json.dumps(key), _literal(value)
    if name == _HEADS or (name and type(value) is int and known.get(name) == value):
        yield f'        {quoted}: found.value("{name}"),'
    elif key in ("_class_name", "_diffusers_version") and literal and len(literal) < 60:
        yield f"        {quoted}: {literal},"
    elif literal and len(quoted) + len(literal) < _WIDTH - 20:
        yield f"        {quoted}: {literal},  {MARK}"
    else:
        kind = f", {len(value)} values" if isinstance(value, dict | list) else f": {_plain(value)}"
        yield from _comment(f"? {_plain(key)}{kind}", "        ")


def _literal(value: Any, depth: int = 0) -> str:
    """A JSON value as Python spells it, in ASCII; '' for what does not fit a line."""
    if isinstance(value, str):
        return json.dumps(value)
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, list) and len(value) <= 16 and depth < 3:
        parts = [_literal(part, depth + 1) for part in value]
        return f"[{', '.join(parts)}]" if all(parts) else ""
    return ""


def _plain(text: object) -> str:
    """Text from a file, for a comment: one line of ASCII."""
    return ascii(printable(text, 100))[1:-1]


def _comment(text: str, indent: str = "") -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=f"{start}  ", break_on_hyphens=False)
