"""How far the outputs of every case are from their limits, and where in the output the two nets differ."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

from .drawing import COLOURS, WIDTH, Picture, canvas, cut, key, legend, log_axis, mark, placed, tip, where
from .limits import AGAINST, SCALES, margin, precision_of
from .numbers import broken, number, positive, sequence, show
from .report import Check, Phase

ROWS = 60  # of more cases those that use most of their limits are drawn
SERIES = (("o", "series"), ("D", "s1"), ("s", "s2"), ("^", "s3"), ("|", "mute"))  # a marker and a colour per statistic
CHANNELS = 64
NOT_FINITE = "#e6007e"


def margins(phase: Phase) -> Iterator[Picture]:
    """How much of its limit every case uses up, a dot per statistic: one panel per precision side by side."""
    checks = [(share, check) for check in phase.gates if (share := margin(check)) is not None]
    used = list(dict.fromkeys(check.what for _, check in sorted(checks, key=lambda pair: -pair[0])))
    if used:
        caption = "A dot per statistic of every case and part of the output; left of the line passes."
        if len(used) > ROWS:
            caption += f" The {ROWS} that use most of their limits; {len(used) - ROWS} more are in the table."
        yield _margins([pair for pair in checks if pair[1].what in used[:ROWS]], caption)


def _margins(checks: list[tuple[float, Check]], caption: str) -> Picture:
    rows = list(dict.fromkeys(check.what for _, check in checks))
    statistics = list(dict.fromkeys(_statistic(check) for _, check in checks))
    precisions = sorted({precision_of(check)[0] for _, check in checks}, key=lambda name: (name != "float32", name))[:3]
    failed = {check.what for _, check in checks if check.failed}
    figure = canvas(100 + 20 * len(rows))
    panels = figure.subplots(1, len(precisions), sharey=True, squeeze=False)[0]
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    mark(panels[0].set_yticks(range(len(rows)), [cut(what, 30) for what in rows]), [what in failed for what in rows])
    for axes, precision in zip(panels, precisions, strict=True):
        scale = SCALES.get(precision, SCALES["float64"])
        unit = scale.limit
        ratios = [(share * unit, check) for share, check in checks if precision_of(check)[0] == precision]
        finite = [ratio for ratio, _ in ratios if not broken(ratio)]
        high = max([*finite, unit])
        if high <= 2.5 * unit:
            low, high = 0.0, max(high * 1.08, unit * 1.2)
            axes.set_xlim(low, high)
            axes.locator_params("x", nbins=5)
        else:  # logarithmic as soon as something lies far beyond the limit
            low = max(min([ratio for ratio in finite if ratio > 0] + [unit]) / 2, unit * 1e-3)
            high = min(high, 1e300) * 1.5
            log_axis(axes, "x", low, high)
        axes.axvspan(low, unit, color=COLOURS["series"], alpha=0.07, linewidth=0)  # what passes
        axes.axvline(unit, color=COLOURS["limit"])
        axes.set_title(cut(f"{precision}: times the {scale.unit}", 60), size=12, weight="bold", loc="left", pad=21)
        top: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"limit {show(unit)}", (unit, 1), (0, 6), color=COLOURS["limit"], **top)
        for ratio, check in ratios:
            series = min(statistics.index(_statistic(check)), len(SERIES) - 1)
            marker, colour = ("x", "fail") if broken(ratio) else SERIES[series]
            (dot,) = axes.plot(
                high if broken(ratio) else min(max(ratio, low), high),
                rows.index(check.what),
                marker=marker,
                color=COLOURS["fail" if check.failed else colour],
                alpha=0.4 if AGAINST in check.statistic and marker != "x" else 1,
                markersize=8 if marker == "o" else 6.5,
                markeredgewidth=2.2 if marker in "x|" else 0,
                zorder=4 - series / 10,  # what people know is on top
                clip_on=False,
            )
            tip(dot, f"{check.what}, {check.statistic}: {check.words}")
    finite_ones = {_statistic(check) for share, check in checks if not broken(share)}
    dots = {name: key(marker, COLOURS[c]) for name, (marker, c) in zip(statistics, SERIES, strict=False)}
    keys = {name: dot for name, dot in dots.items() if name in finite_ones}
    if any(AGAINST in check.statistic for _, check in checks):
        keys["faint: against the original's float32 output"] = key("o", COLOURS["series"], 0.4)
    if keys:
        legend(figure, keys)
    return Picture.of(figure, "Distance from the limit", caption)


def _statistic(check: Check) -> str:
    return precision_of(check)[1].partition(AGAINST)[0]


def heat(about: dict[str, Any]) -> Iterator[Picture]:
    """A small map of |difference| per channel, all in the same colours."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    rows, columns = (int(positive(about.get(name)) or 0) for name in ("rows", "columns"))
    maps = [placed(map(number, sequence(channel)), 0, 1e300) for channel in sequence(about.get("values"))[:CHANNELS]]
    names, unit = [str(name) for name in sequence(about.get("channels"))], str(about.get("unit"))
    if {len(channel) for channel in maps} != {rows * columns} or not rows * columns or len(names) < len(maps):
        return
    values = np.reshape(maps, (len(maps), rows, columns))
    shown = values[values > 0] if (values > 0).any() else np.ones(1)
    # A quantile, lest a few exact hits stretch the scale over decades in which there is nothing to see.
    least, middle, high = np.quantile(shown, (0.02, 0.5, 1))
    linear = high <= 20 * middle  # noise, of which all is alike
    scale = (Normalize if linear else LogNorm)(0 if linear else np.clip(least, high / 1e6, high / 10), high, clip=True)
    across = min(len(maps), 4 if len(maps) <= 8 or columns > 2 * rows else 8)
    down, cell = ceil(len(maps) / across), min(WIDTH / across / columns, 212 / columns, 240 / rows)
    figure = canvas(80 + down * (cell * rows + 30))
    panels = figure.subplots(down, across, squeeze=False)
    colours = colormaps["viridis"].with_extremes(bad=NOT_FINITE)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, name, channel in zip(panels.flat, names, values, strict=False):
        image = axes.imshow(channel, norm=scale, cmap=colours)
        axes.set_title(cut(name, max(8, int(cell * columns / 6.6))), color=COLOURS["mute"], size=11.5, loc="left")
        lost, most = int(np.isnan(channel).sum()), float(np.nanmax([*channel.flat, -1]))
        words = f"{name}: at most {show(None if most < 0 else most)}"
        tip(axes, words + (f", {lost} not finite" if lost else ""))
    shades: dict[str, Any] = {"location": "top", "shrink": 0.4, "aspect": 25, "label": cut(unit, 60)}
    bar = figure.colorbar(image, ax=panels, **shades)
    bar.ax.xaxis.set_major_formatter(lambda value, _: show(value))
    if linear:
        bar.ax.locator_params("x", nbins=4)
    for shades_drawn in bar.ax.collections:
        shades_drawn.set_rasterized(True)  # not one element for each
    bar.outline.set_visible(False)
    bar.minorticks_off()
    if count := int(np.isnan(values).sum()):
        legend(figure, {f"not finite ({count})": key("s", NOT_FINITE)})
    words = (
        f"{unit}, one {'linear' if linear else 'log'} colour scale for all channels. Evenly spread is noise; a pattern"
    )
    yield Picture.of(figure, "Where the outputs differ", f"{where(about)}{words} is a fault.")
