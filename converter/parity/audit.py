"""The weight audit, without a forward: the converted file, mapped back, is the original byte for byte.

Running the nets cannot replace it: a bias that softmax does not see, or one last bit, changes no output.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from ..conversion.zeros import find_zeros
from ..errors import printable
from ..mapping import MappingError, Move, Parameter, fold
from ..mapping.rows import Row
from ..reports.report import FAIL, INCONCLUSIVE, PASS, Check, Phase
from .misplaced import difference_in_words
from .read_buffers import Bytes, as_dtype, equal_in_pieces, pieces
from .weight_pair import WeightPair

WORKERS = 2  # reading, comparing and checksums run without the interpreter's lock
FEW = 32  # tensors, for which threads are not worth it
LAST_BITS = 1e-5  # of elements of at most 1, above what other versions of the same arithmetic make of them
_SAME = Row.parse("kept", Parameter("kept"))  # the sidecar holds tensors as they were


def audit(
    pair: WeightPair, step: Callable[[int], None] = lambda count: None, only: Collection[str] | None = None
) -> Phase:
    """Every byte of the original accounted for: mapped, in the sidecar, or recomputed; and nothing else in the model.

    Args:
        step: called with the number of tensors compared since the last call.
        only: the converted keys whose bytes are compared, where all others were before; default: everything.

    Returns: the phase 'weights', with a check for every kind of finding.
    """
    checks: list[Check] = []
    try:
        back = pair.family.keys.plan_back(pair.converted)
    except MappingError as error:
        return _failed([Check("keys", "bijection", passed=False, words=problem) for problem in error.problems])
    wanted = {move.origin: move for move in pair.plan.moves}
    present = {move.origin: move for move in back.moves}
    missing = [name for key in wanted.keys() - present.keys() for name in wanted[key].parts]
    extra = [name for key in present.keys() - wanted.keys() for name in present[key].parts]
    for what, names in (("missing", missing), ("extra", extra)):
        checks += [Check("keys", "bijection", passed=False, words=f"{what}: {name}") for name in fold(sorted(names))]
    moves = [present[key] for key in wanted if key in present]
    if only is not None:
        moves = [move for move in moves if not {*only}.isdisjoint(move.parts)]

    def compare(move: Move) -> dict[str, str]:
        result = difference(pair, move)
        step(1)
        return result

    if len(moves) < FEW:  # each thread has its own buffers, and takes a while to release them
        results = list(map(compare, moves))
    else:
        with ThreadPoolExecutor(WORKERS) as pool:
            results = list(pool.map(compare, moves))
    wrong = {name: kind for result in results for name, kind in result.items()}
    checks += _difference_checks(wrong)
    notes: list[str] = []
    if only is None:
        checks += [*_sidecar_checks(pair, notes), *_buffer_checks(pair, notes)]
    notes += [f"{key} is left over from an old conversion, and not used" for key in back.extras]
    if failed := [check for check in checks if check.passed is False]:
        total = sum(len(move.parts) for move in moves)
        words = f"{len(wrong)} of {total} converted tensors are not the original's" if wrong else ""
        return _failed(failed, notes, words)
    kind = f"{'rounded' if pair.rounded else 'widened'} to {pair.cast}" if pair.cast else "byte for byte"
    total = sum(int(np.prod(pair.original[move.origin].shape)) for move in moves)
    words = (
        f"all {len(moves)} tensors ({total / 1e6:.4g} M numbers) are the original's, {kind}; none missing, none extra"
    )
    checks.append(Check("weights", "bytes", passed=True, words=words))
    return Phase("weights", PASS, words, checks, notes=notes)


def _failed(checks: list[Check], notes: Iterable[str] = (), words: str = "") -> Phase:
    words = words or "the converted weights are not the original's"
    more = f", and {len(checks) - 1} more" if len(checks) > 1 else ""
    return Phase("weights", FAIL, f"{words}: {checks[0].words}{more}", checks, notes=list(notes))


def doubt(weights: Phase, pair: WeightPair) -> Phase:
    """The phase 'weights', no PASS where equal weights prove less than they seem to.

    - Both sides may hold zeros that no training leaves so, as of a download that was not completed. Nothing of the
      original is read again but its tensors' ends, and what is zero: the audit has read it all.
    - The original net may use a stored buffer that is further from the computed one than its last bits: the nets are
      compared with the computed one, and so the comparison is of another net.
    """
    if weights.verdict != PASS:
        return weights  # where they differ, that is what there is to report
    zeros = find_zeros(pair.plan, pair.original)
    weights.notes += zeros.notes
    unused = (pair.seen or pair.found).unused_buffers
    other_buffers = [
        f"{key} {what}, and the original uses it as it is: the nets are compared with the computed one"
        for key, (comparison, _, what) in pair.recomputed.items()
        if key in pair.exact and comparison.difference > LAST_BITS and key not in unused
    ]
    if zeros.refused:
        weights.verdict = INCONCLUSIVE
        weights.words = f"the converted weights are the original's, in which {zeros.refused}"
    elif other_buffers:
        weights.verdict, weights.words = INCONCLUSIVE, "; ".join(other_buffers)
    return weights


def matches(pair: WeightPair, count: int = 3) -> bool:
    """Whether the first few tensors are the original's: enough to tell one set of weights from another."""
    moves = pair.family.keys.plan_back(pair.converted).moves[:count]
    return bool(moves) and not any(difference(pair, move) for move in moves)


