"""The way back of what was split or copied: parts are put together, copies have to agree."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from .fold import fold
from .plan import Move


def unlike(moves: list[Move], state: Mapping[str, Any]) -> list[str]:
    """What keeps tensors of the target layout from being one again: one is absent, or they are not alike."""
    missing = [key for move in moves for key in move.sources if key not in state]
    wrong: dict[str, list[str]] = {}
    for move in moves:
        there = [key for key in move.sources if key in state]
        shapes = [list(state[key].shape) for key in there]
        # An array library would promote them without a word, and the way out would not give them back.
        dtypes = [str(getattr(state[key], "dtype", "")) for key in there]
        if move.copies:
            for what, kinds in (("shape", [str(shape) for shape in shapes]), ("dtype", dtypes)):
                usual = max(kinds, key=kinds.count, default="")
                for key, kind in zip(there, kinds, strict=True):
                    if kind != usual:
                        said = f"has {what} {kind}, and the other copies of {move.targets[0]} have {usual}"
                        wrong.setdefault(said, []).append(key)
            continue
        if len(move.sources) > 1 and ([] in shapes or shapes.count(shapes[0]) != len(shapes)):
            said = "cannot be put together out of shapes " + ", ".join(map(str, shapes))
            wrong.setdefault(said, []).append(move.targets[0])
        if len(set(dtypes)) > 1:
            wrong.setdefault("cannot be put together out of dtypes " + ", ".join(dtypes), []).append(move.targets[0])
    return [f"missing {key}" for key in fold(missing)] + [
        f"{key} {said}" for said, keys in wrong.items() for key in fold(keys)
    ]


def disagreeing(move: Move, tensors: list[Any]) -> list[str]:
    """The copies that are not what most of them are (of two that differ, the second), folded and in words."""
    kinds: list[list[int]] = []
    for i, tensor in enumerate(tensors):
        own = next((kind for kind in kinds if _equal(tensor, tensors[kind[0]])), None)
        if own is None:
            kinds.append(own := [])
        own.append(i)
    usual = max(kinds, key=len)
    strange = [move.sources[i] for kind in kinds if kind is not usual for i in kind]
    said = f"is not what {move.sources[usual[0]]} is, and both have to be copies of {move.targets[0]}"
    return [f"{key} {said}" for key in fold(strange)]


def _equal(one: Any, other: Any) -> bool:
    """Whether two arrays of one shape and dtype are equal bit for bit; a NaN is equal to itself, and -0 not to 0."""
    if one is other:
        return True
    library = _library(one, "uint8", "compared")
    bits = [array.reshape(-1).view(library.uint8) for array in (one, other)]
    return bool((bits[0] == bits[1]).all())


def concatenate(tensors: list[Any]) -> Any:
    """Concatenate on axis 0."""
    return _library(tensors[0], "concatenate", "concatenated").concatenate(tensors)


def _library(array: Any, wanted: str, done: str) -> Any:
    """The array's own library, which is loaded already: the engine knows none. `wanted`: what it has to have."""
    kind = type(array)
    library = sys.modules[kind.__module__.partition(".")[0]]
    if not hasattr(library, wanted):
        raise TypeError(f"a {kind.__name__} cannot be {done}: give arrays, such as its numpy() or torch()")
    return library
