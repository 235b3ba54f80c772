"""The deliberate faults that any table of keys has in it: what it splits is swapped, what it renames mistaken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from ..mapping import Move, Plan
from ..mapping.rows import Row
from ..nets.damage import Change, drifted, exchanged, halved, last_bit, not_a_number, scaled, transposed, zeroed
from ..nets.faults import BOTH, WEIGHTS, Fault

WEIGHTS_ONLY = frozenset({WEIGHTS})
Rows = dict[Row, list[tuple[int | None, str, Move]]]


def catalogue(plan: Plan, invisible_biases: tuple[str, ...] = (), block: int | None = None) -> list[Fault]:
    """All of them, for one model.

    Args:
        plan: of the original state dict, with its moves and blocks.
        invisible_biases: ends of target paths whose bias no output depends on.
        block: the one that single tensors are taken from; default: the last.
    """
    blocks = plan.blocks
    last = max(blocks - 1, 0) if block is None else block
    rows = _by_row(plan)
    made: list[Fault] = []
    for row, moves in rows.items():
        made += _copy_faults(row, moves, last) if row.copies else _split_faults(row, moves, last)
        made += _row_faults(row, moves, last, invisible_biases)
    made += _mistaken(rows, last)
    if blocks > 1:
        made += _block_faults(plan, blocks)
    return made


def _by_row(plan: Plan) -> Rows:
    """The moves of each row, with block index and suffix."""
    rows: Rows = {}
    for move in plan.moves:
        index, suffix = move.row.match(move.sources[0]) or (None, "")
        rows.setdefault(move.row, []).append((index, suffix, move))
    return rows


def _at(moves: list[tuple[int | None, str, Move]], block: int) -> list[tuple[str, Move]]:
    """(suffix, move) of one block, or of a row that is in no block."""
    return [(suffix, move) for index, suffix, move in moves if index in (None, block)]


def _where(row: Row, block: int) -> str:
    return f"block {block}" if "{}" in row.source else "the model"


def _short(path: str) -> str:
    """A path without its block: `transformer_blocks.{}.attn1.to_q` is `attn1.to_q`."""
    return path.partition("{}.")[2] or path


def _split_faults(row: Row, moves: list[tuple[int | None, str, Move]], last: int) -> Iterator[Fault]:
    """Parts of one tensor in each other's place."""
    for i, j in combinations(range(len(row.targets)), 2):
        names = f"{_short(row.targets[i])} and {_short(row.targets[j])} swapped in "
        for where, chosen in ((_where(row, last), _at(moves, last)), ("all blocks", [(s, m) for _, s, m in moves])):
            pairs = [(move.targets[i], move.targets[j]) for _, move in chosen]
            swapped: dict[str, tuple[str, Change | None]] = {}
            for a, b in pairs:
                swapped |= {a: (b, None), b: (a, None)}
            yield Fault(names + where, BOTH, swapped, cheap=where != "all blocks" and (i, j) == (0, 1))


def _copy_faults(row: Row, moves: list[tuple[int | None, str, Move]], last: int) -> Iterator[Fault]:
    """One copy that is not what the others are, as after further training in the target."""
    for suffix, move in _at(moves, last):
        copy = move.targets[-1]
        for what, change, seen in (("scaled by 1 %", scaled, BOTH), ("off by a last bit", last_bit, WEIGHTS_ONLY)):
            kind = "bias" if suffix == ".bias" else "weight"
            yield Fault(f"{kind} {what} in one of {len(move.targets)} copies: {copy}", seen, {copy: (copy, change)})


