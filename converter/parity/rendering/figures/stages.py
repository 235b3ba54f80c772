"""Error along the net, or along the steps of a sampler: the converted line against the noise floor, on a log scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from ...gates import FLOOR_LIMIT
from ..numbers import broken, mapping, number, positive, sequence, show, times
from .scales import Log, log_range
from .svg import WIDTH, Figure, cross, label, legend, line, path, picture, tag, tooltip

LEFT, RIGHT, TOP, PLOT = 64.0, 20.0, 42.0, 250.0
LETTER, LABEL_ROOM = 6.1, 15.0  # how wide a letter is; how far apart slanted labels have to stand


@dataclass(frozen=True)
class Curve:
    """A point per name: the error and the noise floor there. `limit` is in multiples of the floor."""

    names: list[str]
    errors: list[Any]
    floors: list[Any]
    limit: float
    words: tuple[str, str]  # of the two lines

    def over(self, i: int) -> bool:
        error, floor = number(self.errors[i]), positive(self.floors[i])
        return broken(error) or (error is not None and floor is not None and error > self.limit * floor)

    @property
    def marked(self) -> list[bool]:
        """The first that is over the limit: those behind it have inherited the error."""
        first = next((i for i in range(len(self.names)) if self.over(i)), None)
        return [i == first for i in range(len(self.names))]


WORDS = ("converted", "noise floor: the original's own rounding")


def blocks(detail: Any, words: tuple[str, str] = WORDS) -> Iterator[Figure]:
    """The error of every stage of the net, from `detail["blocks"]` of the function phase; `words` name its lines."""
    about = mapping(detail)
    names, errors = [str(name) for name in sequence(about.get("stages"))], sequence(about.get("converted"))
    limit = positive(about.get("limit")) or FLOOR_LIMIT
    floors = sequence(about.get("floor"))
    curve = _curve(names, errors, floors, limit, words)
    svg = _draw(curve, "error of every stage of the net") if curve else ""
    if curve and svg:
        over = [curve.names[i] for i in range(len(curve.names)) if curve.over(i)]
        where = f"Case {about['case']}, {about.get('precision', '')}. " if about.get("case") else ""
        said = (
            f"The line leaves what is allowed at {over[0]}."
            if over
            else "What lies in the shaded area would still pass."
        )
        yield Figure("Error along the net", f"{where}Relative L2 after each stage, log scale. {said}", svg)


def trajectory(detail: dict[str, Any]) -> Iterator[Figure]:
    """The error of every sampler step, from the detail of the trajectory phase."""
    steps = [mapping(step) for step in sequence(detail.get("steps"))]
    names = [
        f"{show(s.get('step'))} (t {show(s['timestep'])})" if "timestep" in s else show(s.get("step")) for s in steps
    ]
    errors, floors = [s.get("error") for s in steps], [s.get("floor") for s in steps]
    limit = positive(detail.get("limit")) or FLOOR_LIMIT
    curve = _curve(names, errors, floors, limit, ("converted", "noise floor"))
    svg = _draw(curve, "error of every sampler step") if curve else ""
    if svg:
        sampler = f"{detail['sampler']} from the same noise. " if detail.get("sampler") else "From the same noise. "
        yield Figure(
            "Error along the trajectory", f"{sampler}Relative L2 of the latents after each step, log scale.", svg
        )


def _curve(
    names: list[str], errors: list[Any], floors: list[Any], limit: float, words: tuple[str, str]
) -> Curve | None:
    count = min(len(names), len(errors))
    if not count:
        return None
    padded = (floors + [None] * count)[:count]
    return Curve(names[:count], errors[:count], padded, limit, words)


def _draw(curve: Curve, words: str) -> str:
    limits = [curve.limit * floor if (floor := positive(raw)) else None for raw in curve.floors]
    span = log_range([*curve.errors, *curve.floors, *limits])
    if span is None:
        return ""
    shown = [name if len(name) <= 24 else f"{name[:23]}…" for name in curve.names]
    slant = max(len(name) for name in shown) * LETTER * 0.75 + 22
    y = Log(*span, TOP + PLOT, TOP)
    # Slanted labels run down to the left: the first one needs its room within the picture.
    left = max(LEFT, len(shown[0]) * LETTER * 0.72 + 12)
    step = (WIDTH - left - RIGHT) / len(shown)
    xs = [left + step * (i + 0.5) for i in range(len(shown))]
    return picture(
        WIDTH,
        TOP + PLOT + slant,
        words,
        _band(xs, limits, y),
        axis_left(y, left, WIDTH - RIGHT),
        path(_runs(xs, limits, y), "limit"),
        path(_runs(xs, curve.floors, y), "floor"),
        path(_runs(xs, curve.errors, y), "converted"),
        *_points(curve, xs, y),
        names_below(shown, curve.names, curve.marked, xs, TOP + PLOT),
        legend(left, 14, _legend(curve)),
    )


def _legend(curve: Curve) -> list[tuple[str, str]]:
    dot = tag("circle", cx=11, cy=0, r=3.4, class_="dot")
    return [
        (line(0, 0, 22, 0, "converted") + dot, curve.words[0]),
        (line(0, 0, 22, 0, "floor"), curve.words[1]),
        (line(0, 0, 22, 0, "limit"), f"limit: {show(curve.limit)} × the noise floor"),
    ]


def _points(curve: Curve, xs: list[float], y: Log) -> Iterator[str]:
    for i, x in enumerate(xs):
        error, floor = number(curve.errors[i]), positive(curve.floors[i])
        if error is None:
            continue
        ratio = (
            f", {times(error / floor)} times the noise floor of {show(floor)}" if floor and not broken(error) else ""
        )
        words = f"{curve.names[i]}: {show(error)}{ratio}"
        if broken(error):
            yield cross(x, y.stop + 8, words)
        else:
            kind = "dot over" if curve.over(i) else "dot"
            yield tag("circle", tooltip(words), cx=x, cy=y(error), r=3.4, class_=kind)
        # A target that a pointer can hit, as tall as the plot.
        yield tag("rect", tooltip(words), x=x - 6, y=y.stop, width=12, height=y.start - y.stop, class_="hit")


def _band(xs: list[float], limits: list[Any], y: Log) -> str:
    """What is allowed: everything below the limit."""
    runs = [run for run in _runs(xs, limits, y) if len(run) > 1]
    closed = [[(run[0][0], y.start), *run, (run[-1][0], y.start)] for run in runs]
    return path(closed, "band")


def _runs(xs: list[float], values: list[Any], y: Log) -> list[list[tuple[float, float]]]:
    made: list[list[tuple[float, float]]] = [[]]
    for x, raw in zip(xs, values, strict=True):
        value = number(raw)
        if value is None or broken(value):
            made.append([])
        else:
            made[-1].append((x, y(max(value, 0.0))))
    return made


def axis_left(y: Log, left: float, right: float) -> str:
    """Lines across the plot with their powers of ten."""
    parts = []
    for tick in y.ticks():
        at = y(tick.value)
        parts.append(line(left, at, right, at, "grid" if tick.words else "grid minor"))
        if tick.words:
            parts.append(label(left - 8, at + 4, tick.words, text_anchor="end", class_="tick"))
    return "".join(parts)


def names_below(shown: list[str], full: list[str], marked: list[bool], xs: list[float], bottom: float) -> str:
    """Slanted names under the x axis. Where they stand too close every other is left out, but never a marked one."""
    step = xs[1] - xs[0] if len(xs) > 1 else LABEL_ROOM
    every = max(1, ceil(LABEL_ROOM / step))
    parts, last = [], -1e9
    for i, x in enumerate(xs):
        wanted = marked[i] or (i % every == 0 and not any(marked[i + 1 : i + every])) or i == len(xs) - 1
        if not wanted or (x - last < LABEL_ROOM * 0.9 and not marked[i]):
            continue
        last = x
        at = f"translate({x + 3:.1f} {bottom + 14:.1f}) rotate(-42)"
        kind = "tick marked" if marked[i] else "tick"
        parts.append(label(0, 0, shown[i], transform=at, text_anchor="end", class_=kind))
    return "".join(parts)
