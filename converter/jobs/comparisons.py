"""A comparison request: pairs listed or named, with waivers, a cache, reports and a card."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.text_writer import write_text
from ..conversion.pairs import Pair
from ..errors import ConverterError, UsageError, printable
from ..fleet import chosen_executor
from ..parity.ci import batch
from ..parity.ci.cache import Cache
from ..parity.ci.settings import chosen, load_settings, load_waivers
from ..parity.provenance import files_of
from ..reports import KINDS, render
from ..reports.markdown import card
from ..reports.report import INTERNAL, PASS, REJECTED, Report, counted, gravity

if TYPE_CHECKING:
    from .images import ImageComparison
    from .picture_request import ImageRequest

SHOWN = 8  # failed checks that are printed; the reports have them all


@dataclass(frozen=True)
class ComparisonRequest:
    """What is to be compared, and where the reports go.

    Attributes:
        originals, converted: given in pairs; without them, the checkpoints of the `config` (a parity.toml).
        options: of `check`, by name; None is what was not given.
        waivers, cache: files. reports: files by whose suffix the format is told. card: of the only comparison.
        images: of the only comparison, pictures too: they go beside each report as `NAME.images.png`.
        workers, cluster: as of a conversion.
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
    images: ImageRequest | None = None
    workers: int | None = None
    cluster: str | None = None

    @property
    def pictures(self) -> list[Path]:
        """The files of the pictures."""
        return [*{Path(report).with_suffix(".images.png"): None for report in self.reports if self.images}]


