"""Where names and shapes agree and the rows may still be in another order, or in the tensor beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .key_layout import KeyEntry, KeyLayout
from .words import words

FINAL = "its scale and shift in this order? norm_out has the scale first, most training code the shift"
FUSED = "a gate and a value in one tensor: in this order?"
SIBLING = "the gate, or the value beside it?"


def order_doubt(
    source: KeyEntry, targets: Sequence[KeyEntry], source_layout: KeyLayout, target_layout: KeyLayout
) -> str:
    """What no name says of a pair though everything else speaks for it; '' where there is nothing of the kind.

    Found by comparing drafts with diffusers' own converters (its `loaders/single_file_utils.py`): they exchange the
    halves of the last modulation for SD3, Flux, Mochi and HunyuanVideo, and those of gated feed-forward layers for
    Mochi, and code bases do not agree on which of two such layers beside each other is the gate.
    """
    target = targets[0]
    if "norm_out" in target.path.split(".") and "norm_out" not in source.path.split("."):
        return FINAL
    if len(targets) > 1 or "first" not in (words(source.path).part, words(target.path).part):
        return ""
    sides = ((source, source_layout), (target, target_layout))
    if any(_fused(entry, layout) for entry, layout in sides):
        return FUSED
    if any(_has_sibling(entry, layout) for entry, layout in sides) and _number(source) != _number(target):
        return SIBLING
    return ""


def _fused(entry: KeyEntry, layout: KeyLayout) -> bool:
    """Whether the layer after it takes half of what it gives."""
    if not entry.shape:
        return False
    rows, *columns = entry.shape
    halved = (*columns, rows // 2)
    return rows % 2 == 0 and any(words(p.path).part == "second" and p.shape == halved for p in layout.entries)


def _has_sibling(entry: KeyEntry, layout: KeyLayout) -> bool:
    """Whether another one of its shape stands beside it that is not the layer after it."""
    parent = _module(entry).rpartition(".")[0]
    siblings = (each for each in layout.entries if each is not entry and _module(each).rpartition(".")[0] == parent)
    return any(each.shape == entry.shape and words(each.path).part != "second" for each in siblings)


def _module(entry: KeyEntry) -> str:
    return re.sub(r"\.(weight|bias)$", "", entry.path)


def _number(entry: KeyEntry) -> str:
    """`1` of `w1` and of `linear_1`."""
    return "".join(re.findall(r"\d", _module(entry).rpartition(".")[2]))
