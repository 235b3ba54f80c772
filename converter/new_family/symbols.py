"""Shape patterns out of shapes: which sizes are the width of the net and its multiples, and letters for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import repeat

from .key_layout import KeyEntry
from .words import positional, words

_MULTIPLES = (2, 3, 4, 6, 8, 9)
_FREQUENCIES = 256  # what sines and cosines of the timestep are as a rule: a constant of the code
_SMALL = 8  # below it, the rows of a table and axes of length one: as they are
_LETTERS = "FKLSUVWGHJMPQTXYZABE"


class Symbols:
    """Symbols for the sizes of a net. `dims`: symbol -> size; `first`: symbol -> the path that it was first seen at;
    `patterns`: entry -> its shape in symbols, such as `3D D`.

    D is the size that most axes of matrices have; a multiple of it is written as that where rows have it (`3D`). C
    and p are the channels and the side of the patch embedding's kernel, N what a table of positions has, R the rows of
    the last layer. Another symbol stands for a size in one part of the net, its first segment: there, two sizes that
    are equal by chance share one, and the rows of a gate and a value are twice what the layer after them takes (`2F`).

    Args:
        patch: the patch size, where it is known: a kernel with other sides has none.
    """

    def __init__(self, entries: Iterable[KeyEntry], patch: int | None = None) -> None:
        self.dims: dict[str, int] = {}
        self.first: dict[str, str] = {}
        self._letters: dict[tuple[str, int], str] = {}
        entries = list(entries)
        matrices = [entry for entry in entries if len(entry.shape) > 1]
        axes = (entry.shape[:1] if len(entry.shape) > 3 else entry.shape for entry in matrices)
        votes = Counter(size for sizes in axes for size in sizes if size > 1)
        self._width = votes.most_common(1)[0][0] if votes else 0
        multiples = {m * self._width for m in _MULTIPLES if self._width}
        self._multiples = {(_part(entry), entry.shape[0]) for entry in matrices if entry.shape[0] in multiples}
        kernels = [entry for entry in matrices if len(entry.shape) > 3 and entry.shape[0] == self._width]
        named = [entry for entry in kernels if words(entry.path).area == "patch"]
        outside = [entry for entry in kernels if not entry.indexed]
        # Other kernels have sides of their own.
        fitting = [entry for entry in (*named, *outside) if entry.shape[-1] == patch]
        self._patches = next(iter(fitting or named or outside), None)
        self._patch = patch
        modules = [entry for entry in matrices if len(entry.shape) == 2 and not entry.indexed and entry.module]
        last = [entry for entry in modules if words(entry.path).area == "output"]
        self._last = last[-1] if last else None
        seconds = [entry for entry in matrices if words(entry.path).part == "second"]
        taken = {(_part(entry), entry.shape[1]) for entry in seconds if entry.shape[1] % max(self._width, 1)}
        self._halves = {(part, 2 * size) for part, size in taken}
        # Named in the order of the entries, so that the same file gives the same letters.
        self.patterns = {entry: " ".join(self._pattern(entry)) for entry in entries}

    def _pattern(self, entry: KeyEntry) -> Iterator[str]:
        meant = [""] * len(entry.shape)
        if entry is self._patches:  # a kernel: rows, channels, and its sides
            patch = self._patch or max(entry.shape[-1], 2)  # a kernel of side 1 is of patches where that is known
            meant[1:] = ["C", *["p" if entry.shape[-1] == patch else ""] * (len(entry.shape) - 2)]
        elif entry is self._last:
            meant[0] = "R"
        elif len(entry.shape) == 3 and entry.shape[0] == 1:
            meant[1] = "N"
        elif entry.bare and len(entry.shape) > 1 and positional(entry.path) and "N" not in self.dims:
            meant[0] = "N"
        return map(self._size, entry.shape, repeat(entry), meant)

    def _size(self, size: int, entry: KeyEntry, letter: str) -> str:
        part = _part(entry)
        if letter and (size > 1 or letter == "p") and self.dims.get(letter, size) == size:
            symbol = letter
        elif size == self._width:
            symbol = "D"
        elif (part, size) in self._halves and words(entry.path).part in ("first", "middle"):
            half = self._size(size // 2, entry, "")
            return f"2{half}" if half.isalpha() else str(size)
        elif (part, size) in self._multiples:
            return f"{size // self._width}D"
        elif size < _SMALL or size == _FREQUENCIES:
            return str(size)
        else:
            free = next((one for one in _LETTERS if one not in self.dims), "")
            symbol = self._letters.get((part, size), free)
            if not symbol:  # more sizes than letters
                return str(size)
            self._letters[part, size] = symbol
        self.dims[symbol] = size
        self.first.setdefault(symbol, entry.path)
        return symbol


def _part(entry: KeyEntry) -> str:
    return entry.path.partition(".")[0]
