"""Convert one checkpoint or several, here or by an executor, and take the steps that follow each conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..checkpoint.write.transfer import Progress
from ..errors import ConverterError, explained
from ..fleet import AnyExecutor, do_all
from ..remote import shown
from .additions import Adding
from .convert import Conversion, convert
from .options import ConversionOptions, stated, with_shortcuts
from .pairs import Pair, as_pair, claim_target
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

    `status` is 'converted' ('planned' in a dry run), 'unchanged' or 'failed', and `words` say why something failed:
    the conversion, or the step of the name `failed_step`. `notes` are what the user should know, `results` those of
    the steps after the conversion, by name.
    """

    pair: Pair
    status: str = FAILED
    conversion: Conversion | None = None
    words: str = ""
    exit_code: int = 0
    notes: list[str] = field(default_factory=list)
    results: dict[str, StepResult] = field(default_factory=dict)
    failed_step: str = ""


Step = Callable[[Outcome], StepResult]
Finished = Callable[[Outcome, str], object]


def convert_all(
    pairs: Iterable[Pair | tuple[str, str]],
    options: ConversionOptions | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
    *,
    components: Adding | None = None,
    executor: AnyExecutor | None = None,
    several: bool = True,
    steps: Mapping[str, Step] | None = None,
    converting: Callable[..., Conversion] = convert,
    progress: Callable[[int], Progress] | None = None,
    finished: Finished = lambda outcome, step: None,
) -> list[Outcome]:
    """Convert checkpoints, one after the other or by the workers of an executor.

    Args:
        pairs: of a checkpoint and what is to be written; may be produced as they are asked for, as `watch` does.
        options, hyper_parameters, components: of all pairs, as of `convert`; a `Pair` may have its own of the first
            two.
        executor: any of `concurrent.futures`, such as `converter.Workers(2)` or one of MPI, or a Dask client. Its
            workers see the same files under the same absolute paths; those in `options` and `components` are given so.
        several: one that fails does not stop the rest, and a target that already holds exactly what would be written is
            skipped. Otherwise errors are raised.
        steps: done with every result that is not refused, in order, until one has an exit code; by name.
        converting: what converts one, called as `convert` is.
        progress: as of `convert`; not with an executor.
        finished: called with each outcome once it is converted (or not), and again after each step, with its name.

    Returns: an `Outcome` for each pair, in their order.

    Example:
        >>> import converter
        >>> pairs = [(f"fixtures/golden/{name}.pth", f"{tmp}/{name}") for name in ("sana-1.5", "sigma-ms")]
        >>> heads = {"num_attention_heads": 4}
        >>> with converter.Workers(2) as executor:
        ...     [outcome.status for outcome in convert_all(pairs, hyper_parameters=heads, executor=executor)]
        ['failed', 'converted']
        >>> [outcome.status for outcome in convert_all(pairs, hyper_parameters=heads)]
        ['failed', 'unchanged']
    """
    outcomes, owners = list[Outcome](), dict[str, str]()

    def work() -> Iterator[tuple[int, tuple[Pair]]]:
        for place, given in enumerate(pairs):
            outcome = Outcome(pair := as_pair(given))
            outcomes.append(outcome)
            with _errors_in(outcome, several):
                claim_target(pair, owners)
            if outcome.words:
                finished(outcome, "")
            else:
                yield place, (pair.located if executor else pair,)

    def done(place: int, result: Outcome | Exception) -> None:
        outcome = outcomes[place]
        if isinstance(result, Outcome):
            words = result.words.replace(result.pair.original, outcome.pair.original)  # in the paths as they were given
            words = words.replace(result.pair.converted, outcome.pair.converted)
            outcomes[place] = outcome = replace(result, pair=outcome.pair, words=words)
        else:
            with _errors_in(outcome, several and executor is not None):  # here, only what `finished` raised is left
                raise result
        if executor:  # what was done elsewhere is told here
            for step in dict.fromkeys(("", *outcome.results, outcome.failed_step)):
                finished(outcome, step)

    known: dict[str, Any] = {"hyper_parameters": hyper_parameters, "components": components, "steps": steps or {}}
    known |= {"several": several, "converting": converting}
    task = partial(_convert_one, options=options or ConversionOptions(), **known)
    if not executor:
        task = partial(task, progress=progress, finished=finished)
    do_all(task, work(), done, executor)
    return outcomes


def _convert_one(
    pair: Pair,
    *,
    options: ConversionOptions,
    hyper_parameters: Mapping[str, Any] | None,
    components: Adding | None,
    several: bool,
    steps: Mapping[str, Step],
    converting: Callable[..., Conversion],
    progress: Callable[[int], Progress] | None = None,
    finished: Finished = lambda outcome, step: None,
) -> Outcome:
    """The task: one checkpoint, with its steps."""
    outcome = Outcome(pair)
    with _errors_in(outcome, several):
        own = with_shortcuts(options, pair.options)
        words = {**stated(hyper_parameters), **pair.hyper_parameters}
        known: dict[str, Any] = {"hyper_parameters": words, "components": components}
        notes = is_up_to_date(pair.original, pair.converted, own, **known) if several else None
        if notes is not None:
            outcome.status, outcome.notes = UNCHANGED, notes
        else:
            outcome.conversion = done = converting(pair.original, pair.converted, own, progress=progress, **known)
            outcome.status, outcome.notes = CONVERTED if done.written else PLANNED, done.notes
    finished(outcome, "")
    for name, step in steps.items():
        if outcome.status == FAILED or outcome.exit_code:
            break
        with _errors_in(outcome, several, name):
            outcome.results[name] = step(outcome)
            outcome.exit_code = outcome.results[name].exit_code
        finished(outcome, name)
    return outcome


@contextmanager
def _errors_in(outcome: Outcome, several: bool, step: str = "") -> Iterator[None]:
    """Of several checkpoints, an error is reported in the outcome, and the others go on."""
    try:
        yield
    except Exception as error:
        if not several:
            raise
        outcome.words, outcome.exit_code = explained(error)
        outcome.failed_step = step
        if isinstance(error, ConverterError) and shown(outcome.pair.original) not in outcome.words:
            outcome.words = f"{shown(outcome.pair.original)}: {outcome.words}"


def worst(codes: Iterable[int]) -> int:
    """The exit code of several: internal before a wrong result, before a refused input, before the rest."""
    order = (5, 1, 3, 2, 4, 0)
    return min(codes, key=order.index, default=0)
