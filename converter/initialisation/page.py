"""The proof as a page: one HTML file that opens offline, with pictures and without a script."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..parity.gates import FLOOR_LIMIT
from ..reports.facts import MARKS
from ..reports.figures import Figure
from ..reports.figures.stages import blocks
from ..reports.figures.svg import escaped, tag
from ..reports.numbers import show, times
from ..reports.page import style
from .assemble import Initialisation
from .picture import STYLE, drawn
from .verdict import Proof

MEASURED = (
    "Relative L2, of the case that uses most of the limit. The last column is in float64, with tables that are not "
    "rounded to float32 yet: there the mathematics has to be exact."
)
STAGES = ("after", "case", "PixArt to DiT in float64", "to DiT in float32", "DiT's rounding", "times that", "float64")
FAILED_ROWS = 12
NUMBER = re.compile(r"[-−]?([\d,]+(\.\d+)?(e-?\d+)?|∞)|NaN|–")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
EXPLAINED = (
    "Both nets were run on the same noise, the DiT without a class. What the caption says does not matter yet: the "
    "cross attention adds zero until it is trained. What is promised is promised at t = 500 only."
)


def page(done: Initialisation, source: str) -> str:
    """The HTML. All texts are escaped, and a content security policy forbids whatever might slip through to run."""
    proof, title = done.proof, f"PixArt initialised from {source}"
    head = (
        '<meta charset="utf-8">'
        + f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        + '<meta name="viewport" content="width=device-width, initial-scale=1">'
        + '<meta name="color-scheme" content="light dark">'
        + tag("title", escaped(title))
        + tag("style", style(), STYLE)
    )
    body = [tag("p", escaped(title), class_="brand"), _hero(proof), _tiles(proof)]
    if notes := [*done.notes, *proof.doubts]:
        listed = "".join(tag("li", escaped(note, 2000)) for note in notes)
        body.append(_card("Notes", tag("ul", listed, class_="notes")))
    if proof.failed:
        rows = [(c.what, c.statistic, show(c.value), show(c.limit), c.words) for c in proof.failed[:FAILED_ROWS]]
        more = len(proof.failed) - FAILED_ROWS
        rest = tag("p", f"… and {more} more.", class_="mute") if more > 0 else ""
        body.append(_card("What failed", _table(("what", "statistic", "value", "limit", "in words"), rows), rest))
    body += [_figure(figure) for figure in _figures(proof)]
    measured = tag("p", escaped(MEASURED, 2000), class_="mute")
    body.append(_card("Block by block at t = 500", measured, _table(STAGES, stage_rows(proof))))
    chosen = [(name, show(value)) for name, value in done.choices.items()]
    body.append(_card("Choices", _table(("name", "value"), chosen)))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>{"".join(body)}</main></body></html>\n'


def _hero(proof: Proof) -> str:
    words = tag("p", escaped(proof.verdict), class_="verdict") + tag("h1", escaped(_sentence(proof.words), 2000))
    if proof.distances:
        words += tag("p", escaped(f"{_sentence(proof.distances.words)}.", 2000))
    seal = tag("div", escaped(MARKS[proof.verdict]), class_="seal", aria_hidden="true")
    meta = tag("p", escaped(EXPLAINED, 2000), class_="meta")
    return tag("section", seal, tag("div", words, meta), class_=f"hero v-{proof.verdict.lower()}")


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _tiles(proof: Proof) -> str:
    decided = [check for check in proof.checks if check.passed is not None]
    tiles = [("Checks passed", f"{len(decided) - len(proof.failed)} of {len(decided)}", "that decide the verdict")]
    if proof.stages:
        limit = f"the DiT's own rounding (limit {show(FLOOR_LIMIT)})"
        tiles.append(("Worst in float32", f"{times(proof.worst.times)}×", limit))
        exact = max(stage.exact for stage in proof.stages)
        tiles.append(("Worst in float64", show(exact), "relative L2, tables not rounded yet"))
    if proof.distances:
        mean, nearer = proof.distances.mean, proof.distances.nearer
        tiles.append(("Nearer at other timesteps", f"--t_block {nearer}", f"{show(mean[nearer])} apart on average"))
    made = (
        tag("div", *(tag("span", escaped(t), class_=c) for t, c in zip(tile, _TILE, strict=True)), class_="tile")
        for tile in tiles
    )
    return tag("section", *made, class_="tiles")


_TILE = ("label", "value", "mute")


def _figures(proof: Proof) -> Iterable[Figure]:
    if proof.distances:
        yield drawn(proof.distances)
    detail = {
        "stages": [stage.name for stage in proof.stages],
        "converted": [stage.distance for stage in proof.stages],
        "floor": [stage.floor for stage in proof.stages],
        "limit": FLOOR_LIMIT,
    }
    yield from blocks(detail, ("PixArt", "noise floor: the DiT's own rounding"))


def _figure(figure: Figure) -> str:
    drawing = tag("div", figure.svg, class_="scroll plot")
    made = tag("figure", tag("figcaption", escaped(figure.caption, 2000)), drawing, class_=figure.kind)
    return _card(figure.title, made)


def stage_rows(proof: Proof) -> list[list[str]]:
    """Numbers of every stage, under the headings `STAGES`."""
    return [
        [s.name, s.case, show(s.error), show(s.apart), show(s.floor), times(s.times), show(s.exact)]
        for s in proof.stages
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """What is a number stands to the right."""
    rows = list(rows)
    kinds = ["num" if all(NUMBER.fullmatch(row[i]) for row in rows) else None for i in range(len(header))]
    head = tag("thead", tag("tr", *(tag("th", escaped(n), class_=kind) for n, kind in zip(header, kinds, strict=True))))
    body = tag(
        "tbody",
        *(
            tag("tr", *(tag("td", escaped(c, 400), class_=kind) for c, kind in zip(row, kinds, strict=True)))
            for row in rows
        ),
    )
    return tag("div", tag("table", head, body), class_="scroll")


def _card(title: str, *content: str) -> str:
    return tag("section", tag("h3", escaped(title)), *content, class_="card")
