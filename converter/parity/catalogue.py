"""The deliberate faults that any table of keys has in it: what it splits is swapped, what it renames mixed up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from ..mapping import Move, Plan
from ..mapping.dims import Dim
from ..mapping.rows import Row
from ..nets import faults as done
from ..nets.faults import BOTH, WEIGHTS, Change, Fault
from ..nets.spec import ParitySpec
from .sides import UNAVAILABLE

WEIGHTS_ONLY = frozenset({WEIGHTS})
Changes = dict[str, tuple[str, Change | None]]


def catalogue(plan: Plan, model: ParitySpec = UNAVAILABLE, block: int | None = None) -> list[Fault]:
    """All of them, for one model.

    Args:
        plan: of the original state dict, with its moves and stacks of blocks.
        model: says which faults no output shows.
        block: the one that single tensors are taken from, of rows that are in it or in none; default: the last.
    """
    by_row: dict[Row, list[Move]] = defaultdict(list)
    for move in plan.moves:
        by_row[move.row].append(move)
    rows = [row for row in (_RowFaults(row, moves, plan, block) for row, moves in by_row.items()) if row.chosen]
    faults: list[Fault] = []
    for row in rows:
        faults += [*row.swapped(), *row.one_copy(), *row.by_itself(model)]
    faults += _mixed_up_rows(rows, model.invisible_swaps)
    faults += _halves_of_all(rows)
    stacks = {path: count for path, count in plan.stacks.items() if count > 1}
    for path, count in stacks.items():
        faults += _block_faults(plan, path, count)
    if stacks:
        every = [target for move in plan.moves for target in move.parts]
        faults.append(Fault("all weights rounded to half", BOTH, _changed(every, done.halved)))
        faults.append(Fault("all weights scaled by 1 %", BOTH, _changed(every, done.scaled)))
    return faults


def _changed(targets: Iterable[str], change: Change) -> Changes:
    return {target: (target, change) for target in targets}


def _exchanged(pairs: Iterable[tuple[str, str]]) -> Changes:
    """Every two tensors in each other's place."""
    return {target: (origin, None) for pair in pairs for target, origin in (pair, pair[::-1])}


def _short(path: str) -> str:
    """A path without its block: `transformer_blocks.{}.attn1.to_q` is `attn1.to_q`."""
    return path.partition("{}.")[2] or path


def _of(plan: Plan, path: str) -> str:
    return f" of {path}" if len(plan.stacks) > 1 else ""