def _row_faults(
    row: Row, moves: list[tuple[int | None, str, Move]], last: int, invisible_biases: tuple[str, ...]
) -> Iterator[Fault]:
    """What can befall the tensors of a row by themselves; of copies, all of them alike."""

    def changed(targets: Sequence[str], change: Change) -> dict[str, tuple[str, Change | None]]:
        return {target: (target, change) for target in targets}

    def separate(move: Move) -> Sequence[Sequence[str]]:
        """The target keys that are spoilt each by itself, or together where they are the same tensor."""
        return [move.targets] if row.copies else [(target,) for target in move.targets]

    chosen, where = _at(moves, last), _where(row, last)
    name = _short(row.targets[0])
    first = separate(next(move for suffix, move in chosen if suffix != ".bias"))[0]
    yield Fault(f"{name} of {where} scaled by 1 %", BOTH, changed(first, scaled))
    yield Fault(f"{name} of {where} rounded to half", BOTH, changed(first, halved), faint=True)
    yield Fault(f"last bit of {name} of {where}", WEIGHTS_ONLY, changed(first, last_bit))
    for biases in [separate(move) for suffix, move in chosen if suffix == ".bias"]:
        for path, bias in zip(row.targets, biases, strict=False):
            seen = WEIGHTS_ONLY if any(bias[0].endswith(f"{end}.bias") for end in invisible_biases) else BOTH
            yield Fault(f"bias of {_short(path)} of {where} dropped", seen, changed(bias, zeroed), faint=True)
            yield Fault(f"last bit of the bias of {_short(path)} of {where}", WEIGHTS_ONLY, changed(bias, last_bit))
    rows = row.pattern[0] if row.pattern else None
    count = int(rows.factor) if rows and rows.factor == int(rows.factor) else 1
    if len(row.targets) == 1 and count > 1:
        for i, j in sorted({(0, 1), (0, count // 2), (count - 2, count - 1)} - {(0, 0)}):
            swapped = [target for _, move in chosen for target in move.targets]
            title = f"rows {i} and {j} of {count} of {name} of {where} swapped"
            yield Fault(title, BOTH, changed(swapped, exchanged(count, i, j)), cheap=count == 2)
    if len(row.pattern) >= 2 and row.part_pattern[-1] == row.part_pattern[-2]:
        what = "transposed" if len(row.pattern) == 2 else "with its last axes transposed"
        yield Fault(f"{name} of {where} {what}", BOTH, changed(first, transposed))


def _mistaken(rows: Rows, last: int) -> Iterator[Fault]:
    """Two rows of one shape in each other's place."""
    for (one, moves), (other, others) in combinations(rows.items(), 2):
        alike = one.pattern == other.pattern and ("{}" in one.source) == ("{}" in other.source)
        single = len(one.targets) == len(other.targets) == 1 and one.copies == other.copies
        if not alike or not single or one.suffixes != other.suffixes:
            continue
        swapped: dict[str, tuple[str, Change | None]] = {}
        theirs = dict(_at(others, last))
        for suffix, move in _at(moves, last):
            for a, b in zip(move.targets, theirs[suffix].targets, strict=True):
                swapped |= {a: (b, None), b: (a, None)}
        name = f"{_short(one.targets[0])} and {_short(other.targets[0])}"
        yield Fault(f"{name} of {_where(one, last)} swapped", BOTH, swapped)


def _block_faults(plan: Plan, blocks: int) -> Iterator[Fault]:
    """Whole blocks in the wrong place, lost, or of another moment of the training."""
    by_block: dict[int, dict[str, str]] = {}
    for move in plan.moves:
        index, _ = move.row.match(move.sources[0]) or (None, "")
        if index is not None:
            for path, target in zip(move.row.targets, move.targets, strict=True):
                by_block.setdefault(index, {})[path + target.removeprefix(path.replace("{}", str(index), 1))] = target

    def moved(order: Mapping[int, int]) -> dict[str, tuple[str, Change | None]]:
        return {by_block[i][name]: (by_block[j][name], None) for i, j in order.items() for name in by_block[i]}

    yield Fault("blocks off by one", BOTH, moved({i: (i + 1) % blocks for i in range(blocks)}))
    yield Fault(f"blocks 0 and {blocks - 1} swapped", BOTH, moved({0: blocks - 1, blocks - 1: 0}))
    own = [target for target in by_block[blocks - 1].values()]
    yield Fault(f"block {blocks - 1} of the EMA among raw weights", BOTH, {t: (t, drifted) for t in own}, cheap=True)
    yield Fault(f"block {blocks - 1} lost", frozenset({WEIGHTS}), drop=frozenset(own))
    yield Fault("one tensor lost", frozenset({WEIGHTS}), drop=frozenset(own[:1]))
    yield Fault("a NaN in a weight", BOTH, {own[0]: (own[0], not_a_number)}, cheap=True)
    every = [target for move in plan.moves for target in move.targets]
    yield Fault("all weights rounded to half", BOTH, {t: (t, halved) for t in every})
    yield Fault("all weights scaled by 1 %", BOTH, {t: (t, scaled) for t in every})
