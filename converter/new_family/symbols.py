"""Shape patterns out of shapes: which sizes are the width of the net and its multiples, and letters for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import repeat

from .key_layout import KeyEntry
from .words import words

_MULTIPLES = (2, 3, 4, 6, 8, 9)
_FREQUENCIES = 256  # what sines and cosines of the timestep are as a rule: a constant of the code
_SMALL = 8  # below it, the rows of a table and axes of length one: as they are
_LETTERS = "FKLRSUVWGHJMPQTXYZABE"


class Symbols:
    """Symbols for the sizes of a net. `dims`: symbol -> size; `first`: symbol -> the path that it was first seen at;
    `patterns`: entry -> its shape in symbols, such as `3D D`.

    D is the size that most axes of matrices have; a multiple of it is written as that where rows have it (`3D`). C
    and p are the channels and the side of the patch embedding's kernel, N what a table of positions has. Another symbol
    stands for a size in one part of the net, its first segment: there, two sizes that are equal by chance share one.
    """

    def __init__(self, entries: Iterable[KeyEntry]) -> None:
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
        self._patches = next(iter(named or outside), None)  # other kernels have sides of their own
        # Named in the order of the entries, so that the same file gives the same letters.
        self.patterns = {entry: " ".join(self._pattern(entry)) for entry in entries}

    def _pattern(self, entry: KeyEntry) -> Iterator[str]:
        meant = [""] * len(entry.shape)
        if entry is self._patches:  # a kernel: rows, channels, and its sides
            meant[1:] = ["C", *["p"] * (len(entry.shape) - 2)]
        elif len(entry.shape) == 3 and entry.shape[0] == 1:
            meant[1] = "N"
        return map(self._size, entry.shape, repeat(entry), meant)

    def _size(self, size: int, entry: KeyEntry, letter: str) -> str:
        part = _part(entry)
        if size > 1 and letter and self.dims.get(letter, size) == size:
            symbol = letter
        elif size == self._width:
            symbol = "D"
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
