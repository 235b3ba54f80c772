"""The engine: a table of rows becomes a plan that is order-free, total, complete and invertible, or one error."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any

from .dims import bind, mismatch
from .fold import MappingError, fold
from .matching import Matching
from .rows import Computed, Extra, Row, Sparse, Value, overlap, spell


@dataclass(frozen=True, slots=True)
class Move:
    """Source tensors and what becomes of them: one to several is a split on axis 0, the reverse a concatenation."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    row: Row


@dataclass
class Plan:
    """What a table makes of a state dict, complete and checked.

    `moves`: tensors that go on; `extras`: source key -> key in the sidecar; `computed`: source key -> its row;
    `dims`, `evidence`: what the shape patterns say (symbol -> size, symbol -> the tensor that shows it);
    `blocks`: how many blocks; `groups`: the optional groups that are there; `features`: refused features that are
    there -> the keys that show it; `problems`: everything that does not fit (none in a plan that was not refused).
    """

    moves: list[Move] = field(default_factory=list)
    extras: dict[str, str] = field(default_factory=dict)
    computed: dict[str, Row] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)
    blocks: int = 0
    groups: set[str] = field(default_factory=set)
    features: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class KeyMapping:
    """A bijection between two spellings of a state dict, as a table.

    Args:
        table: source path, with an optional shape pattern, to what it becomes: a path (rename), a tuple of paths
            (split on axis 0), `Parameter`, `Computed`, `Extra`, `Refused` or `Sparse`. A path is a module and stands
            for its `.weight` and `.bias`, both of which must be there; one that is itself a tensor is written
            `Parameter(path)`, or ends in `.weight` or `.bias`. `{}` is a block index.
        optional: name -> a table that a state dict holds whole or not at all.

    Raises: ValueError for a table whose rows overlap or cannot be undone.

    Example:
        >>> keys = KeyMapping({"fc [2D D]": ("a", "b")})
        >>> sorted(keys({"fc.weight": np.zeros((4, 2)), "fc.bias": np.zeros(4)}))
        ['a.bias', 'a.weight', 'b.bias', 'b.weight']
    """

    def __init__(self, table: Mapping[str, Value], optional: Mapping[str, Mapping[str, Value]] | None = None) -> None:
        rows = [Row.parse(text, value) for text, value in table.items()]
        rows += [
            Row.parse(text, value, group) for group, part in (optional or {}).items() for text, value in part.items()
        ]
        self._check(rows)
        self.rows = rows

    @staticmethod
    def _check(rows: list[Row]) -> None:
        strays = [r.value.stray for r in rows if isinstance(r.value, Extra) and r.value.stray]
        for what, paths in (
            ("sources", [r.source for r in rows]),
            ("targets", [t for r in rows for t in r.targets] + strays),
        ):
            for one, other in combinations(paths, 2):
                if overlap(one, other):
                    raise ValueError(f"the {what} {one!r} and {other!r} match the same keys")

    # Plans.
    def plan(self, state: Mapping[str, Any]) -> Plan:
        """The plan for a state dict in the source layout. Values need a `shape`; nothing else of them is used.

        Raises: `MappingError` listing everything that does not fit: unknown, missing and refused keys, holes in the
        block indices, wrong shapes.
        """
        plan = self.survey(state)
        if plan.problems:
            raise MappingError(plan.problems)
        return plan

    def survey(self, state: Mapping[str, Any]) -> Plan:
        """The same plan, with what does not fit under `problems` instead of raised: for looking at a file."""
        match = Matching(self.rows, state)
        plan = Plan(
            groups=match.groups,
            blocks=match.blocks,
            features={f: keys for f, (_, keys) in match.features().items()},
        )
        shapes = []
        for position, found in match.found.items():
            row = self.rows[position]
            for index, suffix in ((i, s) for i, suffixes in found.items() for s in sorted(suffixes, reverse=True)):
                key = spell(row.source, index, suffix)
                if row.pattern:
                    shapes.append((key, row.shape_pattern(suffix), tuple(state[key].shape)))
                if isinstance(row.value, Computed):
                    plan.computed[key] = row
                elif isinstance(row.value, Extra):
                    plan.extras[key] = spell(row.name, index, suffix)
                elif row.targets:
                    plan.moves.append(Move((key,), tuple(spell(t, index, suffix) for t in row.targets), row))
        plan.dims, plan.evidence = bind(shapes)
        wrong: dict[str, list[str]] = {}
        for key, pattern, shape in shapes:
            wanted = mismatch(pattern, shape, plan.dims)
            if wanted:
                wrong.setdefault(f"has shape {list(shape)}, not {wanted}", []).append(key)
        for move in plan.moves:
            parts, shape = len(move.targets), tuple(state[move.sources[0]].shape)
            if parts > 1 and (not shape or shape[0] % parts):
                wrong.setdefault(f"has shape {list(shape)}, which does not split into {parts}", []).append(
                    move.sources[0]
                )
        plan.problems = match.problems() + [f"{key} {what}" for what, keys in wrong.items() for key in fold(keys)]
        return plan

    def plan_back(self, state: Mapping[str, Any]) -> Plan:
        """The plan for a state dict in the target layout: the same rows, read from right to left."""
        plan = self.targets.plan(state)
        origin = {target: row for row in self.rows for target in row.targets}
        back: dict[str, Move] = {}
        for move in plan.moves:
            index, suffix = move.row.match(move.sources[0]) or (None, "")
            row = origin[move.row.source]
            source = spell(row.source, index, suffix)
            back[source] = Move(tuple(spell(t, index, suffix) for t in row.targets), (source,), row)
        plan.moves = list(back.values())
        plan.problems = _not_parts(plan.moves, state)
        if plan.problems:
            raise MappingError(plan.problems)
        return plan

    @cached_property
    def targets(self) -> KeyMapping:
        """The table of the target layout alone: every target maps to itself, and strays to the sidecar."""
        made = object.__new__(KeyMapping)
        made.rows = [
            Row(t, Sparse(t) if row.sparse else t, row.part_pattern, row.group, t, (t,), row.suffixes)
            for row in self.rows
            for t in row.targets
        ]
        made.rows += [
            replace(row, source=row.value.stray)
            for row in self.rows
            if isinstance(row.value, Extra) and row.value.stray
        ]
        return made

    # Live state dicts.
    def __call__(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state dict of arrays (torch, NumPy, or anything that slices) in the target layout; splits are views.

        What does not travel is given by `left(state)`. Of an open checkpoint the lazy tensors are split unread.
        """
        made = {}
        for move in self.plan(state).moves:
            tensor, parts = state[move.sources[0]], len(move.targets)
            step = tensor.shape[0] // parts if parts > 1 else 0
            for i, target in enumerate(move.targets):
                made[target] = tensor[i * step : (i + 1) * step] if step else tensor
        return made

    def left(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors of a source state dict that have no home in the target: extras and computed buffers."""
        plan = self.plan(state)
        return {key: state[key] for key in (*plan.computed, *plan.extras)}

    def inverse(self, state: Mapping[str, Any], left: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The way back: `inverse(KEYS(s), KEYS.left(s)) == s`. Of an extra that is also a stray, `left` is believed."""
        plan = self.plan_back(state)
        made = {name: state[key] for key, name in plan.extras.items()} | dict(left or {})
        for move in plan.moves:
            tensors = [state[key] for key in move.sources]
            made[move.targets[0]] = tensors[0] if len(tensors) == 1 else _concatenate(tensors)
        self.plan(made)  # `left` is checked as strictly as the rest
        return made

    # Recognition.
    def known(self, state: Mapping[str, Any]) -> int:
        """How many keys some row matches; what a family is recognised by."""
        return len(state) - len(Matching(self.rows, state).unknown)


def _not_parts(moves: list[Move], state: Mapping[str, Any]) -> list[str]:
    """What keeps tensors of the target layout from being put together: one is absent, or they are not alike."""
    missing = [key for move in moves for key in move.sources if key not in state]
    wrong: dict[str, list[str]] = {}
    for move in moves:
        shapes = [list(state[key].shape) for key in move.sources if key in state]
        if len(move.sources) > 1 and ([] in shapes or shapes.count(shapes[0]) != len(shapes)):
            wrong.setdefault("shapes " + ", ".join(map(str, shapes)), []).append(move.targets[0])
        # An array library would promote them without a word, and the way out would not give them back.
        dtypes = [str(getattr(state[key], "dtype", "")) for key in move.sources if key in state]
        if len(set(dtypes)) > 1:
            wrong.setdefault("dtypes " + ", ".join(dtypes), []).append(move.targets[0])
    return [f"missing {key}" for key in fold(missing)] + [
        f"{key} cannot be put together out of {unlike}" for unlike, keys in wrong.items() for key in fold(keys)
    ]


def _concatenate(tensors: list[Any]) -> Any:
    """Concatenate on axis 0 with the arrays' own library, which is loaded already: the engine knows none."""
    kind = type(tensors[0])
    library = sys.modules[kind.__module__.partition(".")[0]]
    if not hasattr(library, "concatenate"):
        raise TypeError(f"a {kind.__name__} cannot be concatenated: give arrays, such as its numpy() or torch()")
    return library.concatenate(tensors)
