"""Keys against rows: what becomes of each tensor, and every way in which keys and rows do not fit together."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .dims import bind, mismatch
from .fold import SHOWN, fold, folded, holes
from .plan import Move, Plan
from .rows import MODULE, PARAMETER, Computed, Extra, Refused, Row, spell

Blocks = dict[int | None, set[str]]  # block index -> the suffixes that are there
Find = Callable[[str], tuple[int, int | None, str] | None]  # key -> (position of its row, block index, suffix)


def survey(rows: Sequence[Row], find: Find, state: Mapping[str, Any]) -> Plan:
    """What the rows make of a state dict, with everything that does not fit under `problems`."""
    seen: list[Blocks] = [{} for _ in rows]
    unknown = []
    for key in state:
        if hit := find(key):
            seen[hit[0]].setdefault(hit[1], set()).add(hit[2])
        else:
            unknown.append(key)
    groups = {row.group for row, blocks in zip(rows, seen, strict=True) if row.group and blocks}
    alternative = {row.source: i for i, row in enumerate(rows) if row.group in groups}
    for i, row in enumerate(rows):
        if row.unless in groups and row.source in alternative:  # its keys are those of the group's row
            seen[i], seen[alternative[row.source]] = {}, seen[i]
    # In the table's order, so that nothing depends on the order of the keys.
    there = [
        (row, dict(sorted(blocks.items(), key=lambda hit: hit[0] or 0))) for row, blocks in zip(rows, seen, strict=True)
    ]
    plan = Plan(groups=groups, tells_zeros=any(row.zero_init for row in rows))
    for row, blocks in there:
        if row.counts and row.stack is not None:
            last = max((index for index in blocks if index is not None), default=-1)
            plan.stacks[row.stack] = max(plan.stacks.get(row.stack, 0), last + 1)
    for row, blocks in there:
        if isinstance(row.value, Refused) and blocks:
            keys = [spell(row.source, i, suffix) for i in blocks for suffix in sorted(blocks[i])]
            known = plan.features.setdefault(row.value.feature, [])
            plan.problems += [] if known else [f"{row.value.feature}: {row.value.reason}"]
            known += keys
    plan.features = {feature: fold(keys) for feature, keys in plan.features.items()}
    plan.problems += _unknown(sorted(unknown), [row.source for row in rows])
    for row, blocks in there:
        plan.problems += _missing(row, blocks, plan)
    plan.problems += _moved(there, state, plan)
    return plan


def unlike(moves: Sequence[Move], state: Mapping[str, Any]) -> list[str]:
    """Why tensors of the target layout cannot be joined again: one is missing, or they differ."""
    wrong: list[tuple[str, str]] = []
    for move in moves:
        parts = {key: state[key] for key in move.parts if key in state}
        wrong += move.operation.unlike(move.origin, parts, len(move.parts))
    missing = fold(key for move in moves for key in move.parts if key not in state)
    return [f"missing {key}" for key in missing] + _folded(wrong)


def countable(plan: Plan, state: Mapping[str, Any]) -> dict[str, int]:
    """The number of copies of what is in every block. With holes, which are problems, an index may be as high as
    10**18: such a stack counts as 0."""
    return {path: count if count <= len(state) else 0 for path, count in plan.stacks.items()}


def _moved(there: Sequence[tuple[Row, Blocks]], state: Mapping[str, Any], plan: Plan) -> list[str]:
    """Fill a plan with what becomes of every tensor, and return which of them have a shape that does not fit."""
    shapes, stacks = [], countable(plan, state)
    for row, index, suffix in ((row, i, s) for row, blocks in there for i in blocks for s in sorted(blocks[i])[::-1]):
        key = spell(row.source, index, suffix)
        if row.pattern:
            shapes.append((key, row.shape_pattern(suffix), tuple(state[key].shape)))
        if isinstance(row.value, Computed):
            plan.computed[key] = row
        elif isinstance(row.value, Extra):
            plan.extras[key] = spell(row.name, index, suffix)
        elif row.targets:
            plan.moves.append(Move((key,), row.written(index, suffix, stacks), row))
    plan.dims, plan.evidence = bind(shapes)
    fits = [(key, list(shape), mismatch(pattern, shape, plan.dims)) for key, pattern, shape in shapes]
    wrong = [(key, f"has shape {shape}, not {wanted}") for key, shape, wanted in fits if wanted]
    for move in plan.moves:
        if words := move.operation.misfit(tuple(state[move.origin].shape), len(move.parts)):
            wrong.append((move.origin, words))
    return _folded(wrong)


def _folded(wrong: Iterable[tuple[str, str]]) -> list[str]:
    """(key, what is wrong with it) in words, folded over the keys of which the same is said."""
    keys = defaultdict(list)
    for key, words in wrong:
        keys[words].append(key)
    return [f"{key} {words}" for words, of in keys.items() for key in fold(of)]


def _unknown(keys: Sequence[str], paths: Sequence[str]) -> Iterator[str]:
    from difflib import get_close_matches

    for count, (shown, of) in enumerate(folded(keys).items()):
        # As a table would spell it: index in braces, without suffix.
        path = re.sub(r"\.(weight|bias)$", "", re.sub(r"\.\d+\.", ".{}.", of[0][:200], count=1))
        nearest = get_close_matches(path, paths, 1, 0.7) if count < SHOWN else []
        yield f"unknown key {shown}" + "".join(f" (nearest row: {path})" for path in nearest)


def _missing(row: Row, seen: Blocks, plan: Plan) -> Iterator[str]:
    """Which tensors of a row ought to be there and are not, and which ought not to."""
    if row.unless in plan.groups:
        keys = fold(spell(row.source, i, suffix) for i, suffixes in seen.items() for suffix in sorted(suffixes))
        yield from (f"unexpected {key} (beside the {row.unless} group)" for key in keys)
        return
    if not seen and (row.sparse or (row.group and row.group not in plan.groups)):
        return
    blocks = plan.stacks.get(row.stack or "", 0)
    gaps = holes([i for i in seen if i is not None], max(blocks, 1)) if row.counts else "" if seen else "all"
    if gaps and not row.sparse:
        partly = f" (the {row.group} group is incomplete)" if row.group else ""
        yield "missing " + row.source.replace("{}", f"{{{gaps}}}") + partly
    # The row says whether its path is a module or a tensor itself. One that only keeps what it finds may be either,
    # but the same in every block.
    whole = row.suffixes or (PARAMETER if any("" in suffixes for suffixes in seen.values()) else MODULE)
    # A row that may be absent does not say how many blocks there are: the others do.
    outside = {i: s for i, s in seen.items() if blocks and i is not None and i >= blocks}
    for word, wrong, why in (
        ("missing", {i: whole - s for i, s in seen.items()}, ""),
        ("unexpected", {i: s - whole for i, s in seen.items()}, ""),
        ("unexpected", outside, f" (there are {blocks} blocks)"),
    ):
        keys = fold(spell(row.source, i, suffix) for i, s in wrong.items() for suffix in sorted(s))
        yield from (f"{word} {key}{why}" for key in keys)