@dataclass(frozen=True)
class Comparisons:
    """What came of them; `notes` are the cache's, and of workers that died."""

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

    def summary(self) -> Iterator[str]:
        """Of several: those that did not pass, the worst first, and last how many have each verdict."""
        if len(self.reports) > 1:
            every = sorted(zip(self.pairs, self.reports, strict=True), key=lambda each: gravity(each[1]))
            yield from (brief(*each) for each in every if each[1].verdict != PASS)
            yield f"summary: {counted(self.reports)}"


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
        done: called after each comparison, with the error if it was refused, else ''.

    Raises: `UsageError` for what cannot be done; most is checked before the work.
    """
    settings = load_settings(request.config) if request.config else None
    given: dict[str, Any] = {"flags": request.options, "hyper_parameters": request.hyper_parameters}
    pairs = chosen(request.originals, request.converted, settings, **given)
    for flag in (flag for flag in ("card", "images") if getattr(request, flag) and len(pairs) > 1):
        raise UsageError(f"`{flag}` needs exactly one comparison; got {len(pairs)}")
    check_reports(request.reports, request.card, [side for pair in pairs for side in (pair.original, pair.converted)])
    waivers = [*(settings.waivers if settings else []), *(load_waivers(request.waivers) if request.waivers else [])]
    cache = Cache(request.cache) if request.cache else None
    notes = list[str]()
    with ExitStack() as stack:
        images = _images(stack, pairs[0], request)

        def finish(pair: Pair, report: Report) -> None:
            if images and report.phases:
                images.add_to(report, progress, request.pictures)
            done(pair, report, refusal(pair, report, alone=len(pairs) == 1))

        executor = stack.enter_context(chosen_executor(request.workers, request.cluster, notes.append))
        reports = batch.check_all(
            pairs, executor=executor, cache=cache, waivers=waivers, progress=progress, done=finish
        )
    for report in reports:
        report.run["command"] = command
    write_reports(reports, request.reports, request.card)
    return Comparisons(pairs, reports, [*notes, *(cache.notes if cache else ())])


def _images(stack: ExitStack, pair: Pair, request: ComparisonRequest) -> ImageComparison | None:
    if request.images is None or not os.path.exists(pair.converted):  # of that the comparison tells
        return None
    from .images import ImageComparison  # imports torch

    check_writable([*map(str, request.pictures)], [pair.original, pair.converted], "`report`")
    return ImageComparison(stack, pair, request.images)


def lines(pair: Pair, report: Report) -> Iterator[str]:
    """One comparison: its phases, what was assumed, and last the verdict in words."""
    yield str(pair)
    for phase in report.phases:
        yield f"  {phase.name:<10}  {phase.verdict:<12}  {phase.words}"
        failed = [check for check in phase.failed if check.words not in phase.words]
        for check in failed[:SHOWN]:
            # A line that begins with the key needs no heading that says it again.
            heading = "" if check.words.startswith(check.what) else f"{check.what}, {check.statistic}: "
            yield f"    {heading}{check.words}"
        if len(failed) > SHOWN:
            yield f"    and {len(failed) - SHOWN} more"
        yield from (f"    {note}" for note in phase.notes)
    for item in report.assumed:
        yield f"assumed: {item['name']} = {item['value']} ({item['why']})"
    yield from (f"note: {note}" for note in report.notes)
    yield batch.outcome(report)


def brief(pair: Pair, report: Report) -> str:
    """One comparison in one line."""
    return f"{pair}: {batch.outcome(report)}"


def refusal(pair: Pair, report: Report, *, alone: bool) -> str:
    """The error to print if nothing was compared, as in every command; '' where there is a result."""
    if report.verdict not in (REJECTED, INTERNAL):
        return ""
    whose = "" if alone else f"{pair}: "
    return printable(" ".join(f"{whose}{report.reason}".split()), 4000)


def check_reports(reports: Sequence[str], card: str | None, sources: Sequence[str]) -> None:
    """Check, before the work, that the reports can be written and overwrite nothing that is compared.

    Raises: `UsageError`.
    """
    check_suffixes(reports, [*KINDS])
    check_writable([*reports, *([card] if card else [])], sources, "`report`, `card`")


def check_suffixes(reports: Sequence[str], known: Sequence[str]) -> None:
    """Whether there is a format for the suffix of each, and what it needs is installed. Raises: `UsageError`."""
    for path in map(Path, reports):
        if path.suffix not in known:
            raise UsageError(f"`report` {printable(path)}: its suffix must be one of {', '.join(known)}")
        if path.suffix == ".html":
            render([Report(PASS, "")], path.suffix)


def check_writable(targets: Sequence[str], sources: Sequence[str], flags: str) -> None:
    """Check that files can be written there without overwriting a source.

    Args:
        flags: that name the targets.

    Raises: `UsageError`.
    """
    paths = [Path(target) for target in targets]
    if len({*map(os.path.realpath, paths)}) < len(paths):
        raise UsageError(f"{flags}: two of them name the same file")
    read = set(_read(sources)) if any(map(os.path.exists, paths)) else set()
    for path in paths:
        if os.path.realpath(path) in read:
            raise UsageError(f"{printable(path)}: is part of what is compared, and a report would overwrite it")
        if os.path.exists(path) and not os.path.isfile(path):
            kind = "a folder" if os.path.isdir(path) else "a device or a FIFO, and no file"
            raise UsageError(f"{printable(path)}: cannot be written there: it is {kind}")
        try:
            with suppress(FileNotFoundError):
                os.lstat(path)  # a name may be too long
            # Tried, since `os.access` misses a parent that is a file, and is wrong for root.
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise UsageError(f"{printable(path)}: cannot be written there: {error.strerror or error}") from None


def _read(sources: Sequence[str]) -> Iterator[str]:
    """Every file of them, as far as that can be told; what cannot is refused later."""
    for source in sources:
        try:
            yield from map(os.path.realpath, files_of(source).values())
        except ConverterError:
            continue


def write_reports(reports: Sequence[Report], paths: Sequence[str], card_path: str | None) -> None:
    """Write every file, each whole or not at all."""
    for path in map(Path, paths):
        write_text(path, render(reports, path.suffix))
    if card_path:
        write_text(Path(card_path), card(reports[0]))