def difference(pair: WeightPair, move: Move) -> dict[str, str]:
    """Converted key -> what is wrong with its tensor: those of a move, of either direction, have to be what its
    operation makes of the source's bytes, or of their declared rounding."""
    key, operation, count = move.origin, move.operation, len(move.parts)
    source, parts = pair.original[key], [pair.converted[name] for name in move.parts]
    shape = operation.source_shape(tuple(parts[0].shape), count)
    if shape != tuple(source.shape):
        return dict.fromkeys(move.parts, f"has shape {list(shape)}, not {list(source.shape)}")
    kinds = {part.dtype.name for part in parts}
    rounded = bool(pair.cast) and kinds == {pair.cast} and source.dtype.name != pair.cast
    if kinds != {source.dtype.name} and not rounded:
        kind = "/".join(sorted(kinds))
        floating = len(kinds) == 1 and parts[0].dtype.floating
        hint = f"; --cast {kind} if that was meant" if floating and not pair.cast else ""
        return dict.fromkeys(move.parts, f"is {kind}, and the original is {source.dtype.name}{hint}")
    if pair.cast and kinds != {pair.cast}:
        words = f"is {source.dtype.name} as in the original, and was declared to be rounded to {pair.cast}"
        return dict.fromkeys(move.parts, words)
    one, other = pair.buffers.pair
    if not rounded and operation.in_order(count) and equal_in_pieces(pieces([source], one), pieces(parts, other)):
        return {}
    data = pair.buffers.read(source)
    if rounded:
        data = as_dtype(data, source.dtype, parts[0].dtype)
    wrong: dict[str, str] = {}
    # Groups of rows are as many equal runs of its bytes.
    for name, part, right in zip(move.parts, parts, operation.forward(data, count), strict=True):
        if not equal_in_pieces(pieces([part], other), iter([right] if len(right) else [])):
            wrong[name] = "differs" if pair.brief else _described(pair, name, right)
    return wrong


def _described(pair: WeightPair, name: str, right: Bytes) -> str:
    tensor = pair.converted[name]
    stored = np.frombuffer(tensor.read(), np.uint8)
    owner = pair.index.owner(name, tensor, stored) if stored.any() else ""
    return f"holds what belongs in {owner}" if owner else difference_in_words(stored, right, tensor.dtype)


def _difference_checks(wrong: Mapping[str, str]) -> Iterator[Check]:
    """One check for every kind of difference, the keys folded over the blocks; kinds with numbers stay apart."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name, kind in wrong.items():
        by_kind[kind].append(name)
    for kind, names in by_kind.items():
        for name in fold(names):
            yield Check(name, "bytes", passed=False, words=f"{name} {kind}")


def _sidecar_checks(pair: WeightPair, notes: list[str]) -> Iterator[Check]:
    """What the converted model has no place for: the sidecar's tensors against the original's."""
    for key, name in pair.plan.extras.items():
        if pair.sidecar is None or name not in pair.sidecar:
            notes.append(f"{key} has no home in the converted model, and no sidecar keeps it")
            continue
        # A conversion that rounds the model may leave the sidecar as it is.
        unchanged = pair.sidecar[name].dtype == pair.original[key].dtype
        sidecar = replace(pair, converted=pair.sidecar, cast="" if unchanged else pair.cast)
        wrong = difference(sidecar, Move((key,), (name,), _SAME))
        words = f"{name} of the sidecar {wrong[name]}" if wrong else f"{name} is kept in the sidecar, byte for byte"
        yield Check(name, "bytes", passed=not wrong, words=words)


def _buffer_checks(pair: WeightPair, notes: list[str]) -> Iterator[Check]:
    """The stored buffers against what the target computes in their place."""
    for key, (comparison, dispensable, what) in pair.recomputed.items():
        if comparison.equal:
            yield Check(key, "recomputed", passed=True, words=f"{key} is what the target computes, bit for bit")
            continue
        words = f"{printable(key)} {what}"
        yield Check(key, "recomputed", comparison.difference, 0.0, passed=None if dispensable else False, words=words)
        notes += [words] if dispensable else []
