"""The little that is asked of arrays, of whichever library: to be joined on axis 0, and to be the same bit for bit."""

from __future__ import annotations

import sys
from typing import Any


def same_bits(one: Any, other: Any) -> bool:
    """Whether two arrays of one shape and dtype are equal bit for bit; a NaN is equal to itself, and -0 not to 0."""
    if one is other:
        return True
    library = _library(one, "uint8", "compared")
    bits = [array.reshape(-1).view(library.uint8) for array in (one, other)]
    return bool((bits[0] == bits[1]).all())


def concatenate(arrays: list[Any]) -> Any:
    """Concatenate on axis 0."""
    return _library(arrays[0], "concatenate", "concatenated").concatenate(arrays)


def _library(array: Any, wanted: str, done: str) -> Any:
    """The array's own library, which is loaded already: the engine knows none. `wanted`: what it has to have."""
    kind = type(array)
    library = sys.modules[kind.__module__.partition(".")[0]]
    if not hasattr(library, wanted):
        raise TypeError(f"a {kind.__name__} cannot be {done}: give arrays, such as its numpy() or torch()")
    return library
