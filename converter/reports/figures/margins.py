"""How much of its limit every case uses up: a dot per statistic, the limit as a line. The picture of a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..facts import floor_limit, gates, margin, precision_of
from ..numbers import broken, show
from ..report import Check, Phase
from .drawing import COLOURS, WIDTH, Drawing, Figure, key, log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 60  # of more cases those that use most of their limits are drawn
SERIES = (("o", "series"), ("D", "s1"), ("s", "s2"), ("^", "s3"), ("|", "mute"))  # a marker and a colour per statistic
AGAINST = " against "  # the original in the same precision, and not the truth
LEFT, GAP, RIGHT, TOP, ROW = 212.0, 34.0, 14.0, 70.0, 20.0


def margins(phase: Phase) -> Iterator[Figure]:
    """One panel per precision side by side, a row per case and part of the output."""
    checks = [check for check in gates(phase) if margin(check) is not None]
    used: dict[str, float] = {}
    for check in checks:
        used[check.what] = max(used.get(check.what, 0.0), _margin(check))
    if not used:
        return
    most = set(sorted(used, key=lambda what: -used[what])[:ROWS])
    left_out = len(used) - len(most)
    words = f" The {ROWS} that use most of their limits; {left_out} more are in the table." if left_out else ""
    caption = f"A dot per statistic of every case and part of the output; left of the line passes.{words}"
    checks = [check for check in checks if check.what in most]
    yield Figure("Distance from the limit", caption, _draw(checks, floor_limit(phase)))


def _draw(checks: Sequence[Check], floors: float) -> str:
    rows = list(dict.fromkeys(check.what for check in checks))
    statistics = list(dict.fromkeys(_statistic(check) for check in checks))
    failed = {check.what for check in checks if _fails(check)}
    precisions = sorted({precision_of(check)[0] for check in checks}, key=lambda name: (name != "float32", name))[:3]
    drawing = Drawing(TOP + ROW * len(rows) + 30, "how much of its limit every case uses")
    width = (WIDTH - LEFT - RIGHT - GAP * (len(precisions) - 1)) / len(precisions)
    for i, precision in enumerate(precisions):
        axes = drawing.axes(LEFT + i * (width + GAP), TOP, width, ROW * len(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        names = dict(enumerate("" if i else what for what in rows))
        drawing.names(axes.yaxis, names, {row for row, what in enumerate(rows) if what in failed})
        mine = [check for check in checks if precision_of(check)[0] == precision]
        unit, counted = (floors, "noise floor") if precision == "float32" else (1.0, "limit")
        low, high = _scale(axes, [_margin(check) * unit for check in mine], unit)
        axes.axvspan(low, unit, color=COLOURS["series"], alpha=0.07, linewidth=0)  # what passes
        axes.axvline(unit, color=COLOURS["limit"], linewidth=1.6)
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        heading, limit = f"{precision}: times the {counted}", f"limit {show(unit)}"
        axes.annotate(drawing.text(heading), (low, 1), (0, 21), fontsize=12, fontweight="bold", **place)
        axes.annotate(drawing.text(limit), (unit, 1), (0, 6), color=COLOURS["limit"], ha="center", **place)
        alike: dict[tuple[int, bool, bool, bool], list[Check]] = {}
        for check in mine:
            kind = statistics.index(_statistic(check)), _faint(check), _fails(check), broken(_margin(check))
            alike.setdefault(kind, []).append(check)
        for (series, faint, fails, lost), same in sorted(alike.items(), reverse=True):  # what people know is on top
            marker, colour = SERIES[min(series, len(SERIES) - 1)]
            dots = axes.scatter(
                [high if lost else min(max(_margin(check) * unit, low), high) for check in same],
                [rows.index(check.what) for check in same],
                s=64 if marker == "o" else 42,
                marker="x" if lost else marker,
                color=COLOURS["fail" if fails else colour],
                alpha=0.4 if faint and not lost else 1,
                linewidths=2.2 if lost or marker == "|" else 0,
                zorder=3,
            )
            drawing.tooltips(dots, [f"{check.what}, {check.statistic}: {check.words}" for check in same])
    finite = {_statistic(check) for check in checks if not broken(_margin(check))}
    keys = [(key(*series), name) for series, name in zip(SERIES, statistics, strict=False) if name in finite]
    if any(map(_faint, checks)):
        keys.append((key(*SERIES[0], 0.4), "faint: against the original's float32 output"))
    drawing.legend(keys, 8)
    return drawing.svg()


def _scale(axes: Axes, ratios: Sequence[float], unit: float) -> tuple[float, float]:
    """Linear from zero while all is well; logarithmic as soon as something lies far beyond the limit."""
    from matplotlib.ticker import MaxNLocator

    finite = [ratio for ratio in ratios if not broken(ratio)]
    high = max([*finite, unit])
    if high <= 2.5 * unit:
        low, high = 0.0, max(high * 1.08, unit * 1.2)
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        low, high = max(min([r for r in finite if r > 0] + [unit]) / 2, unit * 1e-3), min(high, 1e300) * 1.5
        log_axis(axes, "x", low, high)
    return low, high


def _margin(check: Check) -> float:
    return margin(check) or 0.0


def _statistic(check: Check) -> str:
    return precision_of(check)[1].partition(AGAINST)[0]


def _faint(check: Check) -> bool:
    return AGAINST in check.statistic


def _fails(check: Check) -> bool:
    return check.passed is False and not check.waived
