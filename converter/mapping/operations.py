"""What can become of a tensor: each operation is one small class, and its inverse follows from what it says.

An operation shares out the rows of a source tensor, in equal groups, among the tensors of the target. It says only
which groups each of them holds (`contents`); one that cannot be said in rows overrides what needs shapes and arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from .dims import Dim, Pattern
from .fold import fold

Place = tuple[int, int]  # (which of the targets, which of the groups of rows in it)
Shape = tuple[int, ...]
Join = Callable[[list[Any]], Any]


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


@dataclass(frozen=True, slots=True)
class Parameter:
    """A path that is itself a tensor (an `nn.Parameter`, a buffer, or the rows of a lookup), not a module with a weight
    and a bias."""

    to: str | tuple[str, ...]


Paths = str | tuple[str, ...] | Parameter


@dataclass(frozen=True)
class Operation:
    """One source tensor and its tensors in the target, in both directions; `to` are the paths of those.

    `word`, `word_back`: how a record names it; `must_agree`: whether the target holds the same thing more than once,
    so that bytes that differ are no such model. In all methods, `count` is the number of tensors in the target.
    """

    to: Paths
    word: ClassVar[str] = "rename"
    word_back: ClassVar[str] = "rename"
    must_agree: ClassVar[bool] = False

    def contents(self, count: int) -> list[list[int]]:
        """Of each target, the groups of the source's rows that it holds, in order.

        >>> Split(("q", "k", "v")).contents(3)
        [[0], [1], [2]]
        """
        return [[0]]

    def check(self, count: int, spread: bool) -> str:
        """What is wrong with a row of so many target paths, in words; '' where it makes sense.

        Args:
            spread: the source is in no block, and a target is in every block.
        """
        return ""

    def groups(self, count: int) -> int:
        """Into how many equal groups the rows of the source are divided."""
        return 1 + max((group for held in self.contents(count) for group in held), default=0)

    def passes(self, count: int) -> list[tuple[Place, ...]]:
        """Where every group goes, in order; once for each time that the target holds it whole."""
        places: list[list[Place]] = [[] for _ in range(self.groups(count))]
        for target, held in enumerate(self.contents(count)):
            for position, group in enumerate(held):
                places[group].append((target, position))
        return list(zip(*places, strict=True))

    def in_order(self, count: int) -> bool:
        """Whether the tensors of the target, one after the other, are the source's bytes, each once."""
        return [group for held in self.contents(count) for group in held] == [*range(self.groups(count))]

    def share(self, count: int) -> Fraction:
        """How much of the source's rows each target has."""
        return Fraction(len(self.contents(count)[0]), self.groups(count))

    def pattern(self, pattern: Pattern, count: int) -> Pattern:
        """The shape pattern of each target."""
        return tuple(Dim(dim.symbol, dim.factor * self.share(count)) for dim in pattern[:1]) + pattern[1:]

    def misfit(self, shape: Shape, count: int) -> str:
        """Why a source of this shape cannot be shared out, in words; '' where it can."""
        return _indivisible(shape, self.groups(count))

    def unlike(self, source: str, parts: Mapping[str, Any], count: int) -> Iterator[tuple[str, str]]:
        """(key, why tensors of the target cannot be joined into `source`). `parts`: those present, by key."""
        # An array library would silently promote them, and converting again would not restore them.
        for what, kinds in _kinds(parts):
            if len(set(kinds)) > 1 or (count > 1 and "[]" in kinds):
                yield source, f"cannot be joined from {what}s " + ", ".join(kinds)
        for key, held in zip(parts, self.contents(count), strict=False):
            if wrong := _indivisible(tuple(parts[key].shape), len(held)):
                yield key, wrong

    def disagreeing(self, source: str, keys: Sequence[str], arrays: Sequence[Any]) -> list[str]:
        """Which of the target's tensors contradict the others, in words."""
        return []

    # Arrays: torch, NumPy, or anything that slices. `join` puts a list of them together on axis 0.
    def forward(self, array: Any, count: int, join: Join = concatenate) -> list[Any]:
        """The tensors of the target: views, where rows do not change places."""
        runs = _divided(array, self.groups(count))
        return [_joined([runs[group] for group in held], join) for held in self.contents(count)]

    def inverse(self, arrays: Sequence[Any], join: Join = concatenate) -> Any:
        """The source, out of all tensors of the target."""
        contents = self.contents(len(arrays))
        runs = [_divided(array, len(held)) for array, held in zip(arrays, contents, strict=True)]
        return _joined([runs[target][position] for target, position in self.passes(len(arrays))[0]], join)


