"""The weight audit, without a forward: the converted file, mapped back, is the original byte for byte.

Running the nets cannot replace it: a bias that softmax does not see, or one last bit, changes no output.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate
from math import prod

from ..conversion.zeros import find_zeros
from ..errors import plural, printable
from ..mapping import Move, Parameter, fold
from ..mapping.rows import Row
from ..reports.report import FAIL, INCONCLUSIVE, PASS, Check, Phase
from .misplaced import Owners, belonging, equal
from .sides import Sides

WORKERS = 2  # reading, comparing and checksums run without the interpreter's lock
FEW = 32  # tensors, for which threads are not worth it
LAST_BITS = 1e-5  # of elements of at most 1, above what other versions of the same arithmetic make of them
_SAME = Row.parse("kept", Parameter("kept"))  # the sidecar holds tensors as they were


def audit(sides: Sides, step: Callable[[int], None] = lambda count: None, only: Collection[str] | None = None) -> Phase:
    """Every byte of the original accounted for: mapped, in the sidecar, or recomputed; and nothing else in the model.

    Args:
        step: called with the number of tensors compared since the last call.
        only: the converted keys whose bytes are compared, all others being known: only whether they differ counts.

    Returns: the phase 'weights', with a check for every kind of finding.
    """
    parts = {name for move in sides.plan.moves for name in move.parts}
    strays = [*sides.family.keys.targets.survey(sides.converted).extras]
    missing, extra = parts - sides.converted.keys(), sides.converted.keys() - parts - {*strays}
    checks = [
        _wrong("keys", f"{what}: {name}", "bijection")
        for what, names in (("missing", missing), ("extra", extra))
        for name in fold(sorted(names))
    ]
    moves = [move for move in sides.plan.moves if missing.isdisjoint(move.parts)]
    if only is not None:
        moves = [move for move in moves if not {*only}.isdisjoint(move.parts)]
    owners = Owners(sides) if only is None else None
    wrong: dict[str, list[str]] = defaultdict(list)  # what is wrong -> keys: of every kind with numbers one alone

    def compare(move: Move) -> dict[str, str]:
        result = difference(sides, move, owners)
        step(1)
        return result

    with ThreadPoolExecutor(WORKERS) as pool:
        for result in (map if len(moves) < FEW else pool.map)(compare, moves):
            for name, kind in result.items():
                wrong[kind].append(name)
    checks += [_wrong(name, f"{name} {kind}") for kind, names in wrong.items() for name in fold(names)]
    notes: list[str] = []
    if only is None:
        checks += [*_sidecar_checks(sides, notes), *_buffer_checks(sides, notes)]
    sums = {move.origin for move in moves} & sides.merged.dtypes.keys() if sides.merged else set()
    distance = sides.merged.check() if sides.merged else Check("merged", "merged")
    checks += [distance] if sums and only is None else []
    notes += [f"{key} is left over from an old conversion, and not used" for key in strays]
    if failed := [check for check in checks if check.passed is False]:
        total, count = sum(len(move.parts) for move in moves), sum(map(len, wrong.values()))
        words = f"{count} of {total} converted tensors are" if wrong else "the converted weights are"
        whose = "those of the original with the adapters" if sides.merged else "the original's"
        more = f", and {plural(len(failed) - 1, 'more problem')}" if len(failed) > 1 else ""
        return Phase("weights", FAIL, f"{words} not {whose}: {failed[0].words}{more}", failed, notes=notes)
    kind = f"{'rounded' if sides.rounded else 'widened'} to {sides.cast}" if sides.cast else "byte for byte"
    total = sum(prod(sides.original[move.origin].shape) for move in moves if move.origin not in sums)
    aside = sum(check.statistic == "bytes" for check in checks)
    counts = {
        f"in the model {kind} ({total / 1e6:.4g} M numbers)": len(moves) - len(sums),
        distance.words: len(sums),
        "in the sidecar": aside,
        "without a place": len(sides.plan.extras) - aside,
        "recomputed": len(sides.recomputed),
    }
    places = ", ".join(f"{count} {place}" for place, count in counts.items() if count)
    words = f"all {sum(counts.values())} tensors of the original accounted for: {places}; none missing, none extra"
    checks.append(Check("weights", "bytes", passed=True, words=words))
    return Phase("weights", PASS, words, checks, notes=notes)


def _wrong(what: str, words: str, statistic: str = "bytes") -> Check:
    return Check(what, statistic, passed=False, words=words)


def doubt(weights: Phase, sides: Sides) -> Phase:
    """The phase 'weights', no PASS where equal weights prove less than they seem to.

    - Both sides may hold zeros that no training leaves so, as of an incomplete download. Only the
      original tensors' ends, and zeros, are read again: the audit has read it all.
    - The original net may use a stored buffer that is further from the computed one than its last bits: the nets are
      compared with the computed one, and so the comparison is of another net.
    """
    if weights.verdict != PASS:
        return weights  # where they differ, that is what there is to report
    zeros = find_zeros(sides.plan, sides.original)
    weights.notes += zeros.notes
    unused = (sides.seen or sides.findings).unused_buffers
    other_buffers = [
        f"{key} {what}, and the original uses it as it is: the nets are compared with the computed one"
        for key, (comparison, _, what) in sides.recomputed.items()
        if key in sides.exact and comparison.difference > LAST_BITS and key not in unused
    ]
    if zeros.refused:
        weights.verdict = INCONCLUSIVE
        weights.words = f"{zeros.refused}; the converted weights are the same"
    elif other_buffers:
        weights.verdict, weights.words = INCONCLUSIVE, "; ".join(other_buffers)
    return weights


def matches(sides: Sides, count: int = 3) -> bool:
    """Whether the first few tensors are the original's: enough to tell one set of weights from another."""
    moves = sides.plan.moves[:count]
    there = all(name in sides.converted for move in moves for name in move.parts)
    return there and not any(difference(sides, move) for move in moves)


