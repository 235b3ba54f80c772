"""How much of its limit every case uses up: a dot per statistic, the limit as a line. The picture of a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ...gates import AGAINST as BETWEEN
from ...gates import GATING
from ...report import Check, Phase
from ..facts import floor_limit, gates, margin, precision_of
from ..numbers import broken, show, times
from .scales import Linear, Log
from .svg import WIDTH, Figure, cross, label, legend, line, picture, tag, tooltip

LEFT, GAP, RIGHT, TOP, ROW = 212.0, 34.0, 14.0, 70.0, 20.0
MOST = 60  # rows; of more cases those that use most of their limits are drawn
SERIES = GATING


@dataclass
class Panel:
    """The checks of one precision. `unit` is the limit, in what the axis counts: 3 noise floors, or 1 limit."""

    precision: str
    unit: float
    rows: dict[str, list[Check]] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        return [_ratio(check) * self.unit for checks in self.rows.values() for check in checks]

    def scale(self, start: float, stop: float) -> Linear | Log:
        """Linear from zero while all is well; logarithmic as soon as something lies far beyond the limit."""
        finite = [ratio for ratio in self.ratios if not broken(ratio)]
        high = max([*finite, self.unit])
        if high <= 2.5 * self.unit:
            return Linear(0.0, max(high * 1.08, self.unit * 1.2), start, stop)
        low = min([ratio for ratio in finite if ratio > 0] + [self.unit]) / 2
        return Log(max(low, self.unit * 1e-3), high * 1.5, start, stop)


def margins(phase: Phase) -> Iterator[Figure]:
    """One panel per precision side by side, a row per case and part of the output."""
    panels: dict[str, Panel] = {}
    for check in gates(phase):
        precision, _ = precision_of(check)
        if margin(check) is not None:
            unit = floor_limit(phase) if precision == "float32" else 1.0
            panels.setdefault(precision, Panel(precision, unit)).rows.setdefault(check.what, []).append(check)
    if not panels:
        return
    order = sorted(panels.values(), key=lambda panel: (panel.unit == 1.0, panel.precision))[:3]
    rows = list(dict.fromkeys(what for panel in order for what in panel.rows))
    left_out = len(rows) - MOST
    if left_out > 0:
        used = {what: max(_ratio(c) for p in order for c in p.rows.get(what, [])) for what in rows}
        kept = set(sorted(rows, key=lambda what: -used[what])[:MOST])
        rows = [what for what in rows if what in kept]
    words = f" The {MOST} that use most of their limits; {left_out} more are in the table." if left_out > 0 else ""
    caption = f"A dot per statistic of every case and part of the output; left of the line passes.{words}"
    yield Figure("Distance from the limit", caption, _draw(order, rows))


def _draw(panels: list[Panel], rows: list[str]) -> str:
    width = (WIDTH - LEFT - RIGHT - GAP * (len(panels) - 1)) / len(panels)
    bottom = TOP + ROW * len(rows)
    parts = []
    for i, what in enumerate(rows):
        at = TOP + ROW * (i + 0.5)
        if i % 2:
            parts.append(tag("rect", x=0, y=at - ROW / 2, width=WIDTH, height=ROW, class_="stripe"))
        wrong = any(_failed(check) for panel in panels for check in panel.rows.get(what, []))
        parts.append(label(LEFT - 12, at + 4, what, 32, text_anchor="end", class_="tick marked" if wrong else "tick"))
    for i, panel in enumerate(panels):
        start = LEFT + i * (width + GAP)
        parts.append(_panel(panel, rows, start, start + width, bottom))
    keys = [(_mark(11, 0, name, ""), name) for name in SERIES]
    if any(check.statistic.endswith(BETWEEN) for panel in panels for checks in panel.rows.values() for check in checks):
        keys.append((_mark(11, 0, SERIES[0] + BETWEEN, ""), "faint: against the original's float32 output"))
    return picture(WIDTH, bottom + 26, "how much of its limit every case uses", *parts, legend(8, 14, keys))


def _panel(panel: Panel, rows: list[str], start: float, stop: float, bottom: float) -> str:
    x = panel.scale(start, stop)
    limit = x(panel.unit)
    counted = "times the noise floor" if panel.unit != 1.0 else "times the limit"
    # Faint to the left of the limit: what passes.
    parts = [tag("rect", x=start, y=TOP, width=limit - start, height=bottom - TOP, class_="band")]
    parts.append(label(start, TOP - 24, f"{panel.precision}: {counted}", class_="head"))
    for tick in x.ticks(4) if isinstance(x, Linear) else x.ticks(34):
        at = x(tick.value)
        parts.append(line(at, TOP, at, bottom, "grid" if tick.words else "grid minor"))
        if tick.words:
            parts.append(label(at, bottom + 16, tick.words, text_anchor="middle", class_="tick"))
    parts.append(line(limit, TOP - 6, limit, bottom, "limit"))
    parts.append(label(limit, TOP - 9, f"limit {show(panel.unit)}", text_anchor="middle", class_="tick limit-word"))
    for i, what in enumerate(rows):
        at = TOP + ROW * (i + 0.5)
        # The one that people know is drawn last, on top.
        for check in sorted(panel.rows.get(what, []), key=lambda check: precision_of(check)[1] in SERIES[:1]):
            ratio, statistic = _ratio(check) * panel.unit, precision_of(check)[1]
            words = f"{what}, {check.statistic}: {check.words or times(ratio)}"
            if broken(ratio):
                parts.append(cross(stop - 6, at, words))
                continue
            parts.append(_mark(x(ratio), at, statistic, words, _failed(check)))
    return "".join(parts)


def _mark(x: float, y: float, statistic: str, words: str, failed: bool = False) -> str:
    """A dot for the norm, other shapes for the extremes; hollow where the original's own output is the reference."""
    plain = statistic.removesuffix(BETWEEN)
    series = SERIES.index(plain) if plain in SERIES else len(SERIES)
    hollow = " hollow" if statistic.endswith(BETWEEN) else ""
    kind = f"mark s{series}{hollow}{' over' if failed else ''}"
    inside = tooltip(words) if words else ""
    if series == 0:
        return tag("circle", inside, cx=x, cy=y, r=4.6, class_=kind)
    shapes = {1: "M0-4.2L4.2 0L0 4.2L-4.2 0Z", 2: "M-3.2-3.2H3.2V3.2H-3.2Z", 3: "M0-3.9L3.9 3.2H-3.9Z"}
    d = shapes.get(series, "M-1.4-4H1.4V4H-1.4Z")
    return tag("path", inside, d=d, transform=f"translate({x:.1f} {y:.1f})", class_=kind)


def _ratio(check: Check) -> float:
    found = margin(check)
    return float("inf") if found is None else found


def _failed(check: Check) -> bool:
    return check.passed is False and not check.waived
