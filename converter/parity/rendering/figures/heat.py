"""Where in the output the two nets differ: a small map of |difference| per channel, all in the same colours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..numbers import broken, mapping, number, sequence, show
from .colours import LEVELS, level, png
from .scales import Linear, Log, Tick
from .svg import WIDTH, Figure, label, picture, tag, tooltip

GAP, HEAD, LEGEND = 14.0, 20.0, 56.0
WIDEST, TALLEST = 212.0, 240.0  # of one map
MOST = 64  # channels
PIXELS = 192  # an image has at least this many across, so that no program blurs it visibly
DECADES = 6.0  # of a logarithmic scale: what lies further below the maximum is as good as nothing


def heat(detail: Any) -> Iterator[Figure]:
    """From `detail["heat"]` of the function phase."""
    about = mapping(detail)
    rows, columns = number(about.get("rows")), number(about.get("columns"))
    if not rows or not columns or broken(rows) or broken(columns):
        return
    size = int(rows) * int(columns)
    values = [sequence(channel) for channel in sequence(about.get("values"))[:MOST]]
    if not values or size <= 0 or any(len(channel) != size for channel in values):
        return
    given = [str(name) for name in sequence(about.get("channels"))]
    names = [given[i] if i < len(given) else f"channel {i}" for i in range(len(values))]
    maps = [[number(value) for value in channel] for channel in values]
    where = f"Case {about['case']}, {about.get('precision', '')}. " if about.get("case") else ""
    scale = _scale(maps)
    kind = "log" if isinstance(scale, Log) else "linear"
    unit = str(about.get("unit") or "|difference|")
    caption = f"{where}{unit}, one {kind} colour scale for all channels. Evenly spread is noise; a pattern is a fault."
    yield Figure("Where the outputs differ", caption, _draw(names, maps, int(rows), int(columns), scale, unit))


def _scale(maps: list[list[float | None]]) -> Linear | Log:
    """Linear for noise, of which all is alike; logarithmic where some of it is far larger than the rest."""
    found = sorted(v for channel in maps for v in channel if v is not None and not broken(v) and v > 0)
    if not found:
        return Linear(0.0, 1.0, 0.0, 1.0)
    high, middle = found[-1], found[len(found) // 2]
    if high <= 20 * middle:
        return Linear(0.0, high, 0.0, 1.0)
    # A quantile, lest a few exact hits stretch the scale over decades in which there is nothing to see.
    low = max(found[len(found) // 50], high / 10**DECADES)
    return Log(min(low, high / 10), high, 0.0, 1.0)


def _draw(
    names: list[str], maps: list[list[float | None]], rows: int, columns: int, scale: Linear | Log, unit: str
) -> str:
    across = min(len(maps), 4 if len(maps) <= 8 else 8 if columns <= 2 * rows else 4)
    room = (WIDTH - GAP * (across - 1)) / across
    cell = min(min(room, WIDEST) / columns, TALLEST / rows)
    width, height = cell * columns, cell * rows
    step = max(width, min(room, 96.0)) + GAP
    down = -(-len(maps) // across)
    left = (WIDTH - step * across + GAP) / 2
    parts = []
    for i, (name, values) in enumerate(zip(names, maps, strict=True)):
        x, y = left + step * (i % across), LEGEND + (height + HEAD + GAP) * (i // across)
        parts.append(label(x, y + 13, name, max(8, int(step / 6.6)), class_="tick"))
        levels = bytes(level(None if v is None or broken(v) else scale(v)) for v in values)
        image = png([levels[r * columns : (r + 1) * columns] for r in range(rows)], max(1, PIXELS // columns))
        finite = [v for v in values if v is not None and not broken(v)]
        bad = len(values) - len(finite)
        words = f"{name}: at most {show(max(finite, default=None))}" + (f", {bad} not finite" if bad else "")
        place = {"x": x, "y": y + HEAD, "width": width, "height": height}
        parts.append(tag("image", tooltip(words), **place, href=image, preserveAspectRatio="none", class_="map"))
    bad = sum(v is None or broken(v) for values in maps for v in values)
    legend = _legend(left, scale, unit, bad)
    return picture(
        WIDTH, LEGEND + (height + HEAD + GAP) * down, "difference of the outputs, channel by channel", legend, *parts
    )


def _legend(left: float, scale: Linear | Log, unit: str, bad: int) -> str:
    width = 300.0
    bar = png([bytes(range(LEVELS))])
    place = {"x": left, "y": 4, "width": width, "height": 12}
    parts = [tag("image", **place, href=bar, preserveAspectRatio="none", class_="map")]
    for tick in _ticks(scale):
        parts.append(label(left + width * scale(tick.value), 31, tick.words, text_anchor="middle", class_="tick"))
    parts.append(label(left + width + 28, 15, unit, class_="tick"))
    if bad:
        parts.append(tag("rect", x=left + width + 28, y=22, width=12, height=12, class_="broken"))
        parts.append(label(left + width + 46, 32, f"not finite ({bad})", class_="tick"))
    return "".join(parts)


def _ticks(scale: Linear | Log) -> list[Tick]:
    if isinstance(scale, Log) and scale.high >= 100 * scale.low:
        return [tick for tick in scale.ticks(room=0.16) if tick.words]
    ends = (scale.low, scale.high) if isinstance(scale, Log) else (0.0, scale.high / 2, scale.high)
    return [Tick(value, show(value)) for value in ends]
