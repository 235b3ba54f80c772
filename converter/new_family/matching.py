"""Which paths of one layout become which of another: by block, shape, words, and the order in which they appear."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from ..errors import InputError
from .key_layout import KeyEntry, KeyLayout
from .words import Words, agreement, similarity, words

RENAME, SPLIT, COPIES = "rename", "split", "copies"
# By so much a pair has to be better than every other one that either side could be in, to be sure.
MARGIN = 0.12
ALTERNATIVES = 3  # of a row that are shown
MOST = 20_000  # pairs that are considered; a net with numbered blocks has some hundreds
_ORDER = {"q": 0, "k": 1, "v": 2}
# Questions where names and shapes agree, and the rows may still be in another order or in a sibling.
FINAL = "norm_out has the scale first, most code the shift: if so, converter.Reorder(..., (1, 0))"
FUSED = "a gate and a value in one tensor: in this order? If not, converter.Reorder(..., (1, 0))"
SIBLING = "the gate, or the value beside it?"
UNCONFIRMED = "nothing else fits, but the names do not confirm it"
QUESTIONS = {COPIES: "a copy in every block: is each the whole tensor?", SPLIT: "in this order?"}


@dataclass(frozen=True)
class Pairing:
    """A source and what it may become. `score`: 0 to 1; `contradicted`: their words contradict each other."""

    source: KeyEntry
    targets: tuple[KeyEntry, ...]
    kind: str
    score: float
    contradicted: bool

    @property
    def entries(self) -> tuple[KeyEntry, ...]:
        return self.source, *self.targets

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(target.path for target in self.targets)


def match(source: KeyLayout, target: KeyLayout) -> dict[KeyEntry, tuple[Pairing, str]]:
    """Pair two layouts, every path in one pair at most: source -> (its pair, the doubt about it, '' where it is sure).

    A pair is sure where its words are understood and no other is possible, or it is clearly the best on both sides; a
    kernel also where it is the only one of its shape. Copies never are, nor is a pair whose words contradict.
    """
    pairings = list(islice(_possible(source, target), MOST + 1))
    if len(pairings) > MOST:
        raise InputError(f"more than {MOST} pairs of paths have shapes that fit: too many paths share a shape")
    pairings.sort(key=lambda pairing: (-pairing.score, pairing.source.order))
    by_entry: dict[KeyEntry, list[Pairing]] = {}
    chosen: dict[KeyEntry, Pairing] = {}
    for pairing in pairings:
        for entry in pairing.entries:
            by_entry.setdefault(entry, []).append(pairing)
        if not any(entry in chosen for entry in pairing.entries):
            chosen |= dict.fromkeys(pairing.entries, pairing)
    doubts, sure = dict[Pairing, str](), set[KeyEntry]()
    for pairing in dict.fromkeys(chosen.values()):
        rivals = [other.score for entry in pairing.entries for other in by_entry[entry] if other is not pairing]
        doubts[pairing] = order_doubt(pairing, source, target)
        if not doubts[pairing] and _sure(pairing, max(rivals, default=None)):
            sure |= {*pairing.entries}
    matches = {}
    for pairing, doubt in doubts.items():
        if pairing.source not in sure:
            # What is certainly of another pair is no alternative.
            left = [other for other in by_entry[pairing.source] if other is not pairing and not sure & {*other.targets}]
            alternatives = "; ".join(f"or {', '.join(other.paths)}" for other in left[:ALTERNATIVES])
            doubt = "; ".join(filter(None, [doubt or QUESTIONS.get(pairing.kind, ""), alternatives]))
        matches[pairing.source] = pairing, doubt or ("" if pairing.source in sure else UNCONFIRMED)
    return matches


def _sure(pairing: Pairing, rival: float | None) -> bool:
    """Whether a pair is certain. `rival`: the best score of another one that either side could be in."""
    source, target = pairing.source, pairing.targets[0]
    one, other = words(source.path), _words_of(pairing.targets)
    if pairing.kind == COPIES or pairing.contradicted:
        return False
    if pairing.kind == SPLIT and one.part != other.part:  # as `qkv` and `kv` say which parts they have, in which order
        return False
    # Whether the names on both sides mean the same, and do not only look alike; or end in the same word.
    same_end = source.path.rpartition(".")[2] == target.path.rpartition(".")[2]
    if not same_end and not (one.area and one.area == other.area) and not (one.part and one.part == other.part):
        return rival is None and len(source.shape) > 2  # a matrix may be as large as another by chance
    return rival is None or pairing.score >= rival + MARGIN


def _words_of(targets: tuple[KeyEntry, ...]) -> Words:
    """What several targets are together."""
    each = [words(target.path) for target in targets]
    area = each[0].area if len({word.area for word in each}) == 1 else ""
    return Words(area, "".join(word.part for word in each), any(word.text for word in each))


def _possible(source: KeyLayout, target: KeyLayout) -> Iterator[Pairing]:
    """Every pair whose shapes allow it."""
    by_shape: dict[tuple[int, ...], list[tuple[KeyEntry, ...]]] = {}
    for entry in target.entries:
        by_shape.setdefault(entry.shape, []).append((entry,))
    for group in _groups(target.entries):
        rows, *rest = group[0].shape
        by_shape.setdefault((rows * len(group), *rest), []).append(group)
    lengths = len(source.entries), len(target.entries)
    for entry in source.entries:
        for targets in by_shape.get(entry.shape, ()):
            first, both_indexed = targets[0], entry.indexed == targets[0].indexed
            kind = SPLIT if len(targets) > 1 else RENAME if both_indexed else COPIES
            one_for_many = kind == COPIES and not entry.indexed
            alike = (entry.module, entry.sparse) == (first.module, first.sparse)
            if alike and (entry.blocks == first.blocks if both_indexed else one_for_many):
                yield _scored(entry, targets, kind, lengths)


def _groups(entries: Iterable[KeyEntry]) -> Iterator[tuple[KeyEntry, ...]]:
    """Two or three neighbours of one shape that a fused tensor may hold; queries, keys and values in that order."""
    siblings: dict[tuple[object, ...], list[KeyEntry]] = {}
    for entry in entries:
        if entry.shape and not entry.bare:
            end, of_text = entry.path[len(entry.stem) :], words(entry.path).text
            siblings.setdefault((entry.parent, end, entry.shape, entry.sparse, of_text), []).append(entry)
    for group in siblings.values():
        group.sort(key=lambda entry: (_ORDER.get(words(entry.path).part, 3), entry.order))
        for size in (2, 3):
            for start in range(len(group) - size + 1):
                yield tuple(group[start : start + size])


def _scored(source: KeyEntry, targets: tuple[KeyEntry, ...], kind: str, lengths: tuple[int, int]) -> Pairing:
    one, other = words(source.path), _words_of(targets)
    near = 1 - abs(source.order / lengths[0] - targets[0].order / lengths[1])
    looks = max(similarity(source.path, target.path) for target in targets)
    agreements = agreement(one.area, other.area), agreement(one.part, other.part)
    same_stream = one.text == other.text
    score = 0.25 * sum(agreements) + 0.2 * same_stream + 0.2 * looks + 0.1 * near
    contradicted = not same_stream or 0.0 in agreements
    return Pairing(source, targets, kind, score * (0.8 if kind == COPIES else 1), contradicted=contradicted)


def order_doubt(pairing: Pairing, source_layout: KeyLayout, target_layout: KeyLayout) -> str:
    """The question that remains about an otherwise good pair; '' where there is none.

    Found by comparing drafts with diffusers' own converters (its `loaders/single_file_utils.py`): they exchange the
    halves of the last modulation for SD3, Flux, Mochi and HunyuanVideo, and those of gated feed-forward layers for
    Mochi, and code bases do not agree on which of two such layers beside each other is the gate.
    """
    source, target = pairing.source, pairing.targets[0]
    if "norm_out" in target.path.split(".") and "norm_out" not in source.path.split("."):
        return FINAL
    parts = {words(source.path).part, words(target.path).part}
    if pairing.kind == SPLIT or not parts & {"first", "middle"}:
        return ""
    sides = ((source, source_layout), (target, target_layout))
    if any(_fused(entry, layout) for entry, layout in sides):
        return FUSED
    if "middle" in parts:
        return ""
    numbers = ["".join(re.findall(r"\d", entry.stem.rpartition(".")[2])) for entry, _ in sides]  # of `w1`, `linear_1`
    return SIBLING if numbers[0] != numbers[1] and any(_has_sibling(*side) for side in sides) else ""


def _fused(entry: KeyEntry, layout: KeyLayout) -> bool:
    """Whether the layer after it takes half of what it gives."""
    if len(entry.shape) < 2 or entry.shape[0] % 2:
        return False
    width = None if words(entry.path).part == "middle" else entry.shape[1]
    seconds = (each.shape[:2] for each in layout.entries if words(each.path).part == "second" and len(each.shape) > 1)
    return any(into == entry.shape[0] // 2 and width in (None, out) for out, into in seconds)


def _has_sibling(entry: KeyEntry, layout: KeyLayout) -> bool:
    """Whether its parent has another one of its shape that is not the layer after it."""
    siblings = (each for each in layout.entries if each is not entry and each.parent == entry.parent)
    return any(each.shape == entry.shape and words(each.path).part != "second" for each in siblings)
