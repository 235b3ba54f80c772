"""The pictures of a report, of what a phase's `detail` holds, any part of which may be missing: the error along the net
or the steps of a sampler, the local error of every stage, and distance over timesteps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, floor, inf, log10, nan
from typing import Any, NamedTuple

from ..errors import shortened
from .drawing import COLOURS, WIDTH, Picture, canvas, cut, key, legend, log_axis, mark, placed, tip, where
from .facts import localised
from .numbers import broken, mapping, number, positive, sequence, show, times
from .output_figures import heat, margins
from .report import FLOOR_LIMIT, Phase

NOISE = "noise floor: the original's own rounding"
INHERITED = "In the order of the computation: the first red part is where it begins, those below inherit it."
INSIDES = 8  # stages whose inside is drawn


class Point(NamedTuple):
    """An error, None where it is missing, and the noise floor there, NaN for none. `wrong`: over its limit, or at
    fault."""

    name: str
    error: float | None
    floor: float
    wrong: bool

    @classmethod
    def of(cls, name: object, error: object, floor: object, wrong: bool | None = None) -> Point:
        """Of numbers from elsewhere. Where it is not known, wrong is what is not finite, or above the limit."""
        value, least = number(error), positive(floor) or nan
        over = value is not None and (broken(value) or value > FLOOR_LIMIT * least)
        return cls(str(name), value, least, over if wrong is None else wrong)

    @property
    def words(self) -> str:
        ratio = nan if self.error is None else self.error / self.floor
        floors = f", {times(ratio)} times the noise floor of {show(self.floor)}" if 0 < ratio < inf else ""
        return f"{self.name}: {show(self.error)}{floors}"


def figures(phase: Phase) -> Iterator[Picture]:
    """The pictures that a phase has the numbers for, but for the localisation, which has a place of its own."""
    if phase.name == "function":
        yield from margins(phase)
    yield from _timesteps(mapping(phase.detail.get("timesteps")))
    yield from _blocks(mapping(phase.detail.get("blocks")))
    yield from heat(mapping(phase.detail.get("heat")))
    yield from _trajectory(phase.detail, "steps" if phase.name == "images" else "trajectory")


def localisation(phase: Phase) -> Iterator[Picture]:
    """Which stage is at fault: its own error when it gets the original's input, and the same for what is inside it."""
    about = mapping(phase.detail.get("localisation"))
    stages = localised(phase, "stages")
    wrong = [stage for stage in stages if stage.get("faulty")]
    named = shortened([str(stage.get("name", "")) for stage in wrong], INSIDES)
    caption = (
        f"{where(about)}Every stage is given what the original's got, so that no error spreads; by what the stage "
        "itself changes, log scale." + (f" At fault: {named}." if wrong else "")
    )
    yield from _bars(stages, "Where it goes wrong", caption)
    for stage in [stage for stage in wrong if sequence(stage.get("inside"))][:INSIDES]:
        inside = [mapping(part) for part in sequence(stage["inside"])]
        yield from _bars(inside, f"Inside {stage.get('name', 'it')}", INHERITED, kind="small")


def _blocks(about: dict[str, Any]) -> Iterator[Picture]:
    """The error of every stage of the net; `about["words"]` may name the two lines."""
    names, errors = sequence(about.get("stages")), sequence(about.get("converted"))
    floors = [*sequence(about.get("floor")), *[None] * len(names)]
    points = [Point.of(*each) for each in zip(names, errors, floors, strict=False)]
    lines = [str(name) for name in sequence(about.get("words"))] or ["converted", NOISE]
    first = next((point.name for point in points if point.wrong), None)
    within = "What lies in the shaded area would still pass."
    verdict = within if first is None else f"The line leaves what is allowed at {first}."
    caption = f"{where(about)}Relative L2 after each stage, log scale. {verdict}"
    yield from _curve(points, lines, "Error along the net", caption)


def _trajectory(about: dict[str, Any], along: str) -> Iterator[Picture]:
    """The error of every sampler step."""
    points = []
    for step in map(mapping, sequence(about.get("steps"))):
        name = f"{show(step.get('step'))} (t {show(step.get('timestep'))})"
        points.append(Point.of(name, step.get("error"), step.get("floor")))
    sampler = about.get("sampler", "Sampled")
    caption = f"{sampler} from the same noise. Relative L2 of the latents after each step, log scale."
    yield from _curve(points, ["converted", "noise floor"], f"Error along the {along}", caption)


def _errors(points: Sequence[Point]) -> list[float]:
    return [nan if point.error is None else point.error for point in points]


def _decades(*values: float) -> tuple[float, float] | None:
    """Whole decades around the positive numbers of many values; None without any."""
    numbers = [value for value in values if 0 < value < inf]
    if not numbers:
        return None
    low = floor(log10(max(min(numbers) / 1.4, 1e-300)))
    return 10.0**low, 10.0 ** max(ceil(log10(min(max(numbers), 1e300) * 1.4)), low + 1)


