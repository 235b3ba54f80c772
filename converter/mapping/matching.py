"""Keys against rows: which row each key belongs to, and every way in which they do not fit together."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .fold import SHOWN, fold, folded, holes
from .rows import MODULE, PARAMETER, Refused, Row, spell


class Matching:
    """The keys of a state dict, each under the one row that matches it.

    `found`: (row, block index) -> the suffixes seen; `unknown`: keys that no row matches; `groups`: optional groups
    that at least one key belongs to; `stacks`: of each stack, one more than the highest block index.
    """

    def __init__(self, rows: list[Row], keys: Iterable[str]) -> None:
        self.rows = rows
        self.found: dict[int, dict[int | None, set[str]]] = {}
        self.unknown: list[str] = []
        for key in keys:
            for position, row in enumerate(rows):
                hit = row.match(key)
                if hit:
                    self.found.setdefault(position, {}).setdefault(hit[0], set()).add(hit[1])
                    break  # no second row can match: the table was checked for that
            else:
                self.unknown.append(key)
        # In the table's order, so that nothing depends on the order of the keys.
        self.unknown.sort()
        self.found = {
            position: dict(sorted(self.found[position].items(), key=lambda hit: hit[0] or 0))
            for position in sorted(self.found)
        }
        self.groups = {rows[position].group for position in self.found} - {""}
        self.stacks: dict[str, int] = {}
        for position, row in enumerate(rows):
            if row.counts and row.stack is not None:
                last = max((index for index in self.found.get(position, {}) if index is not None), default=-1)
                self.stacks[row.stack] = max(self.stacks.get(row.stack, 0), last + 1)

    def features(self) -> dict[str, tuple[str, list[str]]]:
        """Refused rows that keys belong to: feature -> (reason, the keys, folded)."""
        keys: dict[str, tuple[str, list[str]]] = {}
        for position, blocks in self.found.items():
            row = self.rows[position]
            if isinstance(row.value, Refused):
                entry = keys.setdefault(row.value.feature, (row.value.reason, []))
                entry[1].extend(
                    spell(row.source, index, suffix)
                    for index, suffixes in blocks.items()
                    for suffix in sorted(suffixes)
                )
        return {feature: (reason, fold(list_)) for feature, (reason, list_) in keys.items()}

    def problems(self) -> list[str]:
        """Everything that is wrong, in words; empty where keys and rows are in bijection."""
        problems = [f"{feature}: {reason}" for feature, (reason, _) in self.features().items()]
        for count, (shown, keys) in enumerate(folded(self.unknown).items()):
            hint = self._nearest(keys[0]) if count < SHOWN else ""
            problems.append(f"unknown key {shown}" + (f" (nearest row: {hint})" if hint else ""))
        for position, row in enumerate(self.rows):
            problems += self._missing(row, self.found.get(position, {}))
        return problems

    def _missing(self, row: Row, seen: dict[int | None, set[str]]) -> list[str]:
        if not seen and (row.sparse or (row.group and row.group not in self.groups)):
            return []
        problems, blocks = [], 0 if row.stack is None else self.stacks.get(row.stack, 0)
        if not row.sparse:
            gaps = holes([i for i in seen if i is not None], max(blocks, 1)) if row.counts else "" if seen else "all"
            if gaps:
                partly = f" (the {row.group} are there in part)" if row.group else ""
                problems.append("missing " + row.source.replace("{}", f"{{{gaps}}}") + partly)
        # The row says whether its path is a module or a tensor itself. One that only keeps what it finds may be
        # either, but the same in every block.
        whole = row.suffixes or (PARAMETER if any("" in suffixes for suffixes in seen.values()) else MODULE)
        # A row that may be absent does not say how many blocks there are: the others do.
        outside = {i: s for i, s in seen.items() if blocks and i is not None and i >= blocks}
        for word, wrong, why in (
            ("missing", {i: whole - s for i, s in seen.items()}, ""),
            ("unexpected", {i: s - whole for i, s in seen.items()}, ""),
            ("unexpected", outside, f" (there are {blocks} blocks)"),
        ):
            problems += [
                f"{word} {key}{why}"
                for key in fold(spell(row.source, i, suffix) for i, s in wrong.items() for suffix in sorted(s))
            ]
        return problems

    def _nearest(self, key: str) -> str:
        from difflib import get_close_matches

        # As a table would spell it: index in braces, without suffix.
        path = re.sub(r"\.(weight|bias)$", "", re.sub(r"\.\d+\.", ".{}.", key[:200], count=1))
        return next(iter(get_close_matches(path, [row.source for row in self.rows], 1, 0.7)), "")
