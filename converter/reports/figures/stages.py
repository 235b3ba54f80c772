"""Error along the net or the steps of a sampler, the local error of every stage, and distance over timesteps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, nan
from typing import Any

from ..numbers import broken, mapping, number, positive, sequence, show, times
from ..report import FLOOR_LIMIT, Phase
from .drawing import COLOURS, WIDTH, Drawing, Figure, key, log_axis, log_range, placed

RIGHT, TOP, PLOT, ROW = 20.0, 42.0, 250.0, 20.0
LETTER, LABEL_ROOM = 6.1, 15.0  # how wide a letter is; how far apart slanted names have to stand
MOST = 8  # stages whose inside is drawn
LINES = ("converted", "noise floor: the original's own rounding")
WITHIN = "What lies in the shaded area would still pass."
INHERITED = "In the order of the computation: the first red part is where it begins, those below inherit it."


@dataclass(frozen=True)
class Stage:
    """An error, None where it is no number, with the noise floor there. `wrong`: over its limit, or at fault."""

    name: str
    error: float | None
    floor: float | None
    wrong: bool

    @classmethod
    def over(cls, name: str, raw_error: Any, raw_floor: Any, limit: float) -> Stage:
        """One that may be `limit` times its floor."""
        error, floor = number(raw_error), positive(raw_floor)
        return cls(name, error, floor, broken(error) or bool(error and floor and error > limit * floor))

    @classmethod
    def local(cls, about: dict[str, Any]) -> Stage:
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
    stages = [
        Stage.over(str(name), error, floor, limit) for name, error, floor in zip(names, errors, floors, strict=False)
    ]
    lines = [str(name) for name in sequence(about.get("words"))] or LINES
    if svg := _curve(stages, limit, "error of every stage of the net", lines):
        over = [stage.name for stage in stages if stage.wrong]
        verdict = f"The line leaves what is allowed at {over[0]}." if over else WITHIN
        caption = f"{where(about)}Relative L2 after each stage, log scale. {verdict}"
        yield Figure("Error along the net", caption, svg)


def trajectory(about: dict[str, Any]) -> Iterator[Figure]:
    """The error of every sampler step."""
    steps, limit = [], positive(about.get("limit")) or FLOOR_LIMIT
    for step in map(mapping, sequence(about.get("steps"))):
        name = show(step.get("step")) + (f" (t {show(step['timestep'])})" if "timestep" in step else "")
        steps.append(Stage.over(name, step.get("error"), step.get("floor"), limit))
    if svg := _curve(steps, limit, "error of every sampler step", ("converted", "noise floor")):
        sampler = f"{about['sampler']} from the same noise. " if about.get("sampler") else "From the same noise. "
        caption = f"{sampler}Relative L2 of the latents after each step, log scale."
        yield Figure("Error along the trajectory", caption, svg)


def localisation(phase: Phase) -> Iterator[Figure]:
    """Which stage is at fault: its own error when it gets the original's input, and the same for what is inside it."""
    about = mapping(phase.detail.get("localisation"))
    raw = [mapping(stage) for stage in sequence(about.get("stages"))]
    stages = [Stage.local(stage) for stage in raw]
    if svg := _bars(stages, "local error of every stage of the net", WIDTH):
        wrong = [stage.name for stage in stages if stage.wrong]
        more = ", ..." if len(wrong) > MOST else ""
        at_fault = f" At fault: {', '.join(wrong[:MOST])}{more}." if wrong else ""
        caption = (
            f"{where(about)}Every stage is given what the original's got, so that no error spreads; by what the stage "
            f"itself changes, log scale.{at_fault}"
        )
        yield Figure("Where it goes wrong", caption, svg)
    for stage in [stage for stage in raw if stage.get("faulty") and sequence(stage.get("inside"))][:MOST]:
        parts = [Stage.local(mapping(part)) for part in sequence(stage.get("inside"))]
        if svg := _bars(parts, "local error of the parts of a stage", WIDTH / 2 - RIGHT):
            yield Figure(f"Inside {stage.get('name', 'it')}", INHERITED, svg, "small")


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
    for (name, values), colour in zip(drawn.items(), ("series", "s1", "s2", "s3"), strict=False):
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


