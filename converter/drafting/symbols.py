"""Shape patterns out of shapes: which sizes are the width of the net and its multiples, and letters for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .places import Place

_MULTIPLES = (2, 3, 4, 6, 8, 9)
_FREQUENCIES = 256  # what sines and cosines of the timestep are as a rule: a constant of the code
_SMALL = 8  # below it, the rows of a table and axes of length one: as they are
_LETTERS = "FKLRSUVWGHJMPQTXYZABE"


class Symbols:
    """Symbols for the sizes of a net. `dims`: symbol -> size; `first`: symbol -> the path that it was first seen at.

    D is the size that most axes of matrices have; a multiple of it is written as that where rows have it (`3D`). C
    and p are the channels and the side of a patch's kernel, N what a table of positions has. A symbol stands for a
    size and not for a meaning: two that are equal by chance share one.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        self.dims: dict[str, int] = {}
        self.first: dict[str, str] = {}
        places = list(places)
        votes = Counter(size for place in places if len(place.shape) > 1 for size in place.shape if size > 1)
        if votes:
            self._name("D", votes.most_common(1)[0][0], "")
        width = self.dims.get("D", 0)
        self._multiples = {
            place.shape[0]
            for place in places
            if len(place.shape) > 1 and width and place.shape[0] // width in _MULTIPLES and not place.shape[0] % width
        }
        for place in places:
            if width in place.shape:
                self.first["D"] = self.first.get("D") or place.path
        # Named in the order of the places, so that the same file gives the same letters.
        self._patterns = {place: self._pattern(place) for place in places}

    def pattern(self, place: Place) -> str:
        """`3D D` for a place that was among those given."""
        return " ".join(self._patterns[place])

    def _pattern(self, place: Place) -> list[str]:
        shape = place.shape
        if len(shape) > 3:  # a kernel: rows, channels, and its sides
            return [self._size(shape[0], place), self._size(shape[1], place, "C")] + [
                self._size(size, place, "p") for size in shape[2:]
            ]
        if len(shape) == 3 and shape[0] == 1:
            return ["1", self._size(shape[1], place, "N"), self._size(shape[2], place)]
        return [self._size(size, place) for size in shape]

    def _size(self, size: int, place: Place, letter: str = "") -> str:
        width = self.dims.get("D", 0)
        if size == width and width:
            return "D"
        if not letter and size in self._multiples:
            return f"{size // width}D"
        if size < 1 or (not letter and (size < _SMALL or size == _FREQUENCIES)) or (size == 1 and letter):
            return str(max(size, 1))
        wanted = (letter, *_LETTERS) if letter else tuple(_LETTERS)
        known = next((name for name, value in self.dims.items() if value == size and (not letter or name == letter)), "")
        if known:
            return known
        name = next((name for name in wanted if name not in self.dims), "")
        if not name:  # more sizes than letters
            return str(size)
        self._name(name, size, place.path)
        return name

    def _name(self, symbol: str, size: int, path: str) -> None:
        self.dims[symbol], self.first[symbol] = size, path