def _curve(points: Sequence[Point], lines: Sequence[str], title: str, caption: str) -> Iterator[Picture]:
    """The error against its floor and limit on a log scale, if any number can be placed."""
    errors, floors = _errors(points), [point.floor for point in points]
    limits = [FLOOR_LIMIT * least for least in floors]
    span = _decades(*errors, *floors, *limits)
    if span is None:
        return
    low, high = span
    errors, floors, limits = (placed(values, low, high) for values in (errors, floors, limits))
    names, xs = [cut(point.name, 24) for point in points], range(len(points))
    figure = canvas(310 + max(map(len, names)) * 4.6)
    axes = figure.subplots()
    log_axis(axes, "y", low, high)
    axes.set_xlim(-0.5, len(points) - 0.5)
    axes.grid(False, axis="x")
    # Those behind the first that is wrong inherit its error. Names that stand too close to others are left out.
    first, every = next((x for x in xs if points[x].wrong), -len(points)), ceil(len(points) / 55)
    shown = [x for x in xs if x == first or (x % every == 0 and abs(x - first) >= every)]
    slant: dict[str, Any] = {"rotation": 42, "ha": "right", "va": "top", "rotation_mode": "anchor"}
    mark(axes.set_xticks(shown, [names[x] for x in shown], **slant), [x == first for x in shown])
    axes.fill_between(xs, low, limits, color=COLOURS["series"], alpha=0.07, linewidth=0)
    (over,) = axes.plot(xs, limits, color=COLOURS["limit"])
    (noise,) = axes.plot(xs, floors, "--", color=COLOURS["floor"], linewidth=1.8)
    (line,) = axes.plot(xs, errors, "o-", color=COLOURS["series"], linewidth=2.2, mec=COLOURS["card"])
    # What a pointer can hit is as tall as the axes.
    bars = axes.bar(xs, high - low, 1, low, color=COLOURS["card"], alpha=0.001, zorder=5)
    for x, (point, bar) in enumerate(zip(points, bars, strict=True)):
        tip(bar, point.words)
        if point.wrong:
            y, marker, edge = (high, "x", 2.2) if broken(point.error) else (errors[x], "o", 0)
            axes.plot(x, y, marker, color=COLOURS["fail"], ms=7, mew=edge, clip_on=False, zorder=4)
    legend(figure, {lines[0]: line, lines[-1]: noise, f"limit: {show(FLOOR_LIMIT)} × the noise floor": over})
    yield Picture.of(figure, title, caption)


def _bars(stages: Sequence[dict[str, Any]], title: str, caption: str, kind: str = "wide") -> Iterator[Picture]:
    """A bar for each stage, with its noise floor and its number, if any can be placed."""
    points = [Point.of(s.get("name", ""), s.get("error"), s.get("floor"), bool(s.get("faulty"))) for s in stages]
    span = _decades(*_errors(points), *(point.floor for point in points))
    if span is None:
        return
    low, high = span
    figure = canvas(70 + 20 * len(points), WIDTH if kind == "wide" else WIDTH / 2 - 20)
    axes, ys = figure.subplots(), range(len(points))
    log_axis(axes, "x", low, high)
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.grid(False, axis="y")
    mark(axes.set_yticks(ys, [cut(point.name, 24) for point in points]), [point.wrong for point in points])
    for y, point in enumerate(points):
        end = low if point.error is None else high if broken(point.error) else min(max(point.error, low), high)
        fill, alpha, ink = ("fail", 1.0, "fail") if point.wrong else ("series", 0.62, "mute")
        bar = axes.barh(y, end - low, 0.64, low, color=COLOURS[fill], alpha=alpha)
        axes.bar_label(bar, [show(point.error)], padding=6, color=COLOURS[ink])
        tip(bar[0], point.words)
    floors = placed((point.floor for point in points), low, high)
    axes.vlines(floors, [y - 0.4 for y in ys], [y + 0.4 for y in ys], color=COLOURS["floor"], linewidth=2)
    noise = key("|", COLOURS["floor"], markeredgewidth=2)
    right, wrong = key("s", COLOURS["series"], 0.62), key("s", COLOURS["fail"])
    legend(figure, {"as the original": right, "at fault": wrong, "noise floor": noise})
    yield Picture.of(figure, title, caption, kind)


def _timesteps(about: dict[str, Any]) -> Iterator[Picture]:
    """How far apart two nets are at every timestep: a line for each of `about["lines"]`, name -> numbers."""
    at = [value for raw in sequence(about.get("timesteps")) if (value := number(raw)) is not None]
    raw = mapping(about.get("lines")).items()
    lines = {str(name): placed(map(number, sequence(values)), -inf, inf) for name, values in raw}
    if not at or not lines or any(len(values) != len(at) for values in lines.values()):
        return
    figure, keys = canvas(340), {}
    axes = figure.subplots()
    for (name, values), colour in zip(lines.items(), ("series", "s1", "s2", "s3"), strict=False):
        (keys[name],) = axes.plot(at, values, color=COLOURS[colour], linewidth=2.2)
        for t, value in zip(at, values, strict=True):
            (dot,) = axes.plot(t, value, "o", color=COLOURS[colour], mec=COLOURS["card"], clip_on=False)
            tip(dot, f"t = {t:g}, {name}: {value:.3g}")
    axes.set(xlim=(0, 1000), ylim=(0, None), xlabel="timestep")
    if (equal := number(about.get("equal"))) is not None and 0 <= equal <= 1000:
        axes.axvline(equal, color=COLOURS["floor"], linestyle="--")
        axes.annotate("made equal here", (equal, 1), (6, -12), ("data", "axes fraction"), textcoords="offset points")
    legend(figure, keys)
    yield Picture.of(figure, "Distance at other timesteps", str(about.get("words", "")))
