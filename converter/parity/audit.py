"""The weight audit, without a forward: the converted file, mapped back, is the original byte for byte.

Running the nets cannot replace it: a bias that softmax does not see, or one last bit, changes no output.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import printable
from ..mapping import MappingError, Move, Parameter, fold
from ..mapping.rows import Row
from ..reports.report import FAIL, PASS, Check, Phase
from .belonging import Bytes, describe, equal, kept_as
from .compared import Sides

_KEPT = Row.parse("kept", Parameter("kept"))  # what the sidecar holds is what it was
WORKERS = 2  # reading, comparing and checksums run without the interpreter's lock
FEW = 32  # tensors, of which reading is not worth a thread


def audit(sides: Sides, step: Callable[[int], None] = lambda count: None, only: Collection[str] | None = None) -> Phase:
    """Every byte of the original accounted for: mapped, kept aside, or recomputed; and nothing else in the model.

    Args:
        only: the converted keys whose bytes are compared, where all others were before; default: everything.

    Returns: the phase 'weights', with a check for every kind of finding and a first line for people.
    """
    checks, notes = [], []
    try:
        back = sides.family.keys.plan_back(sides.converted)
    except MappingError as error:
        return _failed([Check("keys", "bijection", None, None, False, problem) for problem in error.problems])
    wanted = {move.origin: move for move in sides.plan.moves}
    held = {move.origin: move for move in back.moves}
    missing = [name for key in wanted.keys() - held.keys() for name in wanted[key].parts]
    extra = [name for key in held.keys() - wanted.keys() for name in held[key].parts]
    for what, names in (("missing", missing), ("extra", extra)):
        checks += [Check("keys", "bijection", None, None, False, f"{what}: {name}") for name in fold(sorted(names))]
    moves = [held[key] for key in wanted if key in held and (only is None or not {*only}.isdisjoint(held[key].parts))]

    def counted(move: Move) -> dict[str, str]:
        differing = _differing(sides, move)
        step(1)
        return differing

    if len(moves) < FEW:  # threads have each their own room to read into, and take a while to let go of it
        differences = [counted(move) for move in moves]
    else:
        with ThreadPoolExecutor(WORKERS) as pool:
            differences = list(pool.map(counted, moves))
    wrong = {name: kind for differing in differences for name, kind in differing.items()}
    checks += list(_folded(wrong))
    more, said = _left(sides) if only is None else ([], [])
    checks += more
    notes += said
    notes += [f"{key} is left over from an old conversion, and not used" for key in back.extras]
    if failed := [check for check in checks if check.passed is False]:
        total = sum(len(move.parts) for move in moves)
        return _failed(
            failed, notes, f"{len(wrong)} of {total} converted tensors are not the original's" if wrong else ""
        )
    kind = f"{'rounded' if sides.rounded else 'widened'} to {sides.cast}" if sides.cast else "byte for byte"
    total = sum(int(np.prod(sides.original[move.origin].shape)) for move in moves)
    words = (
        f"all {len(moves)} tensors ({total / 1e6:.4g} M numbers) are the original's, {kind}; none missing, none extra"
    )
    checks.append(Check("weights", "bytes", None, None, True, words))
    return Phase("weights", PASS, words, checks, notes)


def _failed(checks: list[Check], notes: Iterable[str] = (), words: str = "") -> Phase:
    words = words or "the converted weights are not the original's"
    more = f", and {len(checks) - 1} more" if len(checks) > 1 else ""
    return Phase("weights", FAIL, f"{words}: {checks[0].words}{more}", checks, list(notes))


def matches(sides: Sides, count: int = 3) -> bool:
    """Whether the first few tensors are the original's: enough to tell one set of weights from another."""
    moves = sides.family.keys.plan_back(sides.converted).moves[:count]
    return bool(moves) and not any(_differing(sides, move) for move in moves)


