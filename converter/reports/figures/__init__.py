"""The pictures of a report, drawn by matplotlib (an extra) as inline SVG: no script, and the page's own colours.

Each takes what a phase's `detail` holds, any part of which may be missing.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..numbers import mapping
from ..report import Phase
from .drawing import Figure, styled
from .outputs import heat, margins
from .stages import blocks, localisation, timesteps, trajectory

__all__ = ["Figure", "figures", "localisation", "styled"]


def figures(phase: Phase) -> Iterator[Figure]:
    """The pictures that a phase has the numbers for, but for the localisation, which has a place of its own."""
    if phase.name == "function":
        yield from margins(phase)
    yield from timesteps(mapping(phase.detail.get("timesteps")))
    yield from blocks(mapping(phase.detail.get("blocks")))
    yield from heat(mapping(phase.detail.get("heat")))
    yield from trajectory(phase.detail)
