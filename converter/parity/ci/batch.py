"""Several comparisons, one after the other: none of them stops the rest, and none is left out of the exit code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import date
from functools import partial
from typing import Any

from ...conversion.pairs import Pair
from ...errors import InputError, UsageError, as_flags, explained, printable
from ...reports.report import EXIT_CODES, FAIL, INTERNAL, REJECTED, Report, worst
from ..waivers import Waiver
from .cache import Cache, key_of, stamp


def run(
    pairs: Sequence[Pair],
    *,
    cache: Cache | None = None,
    waivers: Sequence[Waiver] = (),
    progress: Any = None,
    done: Callable[[Pair, Report], object] = lambda pair, report: None,
    today: date | None = None,
) -> list[Report]:
    """Compare every pair, and return a report for each, in order.

    Args:
        cache: where reports of unchanged pairs are looked up and kept; its `notes` are for the caller to print.
        waivers, progress: as of `check`.
        done: called after each comparison.
        today: the day on which waivers have to hold.

    Raises: `UsageError` of a pair that is the only one. Everything else that goes wrong is a report: `InputError` (and
    a `UsageError` among several pairs) one of REJECTED, anything unexpected one of INTERNAL (raised as it is where
    PIXART_DEBUG is set).

    Example:
        >>> reports = run([Pair("fixtures/golden/sigma-ms.pth", "no-such-folder")])
        >>> print(outcome(reports[0]), exit_code(reports))
        REJECTED: no converted folder at no-such-folder: convert it first 3
    """
    reports = []
    for number, pair in enumerate(pairs, 1):
        options = {**pair.options}
        if len(pairs) > 1 and options.get("save_failing"):  # cases of the same names must not overwrite each other
            options["save_failing"] = os.path.join(options["save_failing"], f"{number}-{_name(pair.converted)}")
        extra = {"hyper_parameters": pair.hyper_parameters, "waivers": waivers, "progress": progress}
        sides = pair.original, pair.converted
        compare = partial(_check, *sides, **{name: value for name, value in extra.items() if value} | options)
        try:
            report = _cached(pair, compare, cache, waivers=waivers, today=today or date.today())
        except Exception as error:
            if isinstance(error, UsageError) and len(pairs) == 1:
                raise
            words, code = explained(error)
            about = "invalid arguments: " if isinstance(error, UsageError) else ""
            verdict = INTERNAL if code == EXIT_CODES[INTERNAL] else REJECTED
            report = _failed(pair, verdict, about + as_flags(words))
        if len(pairs) > 1:  # their names alone may all be the same, such as epoch_1
            report.run["converted_path"] = printable(pair.converted)
        reports.append(report)
        done(pair, report)
    return reports


def exit_code(reports: Iterable[Report]) -> int:
    """The exit code of all: 5 where anything went wrong inside, else 1, 3 or 4 for FAIL, REJECTED or INCONCLUSIVE.

    >>> exit_code([Report("PASS", ""), Report("FAIL", "")]), exit_code([])
    (1, 4)
    """
    return EXIT_CODES[worst(reports)]


def outcome(report: Report) -> str:
    """The verdict in one line, with the day since when nothing has changed where it was looked up.

    >>> outcome(Report("PASS", "all is well", run={"cached": "2026-05-12"}))
    'PASS: all is well (unchanged since 2026-05-12)'
    """
    cached = report.run.get("cached")
    return f"{report.verdict}: {report.reason}" + (f" (unchanged since {cached})" if cached else "")


def _cached(
    pair: Pair, compare: Callable[[], Report], cache: Cache | None, *, waivers: Sequence[Waiver], today: date
) -> Report:
    """The report of a pair, from a comparison or the cache; kept only if no file was touched meanwhile."""
    sides = pair.original, pair.converted
    if not os.path.exists(pair.converted) and os.path.exists(pair.original):
        raise InputError(f"no converted folder at {printable(pair.converted)}: convert it first")
    if cache is None:
        return compare()
    try:
        before, key = [stamp(path) for path in sides], key_of(pair, waivers, today)
    except InputError:
        # `check` says what is wrong with it, in the words that it has without a cache too.
        return compare()
    kept = cache.get(key)
    if kept is not None and not (kept.verdict == FAIL and pair.options.get("save_failing")):
        cache.save()  # that it was asked for
        return kept
    report = compare()
    with suppress(InputError):
        if [stamp(path) for path in sides] == before:
            cache.put(key, report, today)
            cache.save()
    return report


def _check(original: str, converted: str, **options: Any) -> Report:
    from ..checker import check  # imports torch, which a run that finds everything in its cache never needs

    return check(original, converted, **options)


def _failed(pair: Pair, verdict: str, reason: str) -> Report:
    return Report(
        verdict,
        reason,
        profile=str(pair.options.get("profile", "quick")),
        original={"name": _name(pair.original)},
        converted={"name": _name(pair.converted)},
        run={"original": pair.original, "converted": pair.converted},
    )


def _name(path: str) -> str:
    return os.path.basename(os.path.abspath(path))