def _differing(sides: Sides, move: Move) -> dict[str, str]:
    """Converted key -> what is wrong with it, where the converted tensors of a move, of either direction, are not what
    its operation makes of the source's bytes, or of their declared rounding."""
    operation, count = move.operation, len(move.parts)
    source, parts = sides.original[move.origin], [sides.converted[name] for name in move.parts]
    shape = operation.source_shape(tuple(parts[0].shape), count)
    if shape != tuple(source.shape):
        return dict.fromkeys(move.parts, f"has shape {list(shape)}, not {list(source.shape)}")
    kinds = {part.dtype.name for part in parts}
    rounded = sides.cast and kinds == {sides.cast} and source.dtype.name != sides.cast
    if kinds != {source.dtype.name} and not rounded:
        kind = "/".join(sorted(kinds))
        floating = len(kinds) == 1 and parts[0].dtype.floating
        hint = f"; --cast {kind} if that was meant" if floating and not sides.cast else ""
        words = f"is {kind}, and the original is {source.dtype.name}{hint}"
        return dict.fromkeys(move.parts, words)
    if sides.cast and kinds != {sides.cast}:
        words = f"is {source.dtype.name} as in the original, and was declared to be rounded to {sides.cast}"
        return dict.fromkeys(move.parts, words)
    mine, theirs = sides.room.buffers
    if not rounded and operation.in_order(count) and _equal(_pieces([source], mine), _pieces(parts, theirs)):
        return {}
    data = sides.room.read(source)
    if rounded:
        data = kept_as(data, source.dtype, parts[0].dtype)
    wrong: dict[str, str] = {}
    # Groups of rows are as many equal runs of its bytes.
    for name, part, right in zip(move.parts, parts, operation.forward(data, count), strict=True):
        if not _equal(_pieces([part], theirs), iter([right] if len(right) else [])):
            wrong[name] = "differs" if sides.brief else describe(sides, name, right)
    return wrong


def _equal(one: Iterator[Bytes], other: Iterator[Bytes]) -> bool:
    """Whether two runs of bytes are the same, a piece of each at a time: both are still in the processor's cache. Where
    they are, each was read to its end, and so its checksum was verified."""
    mine, theirs = next(one, None), next(other, None)
    while mine is not None and theirs is not None:
        count = min(len(mine), len(theirs))
        if not equal(mine[:count], theirs[:count]):
            return False
        mine, theirs = mine[count:], theirs[count:]
        mine = mine if len(mine) else next(one, None)
        theirs = theirs if len(theirs) else next(other, None)
    return mine is theirs is None


def _pieces(tensors: Iterable[Any], buffer: bytearray) -> Iterator[Bytes]:
    """The bytes of tensors, one after the other; a piece is valid until the next."""
    for tensor in tensors:
        for _, piece in tensor.chunks(buffer) if hasattr(tensor, "chunks") else [(0, tensor.read())]:
            if len(piece):
                yield np.frombuffer(piece, np.uint8)


def _folded(wrong: dict[str, str]) -> Iterator[Check]:
    """One check for every kind of difference, the keys folded over the blocks; kinds with numbers stay apart."""
    by_kind: dict[str, list[str]] = {}
    for name, kind in wrong.items():
        by_kind.setdefault(kind, []).append(name)
    for kind, names in by_kind.items():
        for name in fold(names):
            yield Check(name, "bytes", None, None, False, f"{name} {kind}")


def _left(sides: Sides) -> tuple[list[Check], list[str]]:
    """What does not travel: the sidecar's tensors against the original's, the buffers against their recomputation."""
    checks, notes = [], []
    for key, name in sides.plan.extras.items():
        if sides.sidecar is None or name not in sides.sidecar:
            notes.append(f"{key} has no home in the converted model, and no sidecar keeps it")
            continue
        # A conversion that rounds the model may keep what travels beside it as it is.
        as_it_is = sides.sidecar[name].dtype == sides.original[key].dtype
        kept = replace(sides, converted=sides.sidecar, cast="" if as_it_is else sides.cast)
        differing = _differing(kept, Move((key,), (name,), _KEPT)).get(name, "")
        words = f"{name} of the sidecar {differing}" if differing else f"{name} is kept in the sidecar, byte for byte"
        checks.append(Check(name, "bytes", None, None, not differing, words))
    for key, (made, dispensable, what) in sides.buffers.items():
        if made.equal:
            checks.append(Check(key, "recomputed", None, None, True, f"{key} is what the target computes, bit for bit"))
            continue
        words = f"{printable(key)} {what}"
        checks.append(Check(key, "recomputed", made.difference, 0.0, None if dispensable else False, words))
        notes += [words] if dispensable else []
    return checks, notes
