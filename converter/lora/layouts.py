"""An adapter in the other layout: one change over fused rows for several, or several for one, exactly or not at all.

A product shares its columns: cut the rows of its left factor, and every part is right. The other way, the parts stand
side by side as blocks: their columns one above the other, their rows on the diagonal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ..errors import InputError
from ..mapping import Move
from ..mapping.fold import listed
from ..mapping.rows import spell
from .adapter import Adapter
from .changes import Change
from .names import DIFFUSERS, modules_of
from .products import Array, Full, Held, LowRank, Replaced, flat

# The weights that changes are relative to: a key of the adapter's layout -> the array; None where none are at hand.
Base = Callable[[str], Array] | None
NEEDS_BASE = "`base` is needed: "


class InexactError(Exception):
    """Why something cannot be said exactly, in words that end before the names of what it is of."""


def in_layout(adapter: Adapter, layout: str, base: Base = None) -> dict[str, Change]:
    """The changes of an adapter by the keys of a layout.

    Args:
        base: gives the tensors of the model, by the keys of the adapter's own layout.

    Raises: `InputError` for what the layout cannot hold exactly.
    """
    if layout == adapter.layout:
        return dict(adapter.changes)
    changes: dict[str, Change] = {}
    problems: dict[str, list[str]] = {}
    for move in _moves(adapter, layout):
        keys = move.parts if adapter.layout == DIFFUSERS else (move.origin,)
        there = [adapter.changes.get(key) for key in keys]
        try:
            if layout == DIFFUSERS:
                assert there[0] is not None
                changes.update(zip(move.parts, parts_of(move, there[0], base), strict=True))
            else:
                changes[move.origin] = _whole(move, there, base)
        except InexactError as error:
            problems.setdefault(str(error), []).extend(k for k, c in zip(keys, there, strict=True) if c is not None)
    if problems:
        raise InputError.at(adapter.path, "", "; ".join(listed(problems)))
    return changes


def _moves(adapter: Adapter, layout: str) -> list[Move]:
    """The tensors of the original's layout that are changed, each with those of diffusers'."""
    # Of one source, there may be a row without an optional group and others with one: origin -> group -> move.
    found: dict[str, dict[str, Move]] = defaultdict(dict)
    for row in modules_of(adapter.family):
        for path in row.targets if adapter.layout == DIFFUSERS else (row.source,):
            for key in adapter.changes:
                if place := replace(row, source=path).match(key):
                    index, suffix = place
                    if row.spread:
                        rule = "diffusers has it in every block, and how many there are an adapter does not say:"
                        raise InputError.at(adapter.path, "", f"{rule} {key}")
                    origin = spell(row.source, index, suffix)
                    found[origin][row.group] = Move((origin,), row.written(index, suffix, {}), row)
    shown = {group for rows in found.values() if len(rows) == 1 for group in rows if group}
    problems: dict[str, list[str]] = {}
    for origin, rows in found.items():
        if layout == DIFFUSERS and len(rows) > 1 and (there := shown & rows.keys()):
            found[origin] = {group: rows[group] for group in there}
        elif len(rows) > 1:
            problems.setdefault(_either(rows, layout), []).append(origin)
    if problems:
        raise InputError.at(adapter.path, "", "; ".join(listed(problems)))
    return [move for rows in found.values() for move in rows.values()]


def _either(rows: Mapping[str, Move], layout: str) -> str:
    """Why a tensor of the original has no single place in diffusers' layout, in words."""
    if layout == DIFFUSERS:
        groups = " or ".join(filter(None, rows))
        return f"what diffusers calls it depends on whether the model has {groups} (merge it instead):"
    return f"no model has both {' and '.join(move.parts[0] for move in rows.values())}, which are"


