"""Several comparisons, here or by an executor: none of them stops the rest, and none is left out of the exit code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Any

from ...conversion.pairs import Pair, as_pair
from ...errors import InputError, UsageError, as_flags, explained, printable
from ...fleet import ALONE, AnyExecutor, do_all
from ...hub.redaction import redacted
from ...remote import is_url, shown
from ...reports.report import EXIT_CODES, FAIL, INTERNAL, REJECTED, Report, worst
from ..waivers import Waiver
from .cache import Cache, key_of, stamp


def check_all(
    pairs: Iterable[Pair | tuple[str, str]],
    *,
    executor: AnyExecutor | None = None,
    cache: Cache | None = None,
    waivers: Sequence[Waiver] = (),
    progress: Any = None,
    done: Callable[[Pair, Report], object] = lambda pair, report: None,
    today: date | None = None,
) -> list[Report]:
    """Compare every pair, one after the other or by the workers of an executor.

    Args:
        pairs: of a checkpoint and the folder made of it; a `Pair` may have options of its own.
        executor: as of `converter.convert_all`.
        cache: where reports of unchanged pairs are looked up and kept, here; its `notes` are for the caller to print.
        waivers, progress: as of `check`; no progress with an executor.
        done: called after each comparison.
        today: the day on which waivers have to hold.

    Returns: a `Report` for each pair, in their order.

    Raises: `UsageError` of a pair that is the only one. Everything else that goes wrong is a report: `InputError` (and
    a `UsageError` among several pairs) one of REJECTED, anything unexpected one of INTERNAL (raised as it is where
    PIXART_DEBUG is set).

    Example:
        >>> reports = check_all([("fixtures/golden/sigma-ms.pth", "no-such-folder")])
        >>> print(outcome(reports[0]), exit_code(reports))
        REJECTED: no converted folder at no-such-folder: convert it first 3
    """
    listed = [as_pair(pair) for pair in pairs]
    reports, keep = dict[int, Report](), dict[int, Callable[[Report], object]]()

    def work() -> Iterator[tuple[int, tuple[Pair]]]:
        """What no cache has."""
        known: Report | Exception | None
        for place, pair in enumerate(listed):
            try:
                known, keep[place] = _look_up(pair, cache, waivers=waivers, today=today or date.today())
            except Exception as error:
                known = error
            if known:
                finish(place, known)
                continue
            folder = pair.options.get("save_failing")
            if len(listed) > 1 and folder:  # cases of the same names must not overwrite each other
                own = os.path.abspath(os.path.join(folder, f"{place + 1}-{_name(pair.converted)}"))
                pair = replace(pair, options={**pair.options, "save_failing": own})
            yield place, (pair.located if executor else pair,)

    def finish(place: int, result: Report | Exception) -> None:
        pair = listed[place]
        if isinstance(result, Report):
            keep[place](result)
        else:
            result = _refused(pair, result, alone=len(listed) == 1)
        # As they were given: a worker has absolute paths, and in the cache they are those of another time.
        result.run |= {"original": redacted(pair.original), "converted": redacted(pair.converted)}
        if len(listed) > 1:  # their names alone may all be the same, such as epoch_1
            result.run["converted_path"] = shown(pair.converted)
        reports[place] = result
        done(pair, result)

    do_all(partial(_check, waivers=waivers, progress=None if executor else progress), work(), finish, executor)
    return [reports[place] for place in range(len(listed))]


def exit_code(reports: Iterable[Report]) -> int:
    """The exit code of all: 5 where anything went wrong inside, else 1, 3 or 4 for FAIL, REJECTED or INCONCLUSIVE.

    >>> exit_code([Report("PASS", ""), Report("FAIL", "")]), exit_code([])
    (1, 4)
    """
    return EXIT_CODES[worst(reports)]


def outcome(report: Report) -> str:
    """The verdict with its headline, and the day since when nothing has changed where it was looked up.

    >>> outcome(Report("PASS", "all is well", run={"cached": "2026-05-12"}))
    'PASS: all is well (unchanged since 2026-05-12)'
    """
    cached = report.run.get("cached")
    return f"{report.verdict}: {report.headline}" + (f" (unchanged since {cached})" if cached else "")


def _look_up(
    pair: Pair, cache: Cache | None, *, waivers: Sequence[Waiver], today: date
) -> tuple[Report | None, Callable[[Report], object]]:
    """The report that the cache has of a pair, and what keeps another one: only if no file was touched meanwhile."""
    sides, keep_nothing = (pair.original, pair.converted), lambda report: None
    if not (is_url(pair.converted) or os.path.exists(pair.converted)) and os.path.exists(pair.original):
        raise InputError(f"no converted folder at {printable(pair.converted)}: convert it first")
    if cache is None:
        return None, keep_nothing
    if pair.options.get("adapters"):
        raise UsageError(
            "`cache` cannot be combined with `lora`: adapters are no part of what it knows a comparison by"
        )
    try:
        before, key = [stamp(path) for path in sides], key_of(pair, waivers, today)
    except InputError:
        # `check` says what is wrong with it, in the words that it has without a cache too.
        return None, keep_nothing
    kept = cache.get(key)
    if kept is not None and not (kept.verdict == FAIL and pair.options.get("save_failing")):
        cache.save()  # that it was asked for
        kept.run["seconds"] = 0.0  # no time went into this one
        return kept, keep_nothing

    def keep(report: Report) -> None:
        with suppress(InputError):
            if [stamp(path) for path in sides] == before:
                cache.put(key, report, today)
                cache.save()

    return None, keep


def _check(pair: Pair, *, waivers: Sequence[Waiver], progress: Any) -> Report:
    """The task: one comparison."""
    from ..checker import check  # imports torch, which a run that finds everything in its cache never needs

    extra = {"hyper_parameters": pair.hyper_parameters, "waivers": waivers, "progress": progress}
    given = {name: value for name, value in extra.items() if value} | {**pair.options}
    with ALONE:
        return check(pair.original, pair.converted, **given)


def _refused(pair: Pair, error: Exception, *, alone: bool) -> Report:
    """What a report says of an error."""
    if alone and isinstance(error, UsageError):
        raise error
    words, code = explained(error)
    about = "invalid arguments: " if isinstance(error, UsageError) else ""
    return Report(
        INTERNAL if code == EXIT_CODES[INTERNAL] else REJECTED,
        about + as_flags(words),
        profile=str(pair.options.get("profile", "quick")),
        original={"name": _name(pair.original)},
        converted={"name": _name(pair.converted)},
    )


def _name(path: str) -> str:
    return os.path.basename(os.path.abspath(path))