class Rename(Operation):
    """The whole tensor under another path."""


class Split(Operation):
    """Equal runs of rows, in order, under several paths."""

    word, word_back = "split", "concatenate"

    def contents(self, count: int) -> list[list[int]]:
        return [[group] for group in range(count)]


class Copies(Operation):
    """A tensor that the target holds several times, each time whole: under each of several paths and, where a path
    has a `{}` and the source none, in every block. On the way back all copies have to be there, and to agree."""

    word, must_agree = "copy", True

    def contents(self, count: int) -> list[list[int]]:
        return [[0]] * count

    def check(self, count: int, spread: bool) -> str:
        return "" if count > 1 or spread else "a single copy is a rename"

    def unlike(self, source: str, parts: Mapping[str, Any], count: int) -> Iterator[tuple[str, str]]:
        for what, kinds in _kinds(parts):
            usual = max(kinds, key=kinds.count, default="")
            for key, kind in zip(parts, kinds, strict=True):
                if kind != usual:
                    yield key, f"has {what} {kind}, and the other copies of {source} have {usual}"

    def disagreeing(self, source: str, keys: Sequence[str], arrays: Sequence[Any]) -> list[str]:
        """The copies that are not what most of them are (of two that differ, the second), folded."""
        kinds: list[list[int]] = []
        for i, array in enumerate(arrays):
            own = next((kind for kind in kinds if same_bits(array, arrays[kind[0]])), None)
            if own is None:
                kinds.append(own := [])
            own.append(i)
        usual = max(kinds, key=len)
        words = f"is not what {keys[usual[0]]} is, and both have to be copies of {source}"
        return [f"{key} {words}" for key in fold(keys[i] for kind in kinds if kind is not usual for i in kind)]


@dataclass(frozen=True)
class Reorder(Operation):
    """Equal groups of rows in another order, such as scale and shift swapped: group j of the target is group
    `order[j]` of the source. Several paths share them out, equally and in that order.

    >>> Reorder(("scale", "shift"), (1, 0)).contents(2)  # of the two halves, the second goes first
    [[1], [0]]
    """

    order: tuple[int, ...] = ()
    word, word_back = "reorder", "reorder"

    def contents(self, count: int) -> list[list[int]]:
        each = len(self.order) // count
        return [[*self.order[target * each : (target + 1) * each]] for target in range(count)]

    def check(self, count: int, spread: bool) -> str:
        order = self.order if isinstance(self.order, tuple) else ()
        if len(order) < 2 or sorted(order) != list(range(len(order))):
            return f"{self.order!r} is not an order of two or more groups of rows, such as (1, 0)"
        return f"{len(order)} groups of rows do not divide into {count} targets" if len(order) % count else ""


def _kinds(parts: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """The shapes and the dtypes of tensors, as words."""
    shapes = [str(list(part.shape)) for part in parts.values()]
    return [("shape", shapes), ("dtype", [str(getattr(part, "dtype", "")) for part in parts.values()])]


def _indivisible(shape: Shape, groups: int) -> str:
    fits = groups == 1 or (shape and shape[0] % groups == 0)
    return "" if fits else f"has shape {list(shape)}, which does not split into {groups}"


def _divided(array: Any, groups: int) -> list[Any]:
    """Equal runs of an array's rows; the array itself where there is one."""
    if groups == 1:
        return [array]
    rows = array.shape[0] // groups
    return [array[group * rows : (group + 1) * rows] for group in range(groups)]


def _joined(arrays: list[Any], join: Join) -> Any:
    return arrays[0] if len(arrays) == 1 else join(arrays)
