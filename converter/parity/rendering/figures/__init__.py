"""Pictures as inline SVG, drawn without a library: they need no script, print well and follow the page's colours.

Every function takes what a phase's `detail` holds, any part of which may be missing, and returns `Figure`s.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...report import Phase
from .heat import heat
from .localisation import localisation
from .margins import margins
from .stages import blocks, trajectory
from .svg import Figure

__all__ = ["Figure", "figures", "localisation"]


def figures(phase: Phase) -> Iterator[Figure]:
    """The pictures that a phase has the numbers for, but for the localisation, which has a place of its own."""
    if phase.name == "function":
        yield from margins(phase)
    yield from blocks(phase.detail.get("blocks"))
    yield from heat(phase.detail.get("heat"))
    yield from trajectory(phase.detail)
