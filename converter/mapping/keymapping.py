"""The engine: a table of rows becomes a plan that is order-free, total, complete and invertible, or one error."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import combinations
from typing import Any

from .fold import MappingError
from .matching import countable, survey, unlike
from .plan import Move, Plan
from .rows import Row, Sparse, Value, overlap, spell, stack_of


class KeyMapping:
    """A bijection between two spellings of a state dict, as a table.

    Args:
        table: source path, with an optional shape pattern, to what it becomes: a path (rename), a tuple of paths
            (split on axis 0), `Parameter`, `Computed`, `Copies`, `Reorder`, `Extra`, `Refused` or `Sparse`; `ZeroInit`
            of one that is written, where an initialisation leaves it at zero. A path is a module and stands for its
            `.weight` and `.bias`, both of which must be there; one that is itself a tensor is written
            `Parameter(path)`, or ends in `.weight` or `.bias`. `{}` is a block index.
        optional: name -> a table that a state dict holds whole or not at all. Where it is there, its rows take the
            place of those of the same source.

    Raises: ValueError for a table whose rows overlap or cannot be undone.

    Example:
        >>> keys = KeyMapping({"fc [2D D]": ("a", "b")})
        >>> sorted(keys({"fc.weight": np.zeros((4, 2)), "fc.bias": np.zeros(4)}))
        ['a.bias', 'a.weight', 'b.bias', 'b.weight']
    """

    part = ""  # of a table of a part of a model: what its names begin with in the table of the whole

    def __init__(self, table: Mapping[str, Value], optional: Mapping[str, Mapping[str, Value]] | None = None) -> None:
        tables = [("", table), *(optional or {}).items()]
        self._fill(Row.parse(text, value, group) for group, part in tables for text, value in part.items())

    def _fill(self, rows: Iterable[Row]) -> None:
        self.rows = _linked(_alternatives([*rows]))
        _check(self.rows)

    # Tables made of others.
    def renamed(self, source: tuple[str, str], target: tuple[str, str], group: str = "") -> KeyMapping:
        """The rows whose source begins with the first path of a pair, with the second in its place; likewise of what
        they become. `group`: the optional group that those are in which are in none.

        >>> keys = KeyMapping({"blocks.{}.fc": "layers.{}.linear", "out": "proj_out"})
        >>> copies = keys.renamed(("blocks.{}.", "copies.{}."), ("layers.{}.", "adapter.{}."))
        >>> [(row.source, row.targets) for row in (keys | copies).rows][1:]
        [('out', ('proj_out',)), ('copies.{}.fc', ('adapter.{}.linear',))]
        """
        return self._of(row.renamed(source, target, group) for row in self.rows if row.source.startswith(source[0]))

    def __or__(self, other: KeyMapping) -> KeyMapping:
        """The rows of both tables."""
        return self._of([*self.rows, *other.rows])

    def below(self, part: str) -> KeyMapping:
        """The names of one part of a model, without the beginning `part` that they have in this table."""
        table = self.renamed((part, ""), (part, ""))
        table.part = part
        return table

    @staticmethod
    def _of(rows: Iterable[Row]) -> KeyMapping:
        table = object.__new__(KeyMapping)
        table._fill(rows)
        return table

    # Plans.
    def plan(self, state: Mapping[str, Any]) -> Plan:
        """The plan for a state dict in the source layout. Values need a `shape`; nothing else of them is used.

        Raises: `MappingError` listing everything that does not fit: unknown, missing and refused keys, holes in the
        block indices, wrong shapes.
        """
        return _sound(self.survey(state))

    def survey(self, state: Mapping[str, Any]) -> Plan:
        """The same plan, with what does not fit under `problems` instead of raised: for looking at a file."""
        return survey(self.rows, self.find, state)

    def plan_back(self, state: Mapping[str, Any]) -> Plan:
        """The plan for a state dict in the target layout: the same rows, read from right to left."""
        return _sound(self.survey_back(state))

    def survey_back(self, state: Mapping[str, Any]) -> Plan:
        """The same plan, with what does not fit under `problems` instead of raised. The sources of a move may be
        incomplete, or differ from each other: `problems` says so."""
        plan = self.targets.survey(state)
        origin = {target: row for row in self.rows for target in row.targets}
        stacks, back = countable(plan, state), dict[str, Move]()
        for move in plan.moves:
            index, suffix = move.place
            row = origin[move.row.source]
            index = None if row.spread else index  # a copy in a block is of a tensor that is in none
            source = spell(row.source, index, suffix)
            back[source] = Move(row.written(index, suffix, stacks), (source,), row, back=True)
        plan.moves = list(back.values())
        plan.problems = plan.problems or unlike(plan.moves, state)
        return plan

    @cached_property
    def targets(self) -> KeyMapping:
        """The table of the target layout alone: every target maps to itself, and strays to the sidecar."""
        table = object.__new__(KeyMapping)
        table.rows = [replace(row, source=stray) for row in self.rows for stray in row.strays]
        table.rows[:0] = [
            replace(
                Row.parse(target, Sparse(target) if row.sparse else target, row.group),
                pattern=row.part_pattern,
                suffixes=row.suffixes,
                zero_init=row.zero_init,
                stack=stack,
                unless=row.unless,
                parameter=row.parameter,
            )
            for row in self.rows
            for target, stack in zip(row.targets, row.target_stacks, strict=True)
        ]
        return table

    # Live state dicts.
    def __call__(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state dict of arrays (torch, NumPy, or anything that slices) in the target layout; splits are views, and
        all copies of a tensor are that tensor.

        `left(state)` gives what is not part of it. Lazy tensors of an open checkpoint are split unread.
        """
        target: dict[str, Any] = {}
        for move in self.plan(state).moves:
            target.update(zip(move.parts, move.operation.forward(state[move.origin], len(move.parts)), strict=True))
        return target

    def left(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors of a source state dict that have no home in the target: extras and computed buffers."""
        plan = self.plan(state)
        return {key: state[key] for key in (*plan.computed, *plan.extras)}

    def inverse(self, state: Mapping[str, Any], left: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The way back: `inverse(KEYS(s), KEYS.left(s)) == s`. Of an extra that is also a stray, `left` is believed.

        Raises: `MappingError`, as `plan_back` does, and where the copies of a tensor differ in a single bit.
        """
        plan = self.plan_back(state)
        source = {name: state[key] for key, name in plan.extras.items()} | dict(left or {})
        problems: list[str] = []
        for move in plan.moves:
            arrays = [state[key] for key in move.parts]
            problems += move.operation.disagreeing(move.origin, move.parts, arrays)
            source[move.origin] = move.operation.inverse(arrays)
        if problems:
            raise MappingError(problems)
        self.plan(source)  # `left` is checked as strictly as the rest
        return source

    # Recognition.
    def known(self, state: Iterable[str]) -> int:
        """How many keys some row matches; what a family is recognised by."""
        return sum(self.find(key) is not None for key in state)

    def row_of(self, key: str) -> int | None:
        """The position of the row that matches a key, None where none does."""
        hit = self.find(key)
        return hit and hit[0]

    def find(self, key: str) -> tuple[int, int | None, str] | None:
        """(position of the row that matches a key, block index, suffix); of two of one source, the first. No other row
        can match: the table was checked for that. None where none does."""
        for head in (key.partition(".")[0], "{}"):
            for position in self._by_head.get(head, ()):
                if place := self.rows[position].match(key):
                    return position, *place
        return None

    @cached_property
    def _by_head(self) -> Mapping[str, list[int]]:
        """The positions of the rows by the first part of their path: few are left to be tried for a key."""
        positions = defaultdict(list)
        for position, row in enumerate(self.rows):
            positions[row.source.partition(".")[0]].append(position)
        return positions

    @cached_property
    def required(self) -> frozenset[int]:
        """The positions of the rows without which no state dict is whole."""
        return frozenset(i for i, row in enumerate(self.rows) if not (row.sparse or row.group or row.unless))


def _check(rows: list[Row]) -> None:
    targets = [target for row in rows for target in (*row.targets, *row.strays)]
    sources = [row.source for row in rows if not row.unless]
    for what, paths in (("sources", sources), ("targets", targets)):
        for one, other in combinations(paths, 2):
            if overlap(one, other):
                raise ValueError(f"the {what} {one!r} and {other!r} match the same keys")
    grouped = Counter(row.source for row in rows if row.group)
    if several := [source for source, count in grouped.items() if count > 1]:
        raise ValueError(f"the sources {several[0]!r} and {several[0]!r} match the same keys: one group may have it")
    replaced = {(row.source, row.unless) for row in rows if row.unless}
    if shared := {row.group for row in rows} - {row.group for row in rows if (row.source, row.group) not in replaced}:
        raise ValueError(f"the optional group {min(shared)!r} has no row of its own, by which to tell that it is there")
    counted = {(row.stack, row.group) for row in rows if row.counts}
    for row in rows:
        for path in {*row.target_stacks} - {None} if row.spread else ():
            if not counted & {(path, ""), (path, row.group)}:
                raise ValueError(f"{row.source!r} has a copy in every block, and no row says how many blocks there are")


def _sound(plan: Plan) -> Plan:
    if plan.problems:
        raise MappingError(plan.problems)
    return plan


def _alternatives(rows: Sequence[Row]) -> list[Row]:
    """The rows, each of which says what optional group has another one in its place."""
    last = {row.source: row for row in rows if row.group}
    return [replace(row, unless="" if last.get(row.source, row) is row else last[row.source].group) for row in rows]


def _linked(rows: Sequence[Row]) -> list[Row]:
    """The rows with the names of their stacks: the path before `{}` in the source. A stack and what it becomes have
    equally many blocks, as do two stacks that become one, named by the first in order."""
    names: dict[tuple[bool, str], tuple[bool, str]] = {}  # (in the target?, path) -> the first name of its group
    for row in sorted(rows, key=lambda row: row.spread):  # a tensor copied into two stacks does not link them
        paths = [(False, row.source), *((True, path) for path in (*row.targets, *row.strays))]
        places = [(target, stack) for target, path in paths if (stack := stack_of(path)) is not None]
        group = {names.setdefault(place, place) for place in places}
        if not row.spread:
            names = {place: min(group) if name in group else name for place, name in names.items()}
    counted = {names[False, stack] for row in rows if row.counts and (stack := stack_of(row.source)) is not None}
    if len(counted) == 1:  # copies in blocks that no other row fills are as many as those of the only stack
        names = {place: min(counted) if name[0] else name for place, name in names.items()}

    def name(target: bool, path: str) -> str | None:
        stack = stack_of(path)
        return None if stack is None else names[target, stack][1]

    return [
        replace(row, stack=name(False, row.source), target_stacks=tuple(name(True, path) for path in row.targets))
        for row in rows
    ]
