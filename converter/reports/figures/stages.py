"""Error along the net or the steps of a sampler, the local error of every stage, and distance over timesteps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, log10, nan
from typing import TYPE_CHECKING, Any

from ..numbers import broken, mapping, number, positive, sequence, show, times
from ..report import FLOOR_LIMIT, Phase
from .drawing import COLOURS, WIDTH, Drawing, Figure, cut, key

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIGHT, TOP, PLOT, ROW = 20.0, 42.0, 250.0, 20.0
LETTER, LABEL_ROOM = 6.1, 15.0  # how wide a letter is; how far apart slanted names have to stand
MOST = 8  # stages whose inside is drawn
LINES = ("converted", "noise floor: the original's own rounding")
INHERITED = "In the order of the computation: the first red part is where it begins, those below inherit it."
DASHES = (0, (4, 2.5))


@dataclass(frozen=True)
class Point:
    """An error, None where it is no number, with the noise floor there. `wrong`: over its limit, or at fault."""

    name: str
    error: float | None
    floor: float | None
    wrong: bool

    @classmethod
    def over(cls, name: str, raw_error: Any, raw_floor: Any, limit: float) -> Point:
        """One that may be `limit` times its floor."""
        error, floor = number(raw_error), positive(raw_floor)
        return cls(name, error, floor, broken(error) or bool(error and floor and error > limit * floor))

    @classmethod
    def local(cls, about: dict[str, Any]) -> Point:
        """One that was given the original's input."""
        name = str(about.get("name", ""))
        return cls(name, number(about.get("error")), positive(about.get("floor")), bool(about.get("faulty")))

    @property
    def words(self) -> str:
        if not self.error or not self.floor or broken(self.error):
            return f"{self.name}: {show(self.error)}"
        ratio = f"{times(self.error / self.floor)} times the noise floor of {show(self.floor)}"
        return f"{self.name}: {show(self.error)}, {ratio}"


def blocks(about: dict[str, Any]) -> Iterator[Figure]:
    """The error of every stage of the net; `about["words"]` may name the two lines."""
    names, errors = sequence(about.get("stages")), sequence(about.get("converted"))
    floors = [*sequence(about.get("floor")), *[None] * len(names)]
    limit = positive(about.get("limit")) or FLOOR_LIMIT
    points = [Point.over(str(name), *numbers, limit) for name, *numbers in zip(names, errors, floors, strict=False)]
    lines = [str(name) for name in sequence(about.get("words"))] or LINES
    if svg := _curve(points, limit, "error of every stage of the net", lines):
        first = next((point.name for point in points if point.wrong), None)
        within = "What lies in the shaded area would still pass."
        verdict = within if first is None else f"The line leaves what is allowed at {first}."
        yield Figure("Error along the net", f"{where(about)}Relative L2 after each stage, log scale. {verdict}", svg)


def trajectory(about: dict[str, Any]) -> Iterator[Figure]:
    """The error of every sampler step."""
    points, limit = [], positive(about.get("limit")) or FLOOR_LIMIT
    for step in map(mapping, sequence(about.get("steps"))):
        name = show(step.get("step")) + (f" (t {show(step['timestep'])})" if "timestep" in step else "")
        points.append(Point.over(name, step.get("error"), step.get("floor"), limit))
    if svg := _curve(points, limit, "error of every sampler step", ("converted", "noise floor")):
        sampler = f"{about['sampler']} from the same noise." if about.get("sampler") else "From the same noise."
        caption = f"{sampler} Relative L2 of the latents after each step, log scale."
        yield Figure("Error along the trajectory", caption, svg)


