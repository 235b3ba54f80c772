"""Where in the output the two nets differ: a small map of |difference| per channel, all in the same colours."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan
from typing import TYPE_CHECKING, Any

from ..numbers import broken, number, sequence, show
from .drawing import COLOURS, WIDTH, Drawing, Figure
from .stages import where

if TYPE_CHECKING:
    from matplotlib.colors import Normalize

GAP, HEAD, LEGEND = 14.0, 22.0, 56.0
WIDEST, TALLEST = 212.0, 240.0  # of one map
MOST = 64  # channels
PIXELS = 192  # an image has at least this many across, so that no program blurs it visibly
DECADES = 6  # of a logarithmic scale: what lies further below the maximum is as good as nothing
BROKEN = "#e6007e"


def heat(about: dict[str, Any]) -> Iterator[Figure]:
    """From `detail["heat"]` of the function phase."""
    rows, columns = number(about.get("rows")), number(about.get("columns"))
    if not rows or not columns or broken(rows) or broken(columns) or rows < 0:
        return
    values = [[number(value) for value in sequence(channel)] for channel in sequence(about.get("values"))[:MOST]]
    if not values or any(len(channel) != int(rows) * int(columns) for channel in values):
        return
    names = [str(name) for name in sequence(about.get("channels"))[: len(values)]]
    names += [f"channel {i}" for i in range(len(names), len(values))]
    unit = str(about.get("unit") or "|difference|")
    maps = [[nan if value is None or broken(value) else value for value in channel] for channel in values]
    scale = _scale(maps)
    kind = "linear" if scale.vmin == 0 else "log"
    caption = f"{unit}, one {kind} colour scale for all channels. Evenly spread is noise; a pattern is a fault."
    yield Figure("Where the outputs differ", where(about) + caption, _draw(names, maps, int(columns), scale, unit))


def _scale(maps: list[list[float]]) -> Normalize:
    """Linear for noise, of which all is alike; logarithmic where some of it is far larger than the rest."""
    from matplotlib.colors import LogNorm, Normalize

    values = sorted(value for channel in maps for value in channel if value > 0)
    if not values or values[-1] <= 20 * values[len(values) // 2]:
        return Normalize(0, values[-1] if values else 1, clip=True)
    high = values[-1]
    # A quantile, lest a few exact hits stretch the scale over decades in which there is nothing to see.
    return LogNorm(min(max(values[len(values) // 50], high / 10**DECADES), high / 10), high, clip=True)


def _draw(names: list[str], maps: list[list[float]], columns: int, scale: Normalize, unit: str) -> str:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import MaxNLocator

    rows = len(maps[0]) // columns
    across = min(len(maps), 4 if len(maps) <= 8 or columns > 2 * rows else 8)
    room = (WIDTH - GAP * (across - 1)) / across
    cell = min(min(room, WIDEST) / columns, TALLEST / rows)
    step, down = max(cell * columns, min(room, 96.0)) + GAP, cell * rows + HEAD + GAP
    left = (WIDTH - step * across + GAP) / 2
    drawing = Drawing(LEGEND + down * -(-len(maps) // across), "difference of the outputs, channel by channel")
    colours: dict[str, Any] = {
        "norm": scale,
        "cmap": colormaps["viridis"].with_extremes(bad=BROKEN),
        "aspect": "auto",
        "interpolation": "nearest",
    }
    for i, (name, values) in enumerate(zip(names, maps, strict=True)):
        axes = drawing.axes(
            left + step * (i % across), LEGEND + down * (i // across) + HEAD, cell * columns, cell * rows
        )
        large = np.kron(np.reshape(values, (rows, columns)), np.ones([max(1, PIXELS // columns)] * 2))
        image = axes.imshow(large, **colours)
        axes.set_axis_off()
        heading = drawing.text(name, max(8, int(step / 6.6)))
        axes.annotate(heading, (0, 1), (0, 7), "axes fraction", "offset points", color=COLOURS["mute"])
        finite = [value for value in values if value == value]
        lost = f", {len(values) - len(finite)} not finite" if len(finite) < len(values) else ""
        drawing.tooltips(image, [f"{name}: at most {show(max(finite, default=None))}{lost}"])
    bar = drawing.axes(left, 4, 300, 12)
    shades = ScalarMappable(scale, colours["cmap"])
    legend = drawing.figure.colorbar(shades, cax=bar, orientation="horizontal", format=lambda value, _: show(value))
    if scale.vmin == 0:
        legend.locator = MaxNLocator(4)
    for shade in bar.collections:
        shade.set_rasterized(True)  # not one element for each
    legend.outline.set_visible(False)
    legend.minorticks_off()
    drawing.figure.text(*drawing.place(left + 328, 15), drawing.text(unit), color=COLOURS["mute"])
    if broken_ones := sum(value != value for values in maps for value in values):
        words = drawing.text(f"■ not finite ({broken_ones})")
        drawing.figure.text(*drawing.place(left + 328, 34), words, color=BROKEN)
    return drawing.svg()
