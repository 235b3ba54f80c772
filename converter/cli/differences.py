"""What `pixart diff` prints: the conclusion, both files, and what differs, the most distant first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..checkpoint.weights_kind import LABELS
from ..comparison import Diff, TensorDiff, WeightsDiff
from ..comparison.weights import DIFFERENT, ONLY_A, ONLY_B, SAME, SHAPE
from ..errors import human_bytes, printable
from ..mapping.fold import folded
from .printing import model_words

SHOWN = 12  # lines of a section; `--all` shows them all


def lines(result: Diff, everything: bool) -> Iterator[str]:
    """The result, for people.

    Args:
        everything: every tensor on a line of its own, instead of the first few lines with the blocks folded.
    """
    yield result.words
    yield from _side("A", result.a)
    yield from _side("B", result.b)
    for each in [result.decisive] if result.choice else result.comparisons:
        if len(result.comparisons) > 1:
            yield f"weights: {LABELS[each.weights_a]} of A, {LABELS[each.weights_b]} of B"
        yield from _comparison(each, everything)


def _side(letter: str, about: dict[str, Any]) -> Iterator[str]:
    weights = " and ".join(LABELS[each] for each in about["weights"])
    yield f"{letter}: {printable(about['name'])}, {human_bytes(about['size'])}, {about['container']}"
    yield f"{letter}: {weights} weights, {model_words(about)}"


def _comparison(each: WeightsDiff, everything: bool) -> Iterator[str]:
    yield "tensors: " + ", ".join(f"{count} {kind}" for kind, count in each.counts.items())
    for title, tensors in _sections(each):
        rows = _rows(tensors, everything)
        width = max(len(name) for name, _ in rows)
        yield f"{title}:"
        for name, of in rows if everything else rows[:SHOWN]:
            yield f"  {name:<{width}}  {_distance(of)}".rstrip()
        if len(rows) > SHOWN and not everything:
            yield f"  and {len(rows) - SHOWN} more lines: --all"
    for tensor in each.one_sided_buffers:
        yield f"{tensor.kind}: {printable(tensor.key)} (diffusers' layout has no place for it, so it does not count)"
    for item in each.disagreements:
        sides = [(item.a, "A", item.evidence_a), (item.b, "B", item.evidence_b)]
        values = "; ".join(f"{printable(value)} in {letter} ({printable(why, 300)})" for value, letter, why in sides)
        yield f"{item.name}: {values}"
    yield from (f"note: {note}" for note in each.notes)


def _sections(each: WeightsDiff) -> Iterator[tuple[str, list[TensorDiff]]]:
    """Whatever is not identical, by what is said of it."""
    kinds: dict[str, list[TensorDiff]] = {}
    for tensor in each.tensors:
        kinds.setdefault(tensor.kind, []).append(tensor)
    named = [(kind, kinds.get(kind, [])) for kind in (DIFFERENT, SHAPE, ONLY_A, ONLY_B, SAME)]
    rounded = [(str(way), tensors) for way, tensors in each.rounded.items()]
    yield from ((title, tensors) for title, tensors in [*named[:1], *rounded, *named[1:]] if tensors)


def _rows(tensors: list[TensorDiff], everything: bool) -> list[tuple[str, list[TensorDiff]]]:
    """(key, or many as one pattern; the tensors), the most distant first; only what is said alike is folded."""
    if everything:
        rows = [(printable(tensor.key, 160), [tensor]) for tensor in tensors]
    else:
        alike: dict[Any, dict[str, TensorDiff]] = {}
        for tensor in tensors:
            shapes = [side[0] for side in (tensor.a, tensor.b) if side] if tensor.kind == SHAPE else []
            alike.setdefault(tuple(shapes), {})[tensor.key] = tensor
        rows = [(name, [of[key] for key in keys]) for of in alike.values() for name, keys in folded(of).items()]
    return sorted(rows, key=lambda row: -_farthest(row[1]))


def _farthest(tensors: list[TensorDiff]) -> float:
    return max(tensor.numbers.relative_l2 if tensor.numbers else 0.0 for tensor in tensors)


def _distance(tensors: list[TensorDiff]) -> str:
    """How far tensors are apart: the farthest of them, and all their elements."""
    first = tensors[0]
    if first.kind == SHAPE and first.a and first.b:
        return f"{list(first.a[0])} in A, {list(first.b[0])} in B"
    numbers = [tensor.numbers for tensor in tensors if tensor.numbers]
    if not numbers:
        return ""
    if first.kind == SAME and first.a and first.b:
        return f"{first.a[1]} in A, {first.b[1]} in B"
    differing, elements = sum(n.differing for n in numbers), sum(n.elements for n in numbers)
    words = f"relative L2 {'up to ' if len(numbers) > 1 else ''}{_farthest(tensors):.2g}"
    words += f", max abs {max(n.max_abs for n in numbers):.2g}, {differing} of {elements} elements"
    for letter, count in (("A", sum(n.nonfinite_a for n in numbers)), ("B", sum(n.nonfinite_b for n in numbers))):
        words += f", {count} not finite in {letter}" if count else ""
    return words
