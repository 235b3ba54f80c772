"""Conversions as a job: one checkpoint or several, with what is done with each result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint.write.transfer import Progress
from ..errors import ConverterError, explained, printable
from .convert import Conversion, convert
from .options import ConversionOptions, with_shortcuts
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


@dataclass(frozen=True)
class Job:
    """What to convert, and what to do with each result.

    Attributes:
        pairs: may be produced as they are asked for, as `watch` does.
        hyper_parameters: of all pairs; a pair may have its own.
        steps: done with every result that is not refused, in order, until one has an exit code; by name.
        several: none of the checkpoints stops the rest, and what is done already is not done again: a target that
            holds what would be written, to the last bit, is left alone. Otherwise errors are raised.
    """

    pairs: Iterable[Pair]
    options: ConversionOptions = field(default_factory=ConversionOptions)
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    steps: Mapping[str, Callable[[Outcome], StepResult]] = field(default_factory=dict)
    several: bool = True


def run(
    job: Job,
    *,
    progress: Callable[[int], Progress] | None = None,
    finished: Callable[[Outcome, str], object] = lambda outcome, step: None,
) -> list[Outcome]:
    """Do it, one checkpoint after the other.

    Args:
        progress: as of `convert`.
        finished: called with each outcome once it is converted (or not), and again after each step, with its name.

    Example:
        >>> from converter.conversion.pairs import expand
        >>> pairs = expand("fixtures/golden/sigma-*.pth", f"{tmp}/{{stem}}")
        >>> job = Job(pairs, hyper_parameters={"num_attention_heads": 4})
        >>> [(outcome.pair.original[16:], outcome.status) for outcome in run(job)][0]
        ('sigma-kvcompress.pth', 'failed')
        >>> [outcome.status for outcome in run(job)]
        ['failed', 'unchanged', 'failed']
    """
    outcomes = []
    for pair in job.pairs:
        outcome = Outcome(pair)
        outcomes.append(outcome)
        with _errors_in(outcome, job.several):
            _convert(job, outcome, progress)
        finished(outcome, "")
        for name, step in job.steps.items():
            if outcome.status == FAILED or outcome.exit_code:
                break
            with _errors_in(outcome, job.several):
                outcome.results[name] = step(outcome)
                outcome.exit_code = outcome.results[name].exit_code
            finished(outcome, name)
    return outcomes


def _convert(job: Job, outcome: Outcome, progress: Callable[[int], Progress] | None) -> None:
    pair, hyper_parameters = outcome.pair, {**job.hyper_parameters, **outcome.pair.hyper_parameters}
    options = with_shortcuts(job.options, pair.options)
    if job.several and os.path.lexists(pair.converted):
        notes = is_up_to_date(pair.original, pair.converted, options, hyper_parameters=hyper_parameters)
        if notes is not None:
            outcome.status, outcome.notes = UNCHANGED, notes
            return
    done = convert(pair.original, pair.converted, options, hyper_parameters=hyper_parameters, progress=progress)
    outcome.status, outcome.conversion, outcome.notes = CONVERTED if done.written else PLANNED, done, done.notes


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
