"""Which stage is at fault: its own error when it gets the original's input, and the same for what is inside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...report import Phase
from ..numbers import broken, mapping, number, positive, sequence, show, times
from .scales import Log, log_range
from .stages import LETTER, axis_left, names_below
from .svg import WIDTH, Figure, cross, label, legend, line, picture, tag, tooltip

LEFT, RIGHT, TOP, PLOT = 64.0, 20.0, 42.0, 220.0
SMALL, NAMES, ROW = 440.0, 150.0, 22.0  # of the pictures of what is inside a stage
MOST = 8  # stages whose inside is drawn


def localisation(phase: Phase) -> Iterator[Figure]:
    """From `detail["localisation"]` of the function phase."""
    about = mapping(phase.detail.get("localisation"))
    stages = [mapping(stage) for stage in sequence(about.get("stages"))]
    svg = _bars(stages) if stages else ""
    faulty = [stage for stage in stages if stage.get("faulty")]
    if svg:
        where = f"Case {about['case']}, {about.get('precision', '')}. " if about.get("case") else ""
        names = ", ".join(str(stage.get("name", "")) for stage in faulty[:MOST]) + (
            ", ..." if len(faulty) > MOST else ""
        )
        at_fault = f" At fault: {names}." if faulty else ""
        caption = (
            f"{where}Every stage is given what the original's got, so that no error spreads; by what the stage itself "
            f"changes, log scale.{at_fault}"
        )
        yield Figure("Where it goes wrong", caption, svg)
    inside = [stage for stage in faulty if sequence(stage.get("inside"))]
    for stage in inside[:MOST]:
        rows = _rows([mapping(part) for part in sequence(stage.get("inside"))])
        if rows:
            words = "In the order of the computation: the first red part is where it begins, those below inherit it."
            yield Figure(f"Inside {stage.get('name', 'it')}", words, rows, "small")


def _bars(stages: list[dict[str, Any]]) -> str:
    """Upright bars, the noise floor of each as a line across it."""
    span = log_range([number for stage in stages for number in (stage.get("error"), stage.get("floor"))])
    if span is None:
        return ""
    names = [str(stage.get("name", "")) for stage in stages]
    shown = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    left = max(LEFT, len(shown[0]) * LETTER * 0.72 + 12)
    y = Log(*span, TOP + PLOT, TOP)
    step = (WIDTH - left - RIGHT) / len(stages)
    wide = min(step * 0.62, 34.0)
    xs = [left + step * (i + 0.5) for i in range(len(stages))]
    parts = []
    for stage, x in zip(stages, xs, strict=True):
        words, error = _words(stage), stage.get("error")
        top = y.stop if broken(error) else y(max(number(error) or 0.0, 0.0))
        parts.append(
            tag("rect", tooltip(words), x=x - wide / 2, y=top, width=wide, height=y.start - top, class_=_kind(stage))
        )
        if broken(error):
            parts.append(cross(x, y.stop - 8, words))
        if floor := positive(stage.get("floor")):
            parts.append(line(x - wide / 2 - 2, y(floor), x + wide / 2 + 2, y(floor), "floor"))
    marked = [bool(stage.get("faulty")) for stage in stages]
    height = TOP + PLOT + max(len(name) for name in shown) * LETTER * 0.75 + 22
    words = "local error of every stage of the net"
    below = names_below(shown, names, marked, xs, TOP + PLOT)
    return picture(WIDTH, height, words, axis_left(y, left, WIDTH - RIGHT), *parts, below, legend(left, 14, _keys()))


def _rows(parts: list[dict[str, Any]]) -> str:
    """Bars that lie, with the names beside them: the parts of one stage."""
    span = log_range([number for part in parts for number in (part.get("error"), part.get("floor"))])
    if span is None:
        return ""
    x = Log(*span, NAMES, SMALL - 76)
    bottom = 8 + ROW * len(parts)
    drawn = []
    for tick in x.ticks(44):
        at = x(tick.value)
        drawn.append(line(at, 8, at, bottom, "grid" if tick.words else "grid minor"))
        if tick.words:
            drawn.append(label(at, bottom + 16, tick.words, text_anchor="middle", class_="tick"))
    for i, part in enumerate(parts):
        at, error, words = 8 + ROW * (i + 0.5), part.get("error"), _words(part)
        end = x.stop if broken(error) else x(max(number(error) or 0.0, 0.0))
        drawn.append(tag("rect", tooltip(words), x=NAMES, y=at - 7, width=end - NAMES, height=14, class_=_kind(part)))
        if floor := positive(part.get("floor")):
            drawn.append(line(x(floor), at - 9, x(floor), at + 9, "floor"))
        kind = "tick marked" if part.get("faulty") else "tick"
        drawn.append(label(NAMES - 8, at + 4, part.get("name", ""), 22, text_anchor="end", class_=kind))
        drawn.append(label(end + 6, at + 4, show(error), class_=kind))
    return picture(SMALL, bottom + 24, "local error of the parts of a stage", *drawn)


def _kind(part: dict[str, Any]) -> str:
    return "bar over" if part.get("faulty") else "bar"


def _words(part: dict[str, Any]) -> str:
    error, floor = number(part.get("error")), positive(part.get("floor"))
    ratio = (
        f", {times(error / floor)} times the noise floor" if error is not None and floor and not broken(error) else ""
    )
    return f"{part.get('name', '')}: {show(part.get('error'))}{ratio}"


def _keys() -> list[tuple[str, str]]:
    return [
        (tag("rect", x=4, y=-6, width=14, height=12, class_="bar"), "as the original"),
        (tag("rect", x=4, y=-6, width=14, height=12, class_="bar over"), "at fault"),
        (line(0, 0, 22, 0, "floor"), "noise floor"),
    ]
