"""Which stage is at fault: its own error when it gets the original's input, and the same for what is inside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from ..numbers import broken, mapping, number, positive, sequence, show
from ..report import Phase
from .drawing import COLOURS, Drawing, Figure, clipped, log_axis, log_range
from .stages import Stage, upright, where

MOST = 8  # stages whose inside is drawn
SMALL, NAMES, ROW = 440.0, 150.0, 22.0  # of the pictures of what is inside a stage


@dataclass(frozen=True)
class Part(Stage):
    """A stage, or a part of one, that was given the original's input."""

    faulty: bool = False


def localisation(phase: Phase) -> Iterator[Figure]:
    """From `detail["localisation"]` of the function phase."""
    about = mapping(phase.detail.get("localisation"))
    raw = [mapping(stage) for stage in sequence(about.get("stages"))]
    stages = _parts(raw)
    if svg := _bars(stages):
        faulty = [stage.name for stage in stages if stage.faulty]
        more = ", ..." if len(faulty) > MOST else ""
        at_fault = f" At fault: {', '.join(faulty[:MOST])}{more}." if faulty else ""
        caption = (
            f"{where(about)}Every stage is given what the original's got, so that no error spreads; by what the stage "
            f"itself changes, log scale.{at_fault}"
        )
        yield Figure("Where it goes wrong", caption, svg)
    inside = [stage for stage in raw if stage.get("faulty") and sequence(stage.get("inside"))]
    for stage in inside[:MOST]:
        if svg := _rows(_parts([mapping(part) for part in sequence(stage.get("inside"))])):
            words = "In the order of the computation: the first red part is where it begins, those below inherit it."
            yield Figure(f"Inside {stage.get('name', 'it')}", words, svg, "small")


def _parts(raw: Sequence[dict[str, Any]]) -> list[Part]:
    return [
        Part(
            str(about.get("name", "")),
            number(about.get("error")),
            positive(about.get("floor")),
            faulty=bool(about.get("faulty")),
        )
        for about in raw
    ]


def _colour(part: Part) -> tuple[str, float]:
    return (COLOURS["fail"], 1.0) if part.faulty else (COLOURS["series"], 0.62)


def _range(parts: Sequence[Part]) -> tuple[float, float] | None:
    return log_range([value for part in parts for value in (part.error, part.floor)])


def _length(part: Part, low: float, high: float) -> float:
    return high if broken(part.error) else clipped(part.error or 0.0, low, high)


def _bars(stages: list[Part]) -> str:
    """Upright bars, the noise floor of each as a line across it."""
    if (span := _range(stages)) is None:
        return ""
    low, high = span
    drawing, axes = upright(stages, "local error of every stage of the net", [stage.faulty for stage in stages])
    log_axis(axes, "y", low, high)
    wide = min(0.62, 34 * len(stages) / axes.bbox.width)
    tops = [_length(stage, low, high) for stage in stages]
    bars = axes.bar(range(len(stages)), [top - low for top in tops], wide, low, color=[*map(_colour, stages)])
    for x, (stage, bar) in enumerate(zip(stages, bars, strict=True)):
        drawing.tooltips(bar, [stage.words])
        if broken(stage.error):
            axes.scatter([x], [high], marker="x", color=COLOURS["ink"], linewidths=2.2, zorder=4)
    noise = [nan if stage.floor is None else stage.floor for stage in stages]
    half, places = wide / 2 + 0.06, range(len(stages))
    axes.hlines(noise, [x - half for x in places], [x + half for x in places], color=COLOURS["floor"], linewidth=2)
    keys = [
        (drawing.key("s", "series", 0.62, markersize=9), "as the original"),
        (drawing.key("s", "fail", markersize=9), "at fault"),
        (drawing.key("", "floor", linestyle="-", linewidth=2), "noise floor"),
    ]
    drawing.legend(keys, axes.bbox.x0)
    return drawing.svg()


def _rows(parts: list[Part]) -> str:
    """Bars that lie, with the names beside them: the parts of one stage."""
    if (span := _range(parts)) is None:
        return ""
    low, high = span
    drawing = Drawing(ROW * len(parts) + 34, "local error of the parts of a stage", SMALL)
    axes = drawing.axes(NAMES, 6, SMALL - NAMES - 76, ROW * len(parts))
    log_axis(axes, "x", low, high)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_yticks(range(len(parts)), [drawing.text(part.name, 22) for part in parts])
    drawing.mark(axes.get_yticklabels(), [part.faulty for part in parts])
    ends = [_length(part, low, high) for part in parts]
    bars = axes.barh(range(len(parts)), [end - low for end in ends], 0.64, low, color=[*map(_colour, parts)])
    for y, (part, bar, end) in enumerate(zip(parts, bars, ends, strict=True)):
        drawing.tooltips(bar, [part.words])
        style = {"color": COLOURS["fail"], "fontweight": 700} if part.faulty else {"color": COLOURS["mute"]}
        words = drawing.text(show(part.error))
        axes.annotate(words, (end, y), (6, 0), textcoords="offset points", va="center_baseline", **style)
    places = range(len(parts))
    noise = [nan if part.floor is None else part.floor for part in parts]
    axes.vlines(noise, [y - 0.4 for y in places], [y + 0.4 for y in places], color=COLOURS["floor"], linewidth=2)
    return drawing.svg()
