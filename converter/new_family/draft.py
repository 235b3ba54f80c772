"""`draft`: the rows of a table for two lists of keys, each sure or marked, and what is left of either list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, product
from math import isqrt
from typing import Any

from ..errors import InputError
from ..mapping.rows import overlap
from .key_layout import KeyEntry, KeyLayout, key_layout
from .keylist import KeyList
from .matching import COPIES, RENAME, Drafted, match
from .symbols import Symbols
from .words import positional

COMPUTED, SIDECAR = "computed", "kept in the sidecar"
SHOWN = 3  # of what else a row may be
MOST = 600  # distinct paths of one list, far above any net with numbered blocks
MOST_ODD = 10 * MOST  # keys that no row can spell: they are listed


@dataclass(frozen=True)
class DraftRow:
    """One row: `source [pattern]` becomes `targets` by way of `kind` ('rename', 'split', 'copies', 'computed' or
    'kept in the sidecar'). `sure`, or `doubt` says what has to be looked at, if it is of this row alone."""

    source: str
    pattern: str
    kind: str
    targets: tuple[str, ...]
    bare: bool
    sparse: bool
    sure: bool
    doubt: str = ""


@dataclass(frozen=True)
class Draft:
    """A drafted table. `unmatched_source`, `unmatched_target`: paths without a partner, those of keys that no row can
    spell among them; `dims`: symbol -> size, `first`: symbol -> where it was seen; `notes`: what else to look at."""

    rows: tuple[DraftRow, ...]
    unmatched_source: tuple[str, ...]
    unmatched_target: tuple[str, ...]
    dims: Mapping[str, int]
    first: Mapping[str, str]
    blocks: int
    source: str
    target: str
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def unsure(self) -> int:
        return sum(not row.sure for row in self.rows)


def draft(source: KeyList, target: KeyList | None = None) -> Draft:
    """Draft a table from the original layout to the target's; without a target, every path becomes itself.

    Raises: `InputError` for a list that is not of a net with numbered blocks.

    Example:
        >>> made = draft(KeyList("a", {"stem.weight": (8, 3, 2, 2)}), KeyList("b", {"embed.weight": (8, 3, 2, 2)}))
        >>> made.rows[0].source, made.rows[0].pattern, made.rows[0].targets, made.rows[0].sure
        ('stem.weight', 'D C p p', ('embed.weight',), True)
    """
    ours = _layout(source)
    theirs = _layout(target) if target else None
    symbols = Symbols(ours.entries)
    paired = {made.pairing.source: made for made in (match(ours, theirs) if theirs else ())}
    rows: list[DraftRow] = []
    lost: list[str] = []
    for entry in ours.entries:
        pattern = symbols.pattern(entry)
        if theirs is None:
            rows.append(_row(entry, pattern, RENAME, (entry.path,)))
        elif entry in paired:
            rows.append(_paired(paired[entry], pattern))
        elif entry.bare:
            rows.append(_left(entry, pattern))
        else:
            lost.append(entry.path)
    rows, apart = _together(rows)
    lost += [row.source for row, _ in apart]
    reached = {path for row in rows for path in row.targets}
    missed = [entry.path for entry in theirs.entries if entry.path not in reached] if theirs else []
    notes = [why for _, why in apart]
    notes += [] if theirs else ["no target was given, so every path becomes itself: write in what it is called there"]
    if theirs and ours.blocks != theirs.blocks:
        notes.append(f"{ours.blocks} blocks there and {theirs.blocks} in the target: they are not the same model")
    return Draft(
        tuple(rows),
        (*lost, *ours.odd),
        (*missed, *(theirs.odd if theirs else ())),
        symbols.dims,
        symbols.first,
        ours.blocks,
        source.name,
        target.name if target else "",
        target.config if target else {},
        tuple(notes),
    )


def _together(rows: list[DraftRow]) -> tuple[list[DraftRow], list[tuple[DraftRow, str]]]:
    """(the rows that one table can have, the others with the reason): no key may be of two rows."""
    kept: list[DraftRow] = []
    apart: list[tuple[DraftRow, str]] = []
    counted = any("{}" in row.source and row.targets and not row.sparse for row in rows)
    for row in rows:
        spread = "{}" not in row.source and any("{}" in target for target in row.targets)
        sources, targets = [other.source for other in kept], [target for other in kept for target in other.targets]
        pairs = chain(product([row.source], sources), product(row.targets, targets))
        met = next((f"{one} and {other}" for one, other in pairs if overlap(one, other)), "")
        if met:
            apart.append((row, f"{row.source} has no row: {met} can be the same key"))
        elif spread and not counted:
            apart.append((row, f"{row.source} has no row: a copy in every block, and no source says how many"))
        else:
            kept.append(row)
    return kept, apart


def _layout(keys: KeyList) -> KeyLayout:
    made = key_layout(keys.shapes)
    for count, most in ((len(made.entries), MOST), (len(made.odd), MOST_ODD)):
        if count > most:
            raise InputError.at(keys.name, "", f"{count} different paths, and {most} are drafted at most")
    return made


def _row(
    entry: KeyEntry, pattern: str, kind: str, targets: tuple[str, ...], *, sure: bool = False, doubt: str = ""
) -> DraftRow:
    bare = not entry.module and not any(path.endswith((".weight", ".bias")) for path in (entry.path, *targets))
    return DraftRow(entry.path, pattern, kind, targets, bare, entry.sparse, sure, doubt)


def _paired(made: Drafted, pattern: str) -> DraftRow:
    pairing = made.pairing
    others = [", ".join(target.path for target in other.targets) for other in made.others[:SHOWN]]
    doubt = "or " + "; or ".join(others) if others else "nothing else has its shape, and the names do not say so"
    if pairing.kind == COPIES:
        doubt = "a copy in every block: is each the whole tensor?" + (f" {doubt}" if others else "")
    elif made.why:
        doubt = made.why + (f"; {doubt}" if others else "")
    elif len(pairing.targets) > 1 and not made.sure:
        doubt = f"in this order? {doubt}" if others else "in this order?"
    paths = tuple(target.path for target in pairing.targets)
    return _row(pairing.source, pattern, pairing.kind, paths, sure=made.sure, doubt="" if made.sure else doubt)


def _left(entry: KeyEntry, pattern: str) -> DraftRow:
    """A tensor by itself that the target has no place for: a table that it computes, or something for the sidecar."""
    grid = entry.shape[1] if len(entry.shape) == 3 and entry.shape[0] == 1 else 0
    square = grid > 0 and isqrt(grid) ** 2 == grid and entry.shape[2] % 4 == 0
    if positional(entry.path) and square and pattern == "1 N D":
        return _row(entry, pattern, COMPUTED, (), doubt="a sin-cos table of positions? a conversion compares them")
    doubt = "no tensor of the target: kept in the sidecar; or Computed, or what is it?"
    return _row(entry, pattern, SIDECAR, (), doubt=doubt)