def difference(sides: Sides, move: Move, owners: Owners | None = None) -> dict[str, str]:
    """Converted key -> what is wrong with its tensor: those of a move have to be what its operation makes of the
    source's bytes, or of their declared rounding.

    Args:
        owners: to say what stands there instead; without it that they differ is enough.
    """
    source, wrong = sides.original[move.origin], dict[str, str]()
    held, rights = [sides.converted[name] for name in move.parts], belonging(sides, move)
    for name, part, right in zip(move.parts, held, rights, strict=True):
        kind = part.dtype.name
        if part.dtype == source.dtype != right.dtype:
            wrong[name] = f"is {kind} as in the original, and was declared to be rounded to {sides.cast}"
        elif part.dtype != right.dtype:
            meant = part.dtype.floating and not sides.cast and all(other.dtype == part.dtype for other in held)
            hint = f"; --cast {kind} if that was meant" if meant else ""
            wrong[name] = f"is {kind}, and the original is {source.dtype.name}{hint}"
        elif tuple(part.shape) != tuple(right.shape):
            wrong[name] = f"has shape {list(part.shape)}, not {list(right.shape)}"
    same = source.dtype == rights[0].dtype and move.operation.in_order(len(held))
    if wrong:
        return wrong
    if same and equal([source], held):
        starts = accumulate((prod(part.shape) for part in held), initial=0)
        sides.proven.update((part, (source, start)) for part, start in zip(held, starts, strict=False))
        return wrong
    return {
        name: owners.described(name, part, right) if owners else "differs"
        for name, part, right in zip(move.parts, held, rights, strict=True)
        if not equal([part], [right])
    }


def _sidecar_checks(sides: Sides, notes: list[str]) -> Iterator[Check]:
    """What the converted model has no place for: the sidecar's tensors against the original's."""
    for key, name in sides.plan.extras.items():
        if sides.sidecar is None or name not in sides.sidecar:
            notes.append(f"{key} has no place in the converted model or in a sidecar")
            continue
        # A conversion that rounds the model may leave the sidecar as it is.
        unchanged = sides.sidecar[name].dtype == sides.original[key].dtype
        sidecar = replace(sides, converted=sides.sidecar, cast="" if unchanged else sides.cast)
        wrong = difference(sidecar, Move((key,), (name,), _SAME), Owners(sidecar))
        words = f"{name} of the sidecar {wrong[name]}" if wrong else f"{name} is kept in the sidecar, byte for byte"
        yield Check(name, "bytes", passed=not wrong, words=words)


def _buffer_checks(sides: Sides, notes: list[str]) -> Iterator[Check]:
    """The stored buffers against what the target computes in their place."""
    for key, (comparison, dispensable, what) in sides.recomputed.items():
        if comparison.equal:
            yield Check(key, "recomputed", passed=True, words=f"{key} is what the target computes, bit for bit")
            continue
        words = f"{printable(key)} {what}"
        yield Check(key, "recomputed", comparison.difference, 0.0, passed=None if dispensable else False, words=words)
        notes += [words] if dispensable else []
