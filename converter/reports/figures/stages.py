"""Error along the net or along the steps of a sampler, with its noise floor and limit; distance over timesteps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, nan
from typing import TYPE_CHECKING, Any

from ..numbers import broken, mapping, number, positive, sequence, show, times
from ..report import FLOOR_LIMIT
from .drawing import COLOURS, WIDTH, Drawing, Figure, clipped, log_axis, log_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIGHT, TOP, PLOT = 20.0, 42.0, 250.0
LETTER, LABEL_ROOM = 6.1, 15.0  # how wide a letter is; how far apart slanted names have to stand
WORDS = ("converted", "noise floor: the original's own rounding")
WITHIN = "What lies in the shaded area would still pass."
TIMESTEP_LINES = ("series", "s1", "s2", "s3")


@dataclass(frozen=True)
class Stage:
    """An error with the noise floor there. What is no number is None; `limit` is in multiples of the floor."""

    name: str
    error: float | None
    floor: float | None
    limit: float = FLOOR_LIMIT

    @property
    def over(self) -> bool:
        return broken(self.error) or bool(self.error and self.floor and self.error > self.limit * self.floor)

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
    stages = [
        Stage(str(name), number(error), positive(floor), limit)
        for name, error, floor in zip(names, errors, floors, strict=False)
    ]
    words = [str(name) for name in sequence(about.get("words"))] or WORDS
    if svg := _curve(stages, "error of every stage of the net", words[0], words[-1]):
        over = [stage.name for stage in stages if stage.over]
        verdict = f"The line leaves what is allowed at {over[0]}." if over else WITHIN
        caption = f"{where(about)}Relative L2 after each stage, log scale. {verdict}"
        yield Figure("Error along the net", caption, svg)


def trajectory(about: dict[str, Any]) -> Iterator[Figure]:
    """The error of every sampler step."""
    steps = []
    for step in map(mapping, sequence(about.get("steps"))):
        name = show(step.get("step")) + (f" (t {show(step['timestep'])})" if "timestep" in step else "")
        limit = positive(about.get("limit")) or FLOOR_LIMIT
        steps.append(Stage(name, number(step.get("error")), positive(step.get("floor")), limit))
    if svg := _curve(steps, "error of every sampler step", "converted", "noise floor"):
        sampler = f"{about['sampler']} from the same noise. " if about.get("sampler") else "From the same noise. "
        caption = f"{sampler}Relative L2 of the latents after each step, log scale."
        yield Figure("Error along the trajectory", caption, svg)


def timesteps(about: dict[str, Any]) -> Iterator[Figure]:
    """How far apart two nets are at every timestep: a line for each of `about["lines"]`, name -> numbers."""
    at = [value for raw in sequence(about.get("timesteps")) if (value := number(raw)) is not None]
    lines = {str(name): [number(v) for v in sequence(values)] for name, values in mapping(about.get("lines")).items()}
    drawn = {name: [nan if v is None or broken(v) else v for v in values] for name, values in lines.items()}
    if not at or not drawn or any(len(values) != len(at) for values in drawn.values()):
        return
    drawing = Drawing(TOP + PLOT + 50, "how far apart the two are at each timestep")
    axes = drawing.axes(64, TOP, WIDTH - 64 - RIGHT, PLOT)
    most = max((value for values in drawn.values() for value in values if value == value), default=0.0)
    axes.set(xlim=(0, 1000), ylim=(0, most * 1.08 or 1.0), xticks=range(0, 1001, 100))
    axes.set_xlabel("timestep", color=COLOURS["mute"])
    keys = []
    for (name, values), colour in zip(drawn.items(), TIMESTEP_LINES, strict=False):
        style: dict[str, Any] = {"color": COLOURS[colour], "linewidth": 2.2}
        line = axes.plot(at, values, **style)[0]
        dots = axes.scatter(at, values, s=44, color=COLOURS[colour], edgecolors=COLOURS["card"], zorder=3)
        drawing.tooltips(dots, [f"t = {t:g}, {name}: {v:.3g}" for t, v in zip(at, values, strict=True) if v == v])
        keys.append((line, name))
    if (meet := number(about.get("equal"))) is not None and 0 <= meet <= 1000:
        axes.axvline(meet, color=COLOURS["floor"], linewidth=1.4, linestyle=(0, (4, 2.5)))
        axes.annotate("made equal here", (meet, 1), (6, -12), ("data", "axes fraction"), "offset points")
    drawing.legend(keys, 64)
    yield Figure("Distance at other timesteps", str(about.get("words", "")), drawing.svg())


def where(about: dict[str, Any]) -> str:
    """The case that a picture is of."""
    return f"Case {about['case']}, {about.get('precision', '')}. " if about.get("case") else ""


def _curve(stages: list[Stage], words: str, converted: str, noise: str) -> str:
    """The error against its floor and limit on a log scale; '' where no number can be placed."""
    limits = [stage.floor and stage.floor * stage.limit for stage in stages]
    span = log_range([*limits, *(value for stage in stages for value in (stage.error, stage.floor))])
    if span is None:
        return ""
    low, high = span
    drawing, axes = upright(stages, words)
    log_axis(axes, "y", low, high)
    xs = range(len(stages))

    def placed(values: list[float | None]) -> list[float]:
        return [nan if value is None or broken(value) else clipped(value, low, high) for value in values]

    axes.fill_between(xs, low, placed(limits), color=COLOURS["series"], alpha=0.07, linewidth=0)  # what is allowed
    limit = axes.plot(xs, placed(limits), color=COLOURS["limit"], linewidth=1.6)[0]
    dashes: dict[str, Any] = {"color": COLOURS["floor"], "linewidth": 1.8, "linestyle": (0, (3, 2))}
    floor = axes.plot(xs, placed([stage.floor for stage in stages]), **dashes)[0]
    dots: dict[str, Any] = {"marker": "o", "markersize": 7, "markeredgecolor": COLOURS["card"]}
    line = axes.plot(xs, placed([stage.error for stage in stages]), color=COLOURS["series"], linewidth=2.2, **dots)[0]
    for x, stage in enumerate(stages):
        if stage.over:
            marker = {"marker": "x", "s": 60, "linewidths": 2.2} if broken(stage.error) else {"s": 49}
            at = high if broken(stage.error) else clipped(stage.error or 0.0, low, high)
            axes.scatter([x], [at], color=COLOURS["fail"], zorder=4, **marker)
    drawing.targets(axes, [stage.words for stage in stages])
    name = f"limit: {show(stages[0].limit)} × the noise floor"
    drawing.legend([(line, converted), (floor, noise), (limit, name)], axes.bbox.x0)
    return drawing.svg()


def upright(stages: Sequence[Stage], words: str, marked: list[bool] | None = None) -> tuple[Drawing, Axes]:
    """A picture with a place for each stage and its slanted name below. What is over its limit is `marked`: the first
    alone, where those behind it inherit the error."""
    shown = [stage.name if len(stage.name) <= 24 else f"{stage.name[:23]}…" for stage in stages]
    if marked is None:
        first = next((i for i, stage in enumerate(stages) if stage.over), None)
        marked = [i == first for i in range(len(stages))]
    # Slanted names run down to the left: the first one needs its room within the picture.
    left = max(64.0, len(shown[0]) * LETTER * 0.72 + 12)
    drawing = Drawing(TOP + PLOT + max(map(len, shown)) * LETTER * 0.75 + 22, words)
    axes = drawing.axes(left, TOP, WIDTH - left - RIGHT, PLOT)
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.grid(False, axis="x")
    # Where they stand too close some are left out, but never a marked one.
    every = ceil(LABEL_ROOM / ((WIDTH - left - RIGHT) / len(stages)))
    near = {j for i, wrong in enumerate(marked) if wrong for j in range(i - every + 1, i + every)}
    places = [i for i, wrong in enumerate(marked) if wrong or (i % every == 0 and i not in near)]
    axes.set_xticks(
        places, [drawing.text(shown[i]) for i in places], rotation=42, ha="right", va="top", rotation_mode="anchor"
    )
    drawing.mark(axes.get_xticklabels(), [marked[i] for i in places])
    return drawing, axes
