"""Which paths of one layout become which of another: by block, shape, words, and the order in which they appear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from ..errors import InputError
from .key_layout import KeyEntry, KeyLayout
from .order import unspoken
from .words import Words, alike, spelling, words

RENAME, SPLIT, COPIES = "rename", "split", "copies"
# By so much a pair has to be better than every other one that either side could be in, to be sure.
MARGIN = 0.12
MOST = 20_000  # pairs that are looked at; a net with numbered blocks has some hundreds
_ORDER = {"q": 0, "k": 1, "v": 2}


@dataclass(frozen=True)
class Pairing:
    """A source and what it may become. `score`: 0 to 1; `contradicted`: the words of both sides speak against it."""

    source: KeyEntry
    targets: tuple[KeyEntry, ...]
    kind: str
    score: float
    contradicted: bool

    def rivals(self, other: Pairing) -> bool:
        """Whether only one of both can be."""
        return self is not other and (self.source is other.source or bool({*self.targets} & {*other.targets}))


@dataclass(frozen=True)
class Drafted:
    """A pairing that was chosen; `sure`, or `others`: what else its source may become, best first; or `why` it cannot
    be sure although nothing else has its shape."""

    pairing: Pairing
    sure: bool
    others: tuple[Pairing, ...]
    why: str = ""


def match(source: KeyLayout, target: KeyLayout) -> list[Drafted]:
    """Pair two layouts, every path in one pair at most; in the order of the source.

    A pair is sure where its words are understood and no other is possible, or it is clearly the best on both sides; a
    kernel also where it is the only one of its shape. Copies never are, and nothing is against which the words speak.
    """
    pairings = sorted(_within_reason(_possible(source, target)), key=lambda pair: (-pair.score, pair.source.order))
    chosen: list[Pairing] = []
    taken: set[KeyEntry] = set()
    for pairing in pairings:
        if not taken & {pairing.source, *pairing.targets}:
            chosen.append(pairing)
            taken |= {pairing.source, *pairing.targets}
    by_place: dict[KeyEntry, list[Pairing]] = {}
    for pairing in pairings:
        for entry in (pairing.source, *pairing.targets):
            by_place.setdefault(entry, []).append(pairing)
    made = []
    for pairing in chosen:
        near = [other for entry in (pairing.source, *pairing.targets) for other in by_place[entry]]
        rivals = [other for other in near if pairing.rivals(other)]
        others = tuple(other for other in by_place[pairing.source] if other is not pairing)
        why = unspoken(pairing.source, pairing.targets, source, target)
        made.append(Drafted(pairing, not why and _sure(pairing, rivals), others, why))
    return sorted(made, key=lambda drafted: drafted.pairing.source.order)


def _sure(pairing: Pairing, rivals: Iterable[Pairing]) -> bool:
    if pairing.kind == COPIES or pairing.contradicted:
        return False
    if pairing.kind == SPLIT and not _spelt_out(pairing):
        return False
    best = max((rival.score for rival in rivals), default=None)
    if not _understood(pairing):
        return best is None and len(pairing.source.shape) > 2  # a matrix may be as large as another by chance
    return best is None or pairing.score >= best + MARGIN


def _spelt_out(pairing: Pairing) -> bool:
    """Whether the fused tensor's own name says which parts it has, and in which order, as `qkv` and `kv` do."""
    return words(pairing.source.path).part == "".join(words(target.path).part for target in pairing.targets)


def _understood(pairing: Pairing) -> bool:
    """Whether both sides say the same of what they are, and not only look alike; or are spelt the same."""
    ours, theirs = words(pairing.source.path), _joined(pairing.targets)
    last = pairing.source.path.rpartition(".")[2] == pairing.targets[0].path.rpartition(".")[2]
    return bool(ours.area and ours.area == theirs.area) or bool(ours.part and ours.part == theirs.part) or last


def _joined(targets: tuple[KeyEntry, ...]) -> Words:
    """What several targets are together."""
    found = [words(target.path) for target in targets]
    areas = {word.area for word in found}
    return Words(
        areas.pop() if len(areas) == 1 else "", "".join(word.part for word in found), any(word.text for word in found)
    )


def _possible(source: KeyLayout, target: KeyLayout) -> Iterator[Pairing]:
    """Every pair whose shapes allow it."""
    whole: dict[tuple[int, ...], list[tuple[KeyEntry, ...]]] = {}
    for entry in target.entries:
        whole.setdefault(entry.shape, []).append((entry,))
    for group in _groups(target.entries):
        rows, *rest = group[0].shape
        whole.setdefault((rows * len(group), *rest), []).append(group)
    lengths = len(source.entries), len(target.entries)
    for entry in source.entries:
        for targets in whole.get(entry.shape, ()):
            first = targets[0]
            kind = SPLIT if len(targets) > 1 else RENAME if entry.indexed == first.indexed else COPIES
            split_up = kind == SPLIT and entry.indexed != first.indexed
            if split_up or entry.module != first.module or entry.sparse != first.sparse:
                continue
            if kind == COPIES and (entry.indexed or first.sparse):
                continue  # one tensor for many, not many for one
            if entry.indexed and source.blocks != target.blocks:
                continue
            yield _scored(entry, targets, kind, lengths)


def _groups(entries: Iterable[KeyEntry]) -> Iterator[tuple[KeyEntry, ...]]:
    """Two or three neighbours of one shape that a fused tensor may hold; queries, keys and values in that order."""
    siblings: dict[tuple[object, ...], list[KeyEntry]] = {}
    for entry in entries:
        if entry.module or not entry.bare:
            parent = entry.parent if entry.module else entry.parent.rpartition(".")[0]
            key = (
                parent,
                entry.path.rpartition(".")[2] if not entry.module else "",
                entry.shape,
                entry.sparse,
                words(entry.path).text,
            )
            siblings.setdefault(key, []).append(entry)
    for group in siblings.values():
        ordered = sorted(group, key=lambda entry: (_ORDER.get(words(entry.path).part, 3), entry.order))
        for size in (2, 3):
            for start in range(len(ordered) - size + 1):
                if ordered[start].shape:
                    yield tuple(ordered[start : start + size])


def _within_reason(pairings: Iterator[Pairing]) -> list[Pairing]:
    """All of them, of layouts whose shapes tell their paths apart at all."""
    made = list(islice(pairings, MOST + 1))
    if len(made) > MOST:
        raise InputError(f"more than {MOST} pairs of paths have shapes that fit: the shapes tell too few of them apart")
    return made


def _scored(source: KeyEntry, targets: tuple[KeyEntry, ...], kind: str, lengths: tuple[int, int]) -> Pairing:
    ours, theirs = words(source.path), _joined(targets)
    near = 1 - abs(source.order / lengths[0] - targets[0].order / lengths[1])
    looks = max(spelling(source.path, target.path) for target in targets)
    score = 0.25 * alike(ours.area, theirs.area) + 0.25 * alike(ours.part, theirs.part)
    score += 0.2 * (ours.text == theirs.text) + 0.2 * looks + 0.1 * near
    contradicted = ours.text != theirs.text or any(
        a and b and a != b for a, b in ((ours.area, theirs.area), (ours.part, theirs.part))
    )
    return Pairing(source, targets, kind, score * (0.8 if kind == COPIES else 1), contradicted)
