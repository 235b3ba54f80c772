"""Where names and shapes agree and the rows may still be in another order, or in the tensor beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .places import Layout, Place
from .words import words

FINAL = "its scale and shift in this order? norm_out has the scale first, most training code the shift"
FUSED = "a gate and a value in one tensor: in this order?"
BESIDE = "the gate, or the value beside it?"


def unspoken(source: Place, targets: Sequence[Place], ours: Layout, theirs: Layout) -> str:
    """What no name says of a pair though everything else speaks for it; '' where there is nothing of the kind.

    Found by holding drafts against diffusers' own converters (its `loaders/single_file_utils.py`): they exchange the
    halves of the last modulation for SD3, Flux, Mochi and HunyuanVideo, and those of gated feed-forward layers for
    Mochi, and code bases do not agree on which of two such layers beside each other is the gate.
    """
    target = targets[0]
    if _has(target, "norm_out") and not _has(source, "norm_out"):
        return FINAL
    if len(targets) > 1 or "first" not in (words(source.path).part, words(target.path).part):
        return ""
    sides = ((source, ours), (target, theirs))
    if any(_fused(place, layout) for place, layout in sides):
        return FUSED
    if any(_beside(place, layout) for place, layout in sides) and _number(source) != _number(target):
        return BESIDE
    return ""


def _fused(place: Place, layout: Layout) -> bool:
    """Whether the layer after it takes half of what it gives."""
    if not place.shape:
        return False
    rows, *columns = place.shape
    halved = (*columns, rows // 2)
    return rows % 2 == 0 and any(words(p.path).part == "second" and p.shape == halved for p in layout.places)


def _beside(place: Place, layout: Layout) -> bool:
    """Whether another one of its shape stands beside it that is not the layer after it."""
    parent = _stem(place).rpartition(".")[0]
    return any(
        other is not place
        and other.shape == place.shape
        and _stem(other).rpartition(".")[0] == parent
        and words(other.path).part != "second"
        for other in layout.places
    )


def _stem(place: Place) -> str:
    return re.sub(r"\.(weight|bias)$", "", place.path)


def _has(place: Place, segment: str) -> bool:
    return segment in place.path.split(".")


def _number(place: Place) -> str:
    """`1` of `w1` and of `linear_1`."""
    return "".join(re.findall(r"\d", _stem(place).rpartition(".")[2]))