class _RowFaults:
    """A row, and what can go wrong with its tensors: `chosen` are those of one block, or of a row in none."""

    def __init__(self, row: Row, moves: list[Move], plan: Plan, block: int | None) -> None:
        path = row.stack
        # Its own last block: a sparse row need not be in that of the stack.
        last = max(move.place[0] or 0 for move in moves) if block is None else block
        self.row, self.moves, self.dims = row, moves, plan.dims
        self.where = "the model" if path is None else f"block {last}{_of(plan, path)}"
        self.chosen = [move for move in moves if move.place[0] in (None, last)]
        self.name, self.path = _short(row.targets[0]), row.targets[0].removesuffix(".weight")

    @staticmethod
    def separate(move: Move) -> list[tuple[str, ...]]:
        """The target keys that are changed each by itself, or together where they are the same tensor."""
        passes = move.operation.passes(len(move.parts))
        alike = zip(*(sorted({part for part, _ in places}) for places in passes), strict=True)
        return [tuple(move.parts[part] for part in parts) for parts in alike]

    def swapped(self) -> Iterator[Fault]:
        """Parts of one tensor in each other's place."""
        for i, j in combinations(range(len(self.separate(self.moves[0]))), 2):
            names = f"{_short(self.row.targets[i])} and {_short(self.row.targets[j])} swapped in "
            for where, moves in ((self.where, self.chosen), ("all blocks", self.moves)):
                pairs = [(move.parts[i], move.parts[j]) for move in moves]
                cheap = where != "all blocks" and (i, j) == (0, 1)
                yield Fault(names + where, BOTH, _exchanged(pairs), cheap=cheap)

    def one_copy(self) -> Iterator[Fault]:
        """One copy that is not what the others are, as after further training in the target."""
        for move in (move for move in self.chosen if move.operation.must_agree):
            copy, kind = move.parts[-1], "bias" if move.place[1] == ".bias" else "weight"
            where = f"in one of {len(move.parts)} copies: {copy}"
            yield Fault(f"{kind} scaled by 1 % {where}", BOTH, _changed([copy], done.scaled))
            yield Fault(f"{kind} off by a last bit {where}", WEIGHTS_ONLY, _changed([copy], done.last_bit))

    def by_itself(self, model: ParitySpec) -> Iterator[Fault]:
        """What can go wrong with its tensors by themselves; with copies, all of them alike."""
        row, name = self.row, f"{self.name} of {self.where}"
        first = self.separate(next(move for move in self.chosen if move.place[1] != ".bias"))[0]
        seen = WEIGHTS_ONLY if self.path.endswith(model.invisible_scales) else BOTH
        yield Fault(f"{name} scaled by 1 %", seen, _changed(first, done.scaled))
        yield Fault(f"{name} rounded to half", BOTH, _changed(first, done.halved), faint=True)
        yield Fault(f"last bit of {name}", WEIGHTS_ONLY, _changed(first, done.last_bit))
        for biases in [self.separate(move) for move in self.chosen if move.place[1] == ".bias"]:
            for path, bias in zip(row.targets, biases, strict=False):
                hidden = bias[0].removesuffix(".bias").endswith(model.invisible_biases)
                what = f"bias of {_short(path)} of {self.where}"
                seen = WEIGHTS_ONLY if hidden else BOTH
                yield Fault(f"{what} dropped", seen, _changed(bias, done.zeroed), faint=True)
                yield Fault(f"last bit of the {what}", WEIGHTS_ONLY, _changed(bias, done.last_bit))
        yield from self._reordered(name)
        square = len(row.pattern) >= 2 and row.part_pattern[-1] == row.part_pattern[-2]
        if square and row.part_pattern[-1].value(self.dims) != 1:  # a 1 x 1 kernel is its own transpose
            what = "transposed" if len(row.pattern) == 2 else "with its last axes transposed"
            yield Fault(f"{name} {what}", BOTH, _changed(first, done.transposed))

    def _reordered(self, name: str) -> Iterator[Fault]:
        """Groups of rows swapped, and rows that an operation reorders left in their old order."""
        row, moves = self.row, self.chosen
        if len(row.targets) > 1:
            return
        targets, operation = [target for move in moves for target in move.parts], moves[0].operation
        if operation.contents(1)[0] != sorted(operation.contents(1)[0]):
            undone = _changed(targets, lambda tensor: operation.inverse([tensor]))
            yield Fault(f"rows of {name} in the original's order", BOTH, undone, cheap=True)
        first = row.pattern[0].factor if row.pattern else 1
        count = int(first) if first == int(first) else 1
        pairs = {(0, 1), (0, count // 2), (count - 2, count - 1)} - {(0, 0)} if count > 1 else set()
        for i, j in sorted(pairs):
            title = f"rows {i} and {j} of {count} of {name} swapped"
            yield Fault(title, BOTH, _changed(targets, done.exchanged(count, i, j)), cheap=count == 2)


def _mixed_up_rows(rows: Sequence[_RowFaults], invisible: tuple[tuple[str, str], ...]) -> Iterator[Fault]:
    """Two rows of one shape in each other's place; `invisible`: ends of their paths where no output shows that."""
    for one, other in combinations(rows, 2):
        alike = one.row.pattern == other.row.pattern and one.where == other.where
        single = len(one.row.targets) == len(other.row.targets) == 1 and one.row.spread == other.row.spread
        if not alike or not single or one.row.suffixes != other.row.suffixes:
            continue
        others = {move.place[1]: move for move in other.chosen}
        pairs = [pair for move in one.chosen for pair in zip(move.parts, others[move.place[1]].parts, strict=True)]
        ends = [pair for both in invisible for pair in (both, both[::-1])]
        hidden = any(one.path.endswith(first) and other.path.endswith(second) for first, second in ends)
        seen = WEIGHTS_ONLY if hidden else BOTH
        yield Fault(f"{one.name} and {other.name} of {one.where} swapped", seen, _exchanged(pairs))


def _halves_of_all(rows: Sequence[_RowFaults]) -> Iterator[Fault]:
    """The halves of several layers swapped in all of them, such as a gate and a value that go through two layers. Where
    both halves do the same, no output shows it."""
    alike: dict[tuple[str, Dim], list[_RowFaults]] = defaultdict(list)
    for each in rows:
        if each.row.pattern and each.row.pattern[0].factor == 2 and len(each.row.targets) == 1:
            alike[each.where, each.row.pattern[0]].append(each)
    for (where, _), several in alike.items():
        if len(several) > 1:
            names = " and ".join(each.name for each in several)
            targets = [target for each in several for move in each.chosen for target in move.parts]
            halves = _changed(targets, done.exchanged(2, 0, 1))
            yield Fault(f"rows 0 and 1 of 2 of {names} of {where} swapped", BOTH, halves, faint=True)


def _block_faults(plan: Plan, path: str, blocks: int) -> Iterator[Fault]:
    """Whole blocks of a stack in the wrong place, lost, or of another moment of the training."""
    by_block: dict[int, dict[tuple[str, str], str]] = {}
    for move in plan.moves:
        index, suffix = move.place
        if index is not None and move.row.stack == path:
            names = zip(move.row.targets, move.parts, strict=True)
            by_block.setdefault(index, {}).update({(target, suffix): key for target, key in names})

    def moved(order: dict[int, int]) -> Changes:
        places = {key: by_block[j].get(name) for i, j in order.items() for name, key in by_block[i].items()}
        return {key: (origin, None) for key, origin in places.items() if origin}

    last, of = blocks - 1, _of(plan, path)
    yield Fault(f"blocks{of} off by one", BOTH, moved({i: (i + 1) % blocks for i in range(blocks)}))
    yield Fault(f"blocks 0 and {last}{of} swapped", BOTH, moved({0: last, last: 0}))
    own = [*by_block[last].values()]
    yield Fault(f"block {last}{of} of the EMA among raw weights", BOTH, _changed(own, done.drifted), cheap=True)
    yield Fault(f"block {last}{of} lost", WEIGHTS_ONLY, drop=frozenset(own))
    yield Fault(f"one tensor{of} lost", WEIGHTS_ONLY, drop=frozenset(own[:1]))
    yield Fault(f"a NaN in a weight{of}", BOTH, _changed(own[:1], done.not_a_number), cheap=True)
