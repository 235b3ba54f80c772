"""Many keys in few words: `blocks.{0..27}.attn.qkv.weight`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from ..errors import InputError, plural, printable, shortened

SHOWN = 12
# Only an index as it is written: `blocks.01` is another key than `blocks.1` and must not be shown as that.
_NUMBERED = re.compile(r"(|.*?\.)(0|[1-9]\d{0,17})(|\..*)", re.ASCII | re.DOTALL)


def _as_text(runs: Iterable[tuple[int, int]]) -> str:
    return ",".join(str(first) if first == last else f"{first}..{last}" for first, last in runs)


def ranges(indices: Iterable[int]) -> str:
    """Whole numbers as runs.

    >>> ranges([5, 0, 1, 2])
    '0..2,5'
    """
    there = set(indices)
    firsts, lasts = ([i for i in sorted(there) if i + step not in there] for step in (-1, 1))
    return _as_text(zip(firsts, lasts, strict=True))


def holes(indices: Iterable[int], stop: int) -> str:
    """The runs of 0..stop-1 that are not in `indices`, without ever listing them (an index can be 10**18)."""
    there = [-1, *sorted(set(indices)), stop]
    return _as_text((one + 1, other - 1) for one, other in pairwise(there) if other > one + 1)


def folded(keys: Iterable[str]) -> dict[str, list[str]]:
    """Keys that differ in their first number only, under one pattern each: pattern -> its keys.

    >>> list(folded(["blocks.0.a", "blocks.1.a", "b"]))
    ['blocks.{0..1}.a', 'b']
    """
    groups: dict[tuple[str, str | None], dict[str, int]] = {}
    for key in keys:
        match = _NUMBERED.fullmatch(key)
        head, index, tail = (match[1], int(match[2]), match[3]) if match else (key, -1, None)
        groups.setdefault((head, tail), {})[key] = index
    patterns: dict[str, list[str]] = {}
    for (head, tail), members in groups.items():
        indices = ranges(members.values())
        pattern = head if tail is None else head + (f"{{{indices}}}" if len(members) > 1 else indices) + tail
        # Long keys may look alike once they are cut.
        patterns.setdefault(printable(pattern, 160), []).extend(members)
    return patterns


def fold(keys: Iterable[str]) -> list[str]:
    """The patterns of `folded` alone."""
    return list(folded(keys))


def listed(keys_by_words: Mapping[str, Sequence[str]], most: int = 4) -> list[str]:
    """Words with the keys that they are about, folded.

    >>> listed({"unknown": ["blocks.0.a", "blocks.1.a", "b"]})
    ['unknown blocks.{0..1}.a, b']
    """
    return [f"{words} {shortened(fold(keys), most)}" for words, keys in keys_by_words.items()]


class MappingError(InputError):
    """A state dict that a table does not fit; `problems` lists everything that is wrong, folded."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        super().__init__("; ".join(problems[:SHOWN] + more))


def summed_up(keys: Sequence[str]) -> str:
    """Many keys in a few words: how many there are behind each first part.

    >>> summed_up(["betas", "vae.encoder.conv_in.weight", "vae.encoder.conv_in.bias"])
    'betas, vae.* (2 keys)'
    """
    counts = Counter(head + dot for head, dot, _ in (key.partition(".") for key in keys))
    shown = [
        printable(head, 80) + (f"* ({plural(n, 'key')})" if head.endswith(".") else "") for head, n in counts.items()
    ]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
