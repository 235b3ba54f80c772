"""Convert one checkpoint or several, and run the steps that follow each conversion."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint.write.transfer import Progress
from ..errors import ConverterError, UsageError, explained, printable
from .additions import Adding
from .convert import Conversion, convert
from .options import ConversionOptions, stated, with_shortcuts
from .pairs import Pair
from .up_to_date import is_up_to_date

CONVERTED, PLANNED, UNCHANGED, FAILED = STATUSES = ("converted", "planned", "unchanged", "failed")


@dataclass(frozen=True)
class StepResult:
    """What came of a step after a conversion: JSON-ready `content`, `lines` for people, and an exit code."""

    content: Any
    lines: list[str]
    exit_code: int = 0


@dataclass
class Outcome:
    """What became of one checkpoint.

    `status` is 'converted' ('planned' in a dry run), 'unchanged' or 'failed', and `words` say why something failed;
    `notes` are what the user should know, `results` those of the steps after the conversion, by name.
    """

    pair: Pair
    status: str = FAILED
    conversion: Conversion | None = None
    words: str = ""
    exit_code: int = 0
    notes: list[str] = field(default_factory=list)
    results: dict[str, StepResult] = field(default_factory=dict)


def run(
    pairs: Iterable[Pair],
    options: ConversionOptions | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
    *,
    components: Adding | None = None,
    several: bool = True,
    steps: Mapping[str, Callable[[Outcome], StepResult]] | None = None,
    progress: Callable[[int], Progress] | None = None,
    finished: Callable[[Outcome, str], object] = lambda outcome, step: None,
) -> list[Outcome]:
    """Convert one checkpoint after the other.

    Args:
        pairs: may be produced as they are asked for, as `watch` does.
        options, hyper_parameters, components: of all pairs, as of `convert`; a pair may have its own of the first two.
        several: one that fails does not stop the rest, and a target that already
            holds exactly what would be written is skipped. Otherwise errors are raised.
        steps: done with every result that is not refused, in order, until one has an exit code; by name.
        progress: as of `convert`.
        finished: called with each outcome once it is converted (or not), and again after each step, with its name.

    Example:
        >>> from converter.conversion.pairs import expand
        >>> pairs = expand("fixtures/golden/sigma-*.pth", f"{tmp}/{{stem}}")
        >>> heads = {"num_attention_heads": 4}
        >>> [(outcome.pair.original[16:], outcome.status) for outcome in run(pairs, hyper_parameters=heads)][0]
        ('sigma-kvcompress.pth', 'failed')
        >>> [outcome.status for outcome in run(pairs, hyper_parameters=heads)]
        ['failed', 'unchanged', 'failed']
    """
    outcomes, owners = [], dict[str, str]()
    for pair in pairs:
        outcome = Outcome(pair)
        outcomes.append(outcome)
        with _errors_in(outcome, several):
            if (other := owners.setdefault(os.path.abspath(pair.converted), pair.original)) != pair.original:
                rule = f"is the target of {printable(other)} already; tell them apart with {{name}}"
                raise UsageError(f"{printable(pair.converted)}: {rule}")
            own = with_shortcuts(options or ConversionOptions(), pair.options)
            known: dict[str, Any] = {"hyper_parameters": {**stated(hyper_parameters), **pair.hyper_parameters}}
            known["components"], notes = components, None
            if several and os.path.lexists(pair.converted):
                notes = is_up_to_date(pair.original, pair.converted, own, **known)
            if notes is not None:
                outcome.status, outcome.notes = UNCHANGED, notes
            else:
                done = convert(pair.original, pair.converted, own, progress=progress, **known)
                outcome.status, outcome.notes = CONVERTED if done.written else PLANNED, done.notes
                outcome.conversion = done
        finished(outcome, "")
        for name, step in (steps or {}).items():
            if outcome.status == FAILED or outcome.exit_code:
                break
            with _errors_in(outcome, several):
                outcome.results[name] = step(outcome)
                outcome.exit_code = outcome.results[name].exit_code
            finished(outcome, name)
    return outcomes


@contextmanager
def _errors_in(outcome: Outcome, several: bool) -> Iterator[None]:
    """Of several checkpoints, an error is reported in the outcome, and the others go on."""
    try:
        yield
    except Exception as error:
        if not several:
            raise
        outcome.words, outcome.exit_code = explained(error)
        if isinstance(error, ConverterError) and outcome.pair.original not in outcome.words:
            outcome.words = f"{printable(outcome.pair.original)}: {outcome.words}"


def worst(codes: Iterable[int]) -> int:
    """The exit code of several: internal before a wrong result, before a refused input, before the rest."""
    order = (5, 1, 3, 2, 4, 0)
    return min(codes, key=order.index, default=0)