def localisation(phase: Phase) -> Iterator[Figure]:
    """Which stage is at fault: its own error when it gets the original's input, and the same for what is inside it."""
    about = mapping(phase.detail.get("localisation"))
    raw = [mapping(stage) for stage in sequence(about.get("stages"))]
    points = [Point.local(stage) for stage in raw]
    if svg := _bars(points, "local error of every stage of the net", WIDTH):
        wrong = [point.name for point in points if point.wrong]
        more = ", ..." if len(wrong) > MOST else ""
        at_fault = f" At fault: {', '.join(wrong[:MOST])}{more}." if wrong else ""
        caption = (
            f"{where(about)}Every stage is given what the original's got, so that no error spreads; by what the stage "
            f"itself changes, log scale.{at_fault}"
        )
        yield Figure("Where it goes wrong", caption, svg)
    for stage in [stage for stage in raw if stage.get("faulty") and sequence(stage.get("inside"))][:MOST]:
        inside = [Point.local(mapping(part)) for part in sequence(stage.get("inside"))]
        if svg := _bars(inside, "local error of the parts of a stage", WIDTH / 2 - RIGHT):
            yield Figure(f"Inside {stage.get('name', 'it')}", INHERITED, svg, "small")


def timesteps(about: dict[str, Any]) -> Iterator[Figure]:
    """How far apart two nets are at every timestep: a line for each of `about["lines"]`, name -> numbers."""
    at = [value for raw in sequence(about.get("timesteps")) if (value := number(raw)) is not None]
    lines = {
        str(name): placed(map(number, sequence(values)), -inf, inf)
        for name, values in mapping(about.get("lines")).items()
    }
    if not at or not lines or any(len(values) != len(at) for values in lines.values()):
        return
    drawing = Drawing(TOP + PLOT + 50, "how far apart the two are at each timestep")
    axes = drawing.axes(64, TOP, WIDTH - 64 - RIGHT, PLOT)
    most = max((value for values in lines.values() for value in values if value == value), default=0.0)
    axes.set(xlim=(0, 1000), ylim=(0, most * 1.08 or 1.0), xticks=range(0, 1001, 100), xlabel="timestep")
    keys = []
    for (name, values), colour in zip(lines.items(), ("series", "s1", "s2", "s3"), strict=False):
        keys.append((axes.plot(at, values, color=COLOURS[colour], linewidth=2.2)[0], name))
        for t, value in zip(at, values, strict=True):
            dot = axes.plot(t, value, "o", color=COLOURS[colour], ms=6.6, mec=COLOURS["card"], mew=1, clip_on=False)[0]
            drawing.tip(dot, f"t = {t:g}, {name}: {value:.3g}")
    if (equal := number(about.get("equal"))) is not None and 0 <= equal <= 1000:
        axes.axvline(equal, color=COLOURS["floor"], linewidth=1.4, linestyle=DASHES)
        drawing.note(axes, "made equal here", (equal, 1), (6, -12), xycoords=("data", "axes fraction"))
    drawing.legend(keys, 64)
    yield Figure("Distance at other timesteps", str(about.get("words", "")), drawing.svg())


def where(about: dict[str, Any]) -> str:
    """The case that a picture is of."""
    return f"Case {about['case']}, {about.get('precision', '')}. " if about.get("case") else ""


def placed(values: Any, low: float, high: float) -> list[float]:
    """Numbers on a scale: what lies outside is drawn at its edge, what is none or not finite is left out."""
    return [nan if value is None or broken(value) else min(max(value, low), high) for value in values]


def log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """A logarithmic scale for `which`, "x" or "y", with numbers at powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis, room = (axes.xaxis, axes.bbox.width / 44) if which == "x" else (axes.yaxis, axes.bbox.height / 22)
    axis.set_major_locator(LogLocator(numticks=max(2, int(room))))
    axis.set_major_formatter(lambda value, _: show(value))
    axis.set_minor_locator(LogLocator(subs=(2, 5), numticks=4))
    axis.set_minor_formatter(NullFormatter())
    axis.grid(True, which="minor", linestyle=(0, (1, 4)))


def _range(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Whole decades around the positive numbers of many values; None without any."""
    numbers = [value for value in values if value is not None and 0 < value < inf]
    if not numbers:
        return None
    low = floor(log10(max(min(numbers) / 1.4, 1e-300)))
    return 10.0**low, 10.0 ** max(ceil(log10(min(max(numbers), 1e300) * 1.4)), low + 1)


