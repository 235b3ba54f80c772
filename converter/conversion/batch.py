"""Many conversions, one after the other: none of them stops the rest, and what is done already is not done again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConverterError, printable
from .convert import Conversion, already, convert
from .pairs import Pair

CONVERTED, PLANNED, UNCHANGED, FAILED = STATUSES = ("converted", "planned", "unchanged", "failed")


@dataclass(frozen=True)
class Outcome:
    """What became of one checkpoint: `status` is 'converted' ('planned' in a dry run), 'unchanged' or 'failed', and
    `words` say why it failed, `notes` what the user should know."""

    pair: Pair
    status: str
    conversion: Conversion | None = None
    words: str = ""
    exit_code: int = 0
    notes: list[str] = field(default_factory=list)


def convert_all(
    pairs: Iterable[Pair], *, finished: Callable[[Outcome], object] = lambda outcome: None, **options: Any
) -> list[Outcome]:
    """Convert every pair's original to its converted path.

    A target that holds already what would be written, to the last bit, is left alone and reported as unchanged.

    Args:
        pairs: may be made as they are asked for, as `watch` does.
        finished: called with each outcome as it comes.
        options: of `convert`.

    Returns: an outcome for every pair, in order. Errors in single conversions are outcomes, not exceptions.

    Example:
        >>> from converter.conversion.pairs import expand
        >>> pairs = expand("fixtures/golden/sigma-*.pth", f"{tmp}/{{stem}}")
        >>> [(o.pair.original[16:], o.status) for o in convert_all(pairs, num_attention_heads=4)][0]
        ('sigma-kvcompress.pth', 'failed')
        >>> [o.status for o in convert_all(pairs, num_attention_heads=4)]
        ['failed', 'unchanged', 'failed']
    """
    outcomes = []
    for pair in pairs:
        outcome = _one(pair, options | dict(pair.options))
        outcomes.append(outcome)
        finished(outcome)
    return outcomes


def _one(pair: Pair, options: dict[str, Any]) -> Outcome:
    try:
        there = already(pair.original, pair.converted, **options) if os.path.lexists(pair.converted) else None
        if there is not None:
            return Outcome(pair, UNCHANGED, notes=there)
        done = convert(pair.original, pair.converted, **options)
        return Outcome(pair, CONVERTED if done.written else PLANNED, done, notes=done.notes)
    except ConverterError as error:
        about = "" if pair.original in str(error) else f"{printable(pair.original)}: "
        return Outcome(pair, FAILED, words=f"{about}{error}", exit_code=error.exit_code)
    except OSError as error:
        where = f"{printable(error.filename)}: " if error.filename else ""
        return Outcome(pair, FAILED, words=f"{where}{error.strerror or error}", exit_code=5)
    except Exception as error:
        if os.environ.get("PIXART_DEBUG"):
            raise
        return Outcome(pair, FAILED, words=f"internal error: {type(error).__name__}: {printable(error)}", exit_code=5)


def worst(codes: Iterable[int]) -> int:
    """The exit code of several: internal before a wrong result, before a refused input, before the rest."""
    order = (5, 1, 3, 2, 4, 0)
    return min(codes, key=order.index, default=0)
