"""`draft`: the rows of a table for two lists of keys, each sure or marked, and what is unmatched of either list."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, product
from math import isqrt
from typing import Any

from ..errors import InputError
from ..mapping import Extra, KeyMapping
from ..mapping.rows import overlap, stack_of
from .key_layout import KeyEntry, KeyLayout, key_layout
from .keylist import KeyList
from .matching import COPIES, RENAME, match
from .symbols import Symbols
from .values import Field, Shown, fields, shown
from .words import positional

COMPUTED, SIDECAR = "computed", "kept in the sidecar"
BUFFER = "a table in the sidecar"
DOUBTS = {
    COMPUTED: "a sin-cos table of positions? a conversion compares them",
    SIDECAR: "no target tensor is like it; what the sidecar keeps comes back on the way back",
    BUFFER: "does the target compute it? Then converter.Computed(a function of `found` that gives the same)",
}
MOST = 600  # distinct paths of one list, far above any net with numbered blocks
MOST_UNUSABLE = 10 * MOST  # keys that no row can spell: they are listed


@dataclass(frozen=True)
class DraftRow:
    """One row: `source [pattern]` becomes `targets` by way of `kind` ('rename', 'split', 'copies', 'computed' or
    'kept in the sidecar'). `sure`, or `doubt` says what has to be checked, if it is of this row alone."""

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
    spell among them; `dims`: symbol -> size, `first`: symbol -> where it was seen; `stacks`: of the table, with their
    numbers of blocks; `shown`, `fields`: what a file shows, and the target's config; `notes`: what else to check."""

    rows: tuple[DraftRow, ...]
    unmatched_source: tuple[str, ...]
    unmatched_target: tuple[str, ...]
    dims: Mapping[str, int]
    first: Mapping[str, str]
    stacks: Mapping[str, int]
    source: str
    target: str
    config: Mapping[str, Any] = field(default_factory=dict)
    shown: tuple[Shown, ...] = ()
    fields: tuple[Field, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def unsure(self) -> int:
        return sum(not row.sure for row in self.rows)

    @property
    def unsure_values(self) -> int:
        """Of the lines of `describe` and `config`, those that are marked."""
        return sum(bool(one.doubt) for one in self.shown) + sum(bool(one.doubt) for one in self.fields)

    @property
    def computes(self) -> bool:
        return any(row.kind == COMPUTED for row in self.rows)


def draft(source: KeyList, target: KeyList | None = None) -> Draft:
    """Draft a table from the original layout to the target's; without a target, every path becomes itself.

    Raises: `InputError` for a list that is not of a net with numbered blocks.

    Example:
        >>> table = draft(KeyList("a", {"stem.weight": (8, 3, 2, 2)}), KeyList("b", {"embed.weight": (8, 3, 2, 2)}))
        >>> table.rows[0].source, table.rows[0].pattern, table.rows[0].targets, table.rows[0].sure
        ('stem.weight', 'D C p p', ('embed.weight',), True)
    """
    layout = _layout(source)
    target_layout = _layout(target) if target else KeyLayout((), layout.stacks, ())
    config = {key: value for key, value in (target.config if target else {}).items() if key != "_name_or_path"}
    patch = config.get("patch_size")
    symbols = Symbols(layout.entries, patch if type(patch) is int else None)
    matches = match(layout, target_layout)
    drafted: list[DraftRow] = []
    unmatched: list[str] = []
    for entry, pattern in symbols.patterns.items():
        paths: tuple[str, ...] = (entry.path,)
        kind, doubt = RENAME, ""
        if entry in matches:
            pairing, doubt = matches[entry]
            kind, paths = pairing.kind, pairing.paths
        elif target and entry.bare:  # a table that the target computes, or something for the sidecar
            kind, paths = COMPUTED if _computed(entry, pattern) else SIDECAR, ()
            doubt = DOUBTS[BUFFER if kind == SIDECAR and positional(entry.path) else kind]
        elif target:
            unmatched.append(entry.path)
            continue
        bare = entry.bare and not any(path.endswith((".weight", ".bias")) for path in paths)
        known = {"bare": bare, "sparse": entry.sparse, "sure": bool(target) and not doubt}
        drafted.append(DraftRow(entry.path, pattern, kind, paths, doubt=doubt, **known))
    rows, conflicts = _without_conflicts(drafted)
    reached = {path for row in rows for path in row.targets}
    unreached = [entry.path for entry in target_layout.entries if entry.path not in reached]
    notes = [*conflicts.values()]
    if not target:
        notes.append("no target was given, so every path maps to itself: fill in the target's names")
    notes += _biases(layout, target_layout, unmatched, unreached)
    if (ours := sorted(layout.stacks.values())) != (theirs := sorted(target_layout.stacks.values())):
        there, here = (" and ".join(map(str, counts)) or "no" for counts in (ours, theirs))
        notes.append(f"{there} blocks there and {here} in the target: they are not the same model")
    stacks = _stacks(rows, layout)
    moved = {symbol for row in rows if row.targets for symbol in re.findall("[A-Z]", row.pattern)}
    values = shown(symbols.dims, symbols.first, stacks, config, buffers=symbols.dims.keys() - moved - {"p"})
    return Draft(
        rows=tuple(rows),
        unmatched_source=(*unmatched, *conflicts, *layout.unusable),
        unmatched_target=(*unreached, *target_layout.unusable),
        dims=symbols.dims,
        first=symbols.first,
        stacks=stacks,
        source=source.name,
        target=target.name if target else "",
        config=target.config if target else {},
        shown=tuple(values),
        fields=tuple(fields(values, config)),
        notes=tuple(notes),
    )


def _stacks(rows: list[DraftRow], layout: KeyLayout) -> dict[str, int]:
    """The stacks as the table counts them: two that become one have one name."""
    drawn = [row for row in rows if "{}" in row.source and row.kind != COPIES]
    table = KeyMapping({row.source: row.targets or Extra() for row in drawn})
    return {row.stack: layout.stacks[str(stack_of(row.source))] for row in table.rows if row.stack is not None}


def _biases(layout: KeyLayout, target: KeyLayout, unmatched: list[str], unreached: list[str]) -> Iterator[str]:
    """What would match, were it not for a bias on one side only."""
    sides = [
        replace(each, entries=tuple(_without_bias(entry) for entry in each.entries if entry.path in left))
        for each, left in ((layout, unmatched), (target, unreached))
    ]
    for entry, (pairing, _) in match(*sides).items():
        one, other = ("has a bias", "none") if entry.stem in unmatched else ("has no bias", "one")
        paths = ", ".join(target.stem for target in pairing.targets)
        yield f"{entry.stem} {one}, and {paths} {other}: was the target made with other options (`attention_bias`)?"


def _without_bias(entry: KeyEntry) -> KeyEntry:
    return replace(entry, path=f"{entry.stem}.weight", module=False)


def _without_conflicts(rows: list[DraftRow]) -> tuple[list[DraftRow], dict[str, str]]:
    """(the rows that one table can have, source of any other -> the reason): no key may be of two rows."""
    accepted: list[DraftRow] = []
    conflicts: dict[str, str] = {}
    counting = [row for row in rows if "{}" in row.source and row.targets and not row.sparse]
    counted = {stack_of(target) for row in counting for target in row.targets}
    only = len({stack_of(row.source) for row in counting}) == 1
    for row in rows:
        in_every_block = "{}" not in row.source and any("{}" in target for target in row.targets)
        sources = [other.source for other in accepted]
        targets = [target for other in accepted for target in other.targets]
        pairs = chain(product([row.source], sources), product(row.targets, targets))
        clash = next((f"{one} and {other}" for one, other in pairs if overlap(one, other)), "")
        if clash:
            conflicts[row.source] = f"{row.source} has no row: {clash} can be the same key"
        elif in_every_block and not (only or {*map(stack_of, row.targets)} <= counted):
            conflicts[row.source] = f"{row.source} has no row: a copy in every block, and no source says how many"
        else:
            accepted.append(row)
    return accepted, conflicts


def _layout(keys: KeyList) -> KeyLayout:
    layout = key_layout(keys.shapes)
    for count, most in ((len(layout.entries), MOST), (len(layout.unusable), MOST_UNUSABLE)):
        if count > most:
            raise InputError.at(keys.name, "", f"{count} different paths, and {most} are drafted at most")
    return layout


def _computed(entry: KeyEntry, pattern: str) -> bool:
    """Whether a tensor by itself may be a table of positions on a square."""
    tokens = entry.shape[1] if pattern == "1 N D" else 0
    return positional(entry.path) and tokens > 0 and isqrt(tokens) ** 2 == tokens and entry.shape[2] % 4 == 0
