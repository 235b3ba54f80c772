"""How far apart the PixArt and the DiT are, drawn over the timesteps: a line for each start of the shared layer."""

from __future__ import annotations

from collections.abc import Iterator

from ..reports.figures import Figure
from ..reports.figures.scales import Linear
from ..reports.figures.svg import WIDTH, label, legend, line, path, picture, tag, tooltip
from .options import MEAN, PAPER, TIMESTEP
from .timesteps import Distances

LEFT, RIGHT, TOP, BOTTOM = 64.0, 20.0, 46.0, 300.0
NAMES = {MEAN: "t_block starts as the mean of the blocks' own layers", PAPER: "at random, as in the paper's code"}
# Choice -> the classes of its line and of its dots. The page's style sheet has colours for one series; this has two.
KINDS = {MEAN: ("converted", "dot"), PAPER: ("second", "dot second")}
STYLE = """
svg path.second, svg line.second { fill: none; stroke: var(--s1); stroke-width: 2.2; stroke-linejoin: round; }
svg .dot.second { fill: var(--s1); } svg .meet { stroke: var(--floor); stroke-width: 1.4; stroke-dasharray: 5 3.5; }
"""


def drawn(found: Distances) -> Figure:
    """The picture with its words."""
    caption = "Relative L2 of the output against the DiT's, in float32, on one latent: what training starts from."
    return Figure("Distance at other timesteps", caption, _draw(found))


def _draw(found: Distances) -> str:
    most = max(value for values in found.distances.values() for value in values)
    x, y = Linear(0, 1000, LEFT, WIDTH - RIGHT), Linear(0, most * 1.08 or 1.0, BOTTOM, TOP)
    meet = x(TIMESTEP)
    parts = []
    for tick in y.ticks():
        parts.append(line(LEFT, y(tick.value), WIDTH - RIGHT, y(tick.value), "grid"))
        parts.append(label(LEFT - 8, y(tick.value) + 4, tick.words, text_anchor="end", class_="tick"))
    for tick in x.ticks(10):
        parts.append(label(x(tick.value), BOTTOM + 20, tick.words, text_anchor="middle", class_="tick"))
    parts.append(line(meet, TOP, meet, BOTTOM, "meet"))
    parts.append(label(meet + 6, TOP + 11, "made equal here", class_="tick"))
    parts.append(label((LEFT + WIDTH - RIGHT) / 2, BOTTOM + 40, "timestep", text_anchor="middle", class_="tick"))
    for choice, values in found.distances.items():
        parts.append(
            path([[(x(t), y(value)) for t, value in zip(found.timesteps, values, strict=True)]], _line(choice))
        )
    for choice in found.distances:
        parts += _dots(found, choice, x, y)
    keys = [
        (line(0, 0, 22, 0, _line(choice)) + tag("circle", cx=11, cy=0, r=3.4, class_=KINDS[choice][1]), NAMES[choice])
        for choice in found.distances
    ]
    words = "how far the PixArt's output is from the DiT's at each timestep"
    return picture(WIDTH, BOTTOM + 50, words, *parts, legend(LEFT, 14, keys))


def _line(choice: str) -> str:
    return KINDS[choice][0]


def _dots(found: Distances, choice: str, x: Linear, y: Linear) -> Iterator[str]:
    for timestep, value in zip(found.timesteps, found.distances[choice], strict=True):
        words = tooltip(f"t = {timestep}, --t_block {choice}: {value:.3g}")
        yield tag("circle", words, cx=x(timestep), cy=y(value), r=3.4, class_=KINDS[choice][1])