def parts_of(move: Move, change: Change, base: Base, strength: float = 1.0) -> list[Change]:
    """The changes of the parts of a tensor that is changed as a whole.

    Args:
        strength: that it will be used at, which the norms of DoRA per input depend on.

    Raises: `InexactError` where that takes the weights of the base.
    """
    operation, count = move.operation, len(move.parts)
    groups = operation.groups(count)
    if groups == 1:  # every part is all of it
        return [change] * count

    def rows(array: Array) -> list[Array]:
        return operation.forward(array, count, np.concatenate)

    product = change.product
    # A Kronecker product may not divide, and is of low rank all the same.
    products = product.cut(rows, groups) or product.low_rank().cut(rows, groups)
    parts = [replace(change, product=each, magnitude=None) for each in products]
    if change.magnitude is None:
        return parts
    magnitude = np.asarray(change.magnitude.numpy()).reshape(-1)
    if change.axis == 0:
        return [replace(part, magnitude=Held(own)) for part, own in zip(parts, rows(magnitude), strict=True)]
    if count == 1:  # the same rows in another order have the same norms
        return [replace(parts[0], magnitude=change.magnitude)]
    if base is None:
        raise InexactError(f"{NEEDS_BASE}the norms of DoRA per input run over all rows of")
    whole = base(move.origin).astype(np.float64)
    value = whole + replace(change, magnitude=None).difference(whole, strength)
    norm = np.linalg.norm(value, axis=0)
    return [
        replace(part, magnitude=Held(magnitude * np.linalg.norm(own, axis=0) / norm))
        for part, own in zip(parts, rows(value), strict=True)
    ]


def _whole(move: Move, parts: list[Change | None], base: Base) -> Change:
    """The change of a tensor of which some parts are changed."""
    operation, count = move.operation, len(parts)
    if operation.groups(count) == 1 and not operation.must_agree:
        assert parts[0] is not None
        return parts[0]
    if operation.must_agree:
        raise InexactError("one tensor of the original, of which diffusers has copies, changed in one of them:")

    def joined(arrays: list[Array]) -> Array:
        return operation.inverse(arrays)

    there = [part for part in parts if part is not None]
    if all(isinstance(part, Replaced) for part in there) and len(there) == count:
        return Change(Replaced(Held(joined([part.product.matrix(np.float32) for part in there]))))
    if any(isinstance(part.product, Full) for part in there):
        return Change(Full(Held(joined(_dense(move, parts, base)))))
    pairs = [part.product.low_rank() if part else None for part in parts]
    scales = {part.scale for part in there}
    bake = len(scales) > 1
    rows, total, at = there[0].product.size[0], sum(pair.rank for pair in pairs if pair), 0
    arrays = [held.numpy() for pair in pairs if pair for held in (pair.up, pair.down)]
    kind = np.result_type(np.float32, *arrays)
    downs, ups = [], []
    for part, pair in zip(parts, pairs, strict=True):
        block = np.zeros((rows, total), kind)
        if part and pair:
            own = flat(pair.up, kind)
            block[:, at : at + pair.rank] = own * part.scale if bake else own
            downs.append(flat(pair.down, kind))
            at += pair.rank
        ups.append(block)
    alpha = there[0].alpha if len({part.alpha for part in there}) == 1 else "file"
    change = Change(LowRank(Held(np.concatenate(downs)), Held(joined(ups))), 1.0 if bake else scales.pop(), alpha)
    if any(part.magnitude for part in there):
        return replace(change, magnitude=Held(joined(_magnitudes(move, parts, base))))
    return change


def _dense(move: Move, parts: list[Change | None], base: Base) -> list[Array]:
    """The differences of the parts, whole."""
    size = next(part.product.size for part in parts if part)
    shape = size[:1] if move.origin.endswith(".bias") else size
    dense = []
    for key, part in zip(move.parts, parts, strict=True):
        if part is None:
            dense.append(np.zeros(shape, np.float32))
        elif base is None and (part.magnitude or isinstance(part.product, Replaced)):
            raise InexactError(f"{NEEDS_BASE}a difference from it is what there is to write for")
        else:
            weight = base(key) if base else np.zeros(shape, np.float32)
            dense.append(part.difference(weight.reshape(shape).astype(np.float64)))
    return dense


def _magnitudes(move: Move, parts: list[Change | None], base: Base) -> list[Array]:
    """DoRA's magnitudes of all rows: of what is no DoRA, the norms that it has."""
    if any(part and part.magnitude and part.axis == 1 for part in parts):
        raise InexactError("DoRA per input, whose norms would run over the rows of all parts (merge it instead):")
    found = []
    for key, part in zip(move.parts, parts, strict=True):
        if part and part.magnitude:
            found.append(np.asarray(part.magnitude.numpy()).reshape(-1))
        elif base is None:
            raise InexactError(f"{NEEDS_BASE}some parts are DoRA and others are not, which then take the base's norms:")
        else:
            weight = base(key).astype(np.float64)
            value = weight + part.difference(weight) if part else weight
            found.append(np.linalg.norm(value.reshape(len(value), -1), axis=1))
    return found
