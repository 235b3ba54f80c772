"""Names that tell several things apart: as short as they may be, and never two alike."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence


def short_paths(paths: Sequence[str]) -> list[str]:
    """Each path by as many of its last parts as it takes to tell all of these apart; equal ones stay equal.

    >>> short_paths(["out/run1/epoch_5", "out/run2/epoch_5", "/tmp/run2/epoch_6"])
    ['run1/epoch_5', 'run2/epoch_5', 'run2/epoch_6']
    """
    parts = [[part for part in re.split(r"[/\\]", path) if part not in ("", ".")] or ["."] for path in paths]
    apart = len(set(map(tuple, parts)))
    for depth in range(1, max(map(len, parts), default=0) + 1):
        tails = [tuple(each[-depth:]) for each in parts]
        if len(set(tails)) == apart:
            return ["/".join(tail) for tail in tails]
    return [*paths]


class Distinct:
    """Names within any number of scopes; one that a scope has already is numbered.

    >>> name = Distinct()
    >>> name("a"), name("a"), name("a"), name("a", "elsewhere")
    ('a', 'a (2)', 'a (3)', 'a')
    """

    def __init__(self) -> None:
        self._taken: dict[tuple[Hashable, str], int] = {}

    def __call__(self, name: str, scope: Hashable = "") -> str:
        free = name
        while (scope, free) in self._taken:
            self._taken[scope, name] += 1
            free = f"{name} ({self._taken[scope, name]})"
        self._taken[scope, free] = 1
        return free
