"""Comparisons as a command asks for them: listed or named, with waivers, a cache, reports and a card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..conversion.pairs import Pair
from ..errors import UsageError
from ..parity.ci import batch
from ..parity.ci.cache import Cache
from ..parity.ci.settings import chosen, load_settings
from ..parity.ci.waiver_files import load_waivers
from ..reports import render
from ..reports.report import Report
from .reports import check_reports, refusal, write_reports


@dataclass(frozen=True)
class ComparisonRequest:
    """What is to be compared, and where the reports go.

    Attributes:
        originals, converted: given in pairs; without them, the checkpoints of the `config` (a parity.toml).
        options: of `check`, by name; None is what was not given.
        waivers, cache: files. reports: files by whose suffix the format is told. card: of the only comparison.
    """

    originals: Sequence[str]
    converted: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    config: str | None = None
    waivers: str | None = None
    cache: str | None = None
    reports: Sequence[str] = ()
    card: str | None = None


@dataclass(frozen=True)
class Comparisons:
    """What came of them; `notes` are the cache's."""

    pairs: list[Pair]
    reports: list[Report]
    notes: list[str]

    @property
    def exit_code(self) -> int:
        return batch.exit_code(self.reports)

    def as_dict(self) -> dict[str, Any]:
        """What the `.json` report holds, and the error where the only pair was refused."""
        content: dict[str, Any] = json.loads(render(self.reports, ".json"))
        error = refusal(self.pairs[0], self.reports[0], alone=True) if len(self.pairs) == 1 else ""
        return content | ({"error": error} if error else {})


def compare(
    request: ComparisonRequest,
    command: str,
    *,
    progress: Any = None,
    done: Callable[[Pair, Report, str], object] = lambda pair, report, error: None,
) -> Comparisons:
    """Compare all pairs, and write the reports.

    Args:
        command: the command line, for the reports.
        progress: as of `check`.
        done: called after each comparison, with the words of its refusal, '' for none.

    Raises: `UsageError` for what cannot be done, of which most is asked before the work.
    """
    settings = load_settings(request.config) if request.config else None
    given: dict[str, Any] = {"flags": request.options, "hyper_parameters": request.hyper_parameters}
    pairs = chosen(request.originals, request.converted, settings, **given)
    if request.card and len(pairs) > 1:
        raise UsageError(f"`card` needs exactly one comparison; got {len(pairs)}")
    check_reports(request.reports, request.card, [side for pair in pairs for side in (pair.original, pair.converted)])
    waivers = [*(settings.waivers if settings else []), *(load_waivers(request.waivers) if request.waivers else [])]
    cache = Cache(request.cache) if request.cache else None
    alone = len(pairs) == 1
    reports = batch.run(
        pairs,
        cache=cache,
        waivers=waivers,
        progress=progress,
        done=lambda pair, report: done(pair, report, refusal(pair, report, alone=alone)),
    )
    for report in reports:
        report.run["command"] = command
    write_reports(reports, request.reports, request.card)
    return Comparisons(pairs, reports, cache.notes if cache else [])