def _curve(points: Sequence[Point], limit: float, words: str, lines: Sequence[str]) -> str:
    """The error against its floor and limit on a log scale; '' where no number can be placed."""
    limits = [point.floor and point.floor * limit for point in points]
    span = _range([*limits, *(value for point in points for value in (point.error, point.floor))])
    if span is None:
        return ""
    shown = [cut(point.name, 24) for point in points]
    # Slanted names run down to the left: the first one needs its room within the picture.
    left = max(64.0, len(shown[0]) * LETTER * 0.72 + 12)
    drawing = Drawing(TOP + PLOT + max(map(len, shown)) * LETTER * 0.75 + 22, words)
    axes = drawing.axes(left, TOP, WIDTH - left - RIGHT, PLOT)
    axes.set_xlim(-0.5, len(points) - 0.5)
    axes.grid(False, axis="x")
    log_axis(axes, "y", *span)
    # Those behind the first that is wrong inherit its error. Names that stand too close to others are left out.
    first = next((x for x, point in enumerate(points) if point.wrong), None)
    every = ceil(LABEL_ROOM * len(points) / (WIDTH - left - RIGHT))
    near = range(first - every + 1, first + every) if first is not None else ()
    names = {x: shown[x] for x in range(len(points)) if x == first or (x % every == 0 and x not in near)}
    slant: dict[str, Any] = {"rotation": 42, "ha": "right", "va": "top", "rotation_mode": "anchor"}
    drawing.names(axes.xaxis, names, [x for x in names if x == first], **slant)
    xs, allowed = range(len(points)), placed(limits, *span)
    axes.fill_between(xs, span[0], allowed, color=COLOURS["series"], alpha=0.07, linewidth=0)
    over = axes.plot(xs, allowed, color=COLOURS["limit"], linewidth=1.6)[0]
    floors = placed([point.floor for point in points], *span)
    noise = axes.plot(xs, floors, color=COLOURS["floor"], linewidth=1.8, linestyle=DASHES)[0]
    errors, white = placed([point.error for point in points], *span), COLOURS["card"]
    line = axes.plot(xs, errors, "o-", color=COLOURS["series"], linewidth=2.2, ms=7, mec=white, mew=1)[0]
    for x, point in enumerate(points):
        if point.wrong:
            marker = ("x", span[1], 2.2) if broken(point.error) else ("o", errors[x], 0)
            axes.plot(x, marker[1], marker[0], color=COLOURS["fail"], ms=7, mew=marker[2], clip_on=False, zorder=4)
        # What a pointer can hit is as tall as the axes.
        bar = axes.bar(x, span[1] - span[0], 12 / axes.bbox.width * len(points), span[0], color=white, alpha=0.001)
        drawing.tip(bar[0], point.words)
    drawing.legend([(line, lines[0]), (noise, lines[-1]), (over, f"limit: {show(limit)} × the noise floor")], left)
    return drawing.svg()


def _bars(points: Sequence[Point], words: str, width: float) -> str:
    """A bar for each stage, with its noise floor and its number; '' where none can be placed."""
    span = _range([value for point in points for value in (point.error, point.floor)])
    if span is None:
        return ""
    low, high = span
    drawing = Drawing(TOP + ROW * len(points) + 30, words, width)
    axes = drawing.axes(160, 30, width - 160 - 76, ROW * len(points))
    log_axis(axes, "x", low, high)
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.grid(False, axis="y")
    names = {y: point.name for y, point in enumerate(points)}
    drawing.names(axes.yaxis, names, {y for y in names if points[y].wrong})
    for y, point in enumerate(points):
        end = high if broken(point.error) else min(max(point.error or 0.0, low), high)
        fill, alpha, ink = ("fail", 1.0, "fail") if point.wrong else ("series", 0.62, "mute")
        bar = axes.barh(y, end - low, 0.64, low, color=COLOURS[fill], alpha=alpha)
        drawing.tip(bar[0], point.words)
        drawing.note(axes, show(point.error), (end, y), (6, 0), color=COLOURS[ink], va="center_baseline")
    floors = placed([point.floor for point in points], *span)
    axes.vlines(floors, [y - 0.4 for y in names], [y + 0.4 for y in names], color=COLOURS["floor"], linewidth=2)
    keys = [
        (key("s", "series", 0.62), "as the original"),
        (key("s", "fail"), "at fault"),
        (key("|", "floor", markeredgewidth=2), "noise floor"),
    ]
    drawing.legend(keys, 40)
    return drawing.svg()