def _curve(stages: Sequence[Stage], limit: float, words: str, lines: Sequence[str]) -> str:
    """The error against its floor and limit on a log scale; '' where no number can be placed."""
    limits = [stage.floor and stage.floor * limit for stage in stages]
    span = log_range([*limits, *(value for stage in stages for value in (stage.error, stage.floor))])
    if span is None:
        return ""
    shown = [stage.name if len(stage.name) <= 24 else f"{stage.name[:23]}…" for stage in stages]
    # Slanted names run down to the left: the first one needs its room within the picture.
    left = max(64.0, len(shown[0]) * LETTER * 0.72 + 12)
    width = WIDTH - left - RIGHT
    drawing = Drawing(TOP + PLOT + max(map(len, shown)) * LETTER * 0.75 + 22, words)
    axes = drawing.axes(left, TOP, width, PLOT)
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.grid(False, axis="x")
    log_axis(axes, "y", *span)
    xs = range(len(stages))
    # Those behind the first that is wrong inherit its error. Names that stand too close to others are left out.
    first = next((x for x in xs if stages[x].wrong), None)
    every = ceil(LABEL_ROOM * len(stages) / width)
    names = {x: shown[x] for x in xs if x == first or (x % every == 0 and (first is None or abs(x - first) >= every))}
    slant: dict[str, Any] = {"rotation": 42, "ha": "right", "va": "top", "rotation_mode": "anchor"}
    drawing.names(axes.xaxis, names, [x for x in names if x == first], **slant)
    allowed, noise = placed(limits, *span), placed([stage.floor for stage in stages], *span)
    axes.fill_between(xs, span[0], allowed, color=COLOURS["series"], alpha=0.07, linewidth=0)
    over = axes.plot(xs, allowed, color=COLOURS["limit"], linewidth=1.6)[0]
    floor = axes.plot(xs, noise, color=COLOURS["floor"], linewidth=1.8, linestyle=(0, (3, 2)))[0]
    errors, edge = placed([stage.error for stage in stages], *span), COLOURS["card"]
    line = axes.plot(xs, errors, "o-", color=COLOURS["series"], linewidth=2.2, markersize=7, markeredgecolor=edge)[0]
    red = [stage.wrong and error == error for stage, error in zip(stages, errors, strict=True)]
    axes.scatter([x for x in xs if red[x]], [errors[x] for x in xs if red[x]], s=49, color=COLOURS["fail"], zorder=4)
    for x in xs:
        if broken(stages[x].error):
            axes.scatter([x], [span[1]], s=60, marker="x", color=COLOURS["fail"], linewidths=2.2, zorder=4)
    drawing.targets(axes, [stage.words for stage in stages])
    drawing.legend([(line, lines[0]), (floor, lines[-1]), (over, f"limit: {show(limit)} × the noise floor")], left)
    return drawing.svg()


def _bars(stages: Sequence[Stage], words: str, width: float) -> str:
    """A bar for each stage, with its noise floor and its number; '' where none can be placed."""
    span = log_range([value for stage in stages for value in (stage.error, stage.floor)])
    if span is None:
        return ""
    low, high = span
    drawing = Drawing(TOP + ROW * len(stages) + 30, words, width)
    axes = drawing.axes(160, 30, width - 160 - 76, ROW * len(stages))
    log_axis(axes, "x", low, high)
    ys = range(len(stages))
    axes.set_ylim(len(stages) - 0.5, -0.5)
    axes.grid(False, axis="y")
    drawing.names(axes.yaxis, {y: stages[y].name for y in ys}, {y for y in ys if stages[y].wrong})
    ends = [high if broken(stage.error) else min(max(stage.error or 0.0, low), high) for stage in stages]
    kinds = [("fail", 1.0) if stage.wrong else ("series", 0.62) for stage in stages]
    colours = [(COLOURS[name], alpha) for name, alpha in kinds]
    bars = axes.barh(ys, [end - low for end in ends], 0.64, low, color=colours)
    for y, (stage, bar) in enumerate(zip(stages, bars, strict=True)):
        drawing.tooltips(bar, [stage.words])
        style: dict[str, Any] = {"color": COLOURS["fail" if stage.wrong else "mute"], "va": "center_baseline"}
        axes.annotate(drawing.text(show(stage.error)), (ends[y], y), (6, 0), textcoords="offset points", **style)
    floors = placed([stage.floor for stage in stages], *span)
    axes.vlines(floors, [y - 0.4 for y in ys], [y + 0.4 for y in ys], color=COLOURS["floor"], linewidth=2)
    keys = [
        (key("s", "series", 0.62), "as the original"),
        (key("s", "fail"), "at fault"),
        (key("|", "floor", markeredgewidth=2), "noise floor"),
    ]
    drawing.legend(keys, 40)
    return drawing.svg()
