"""Reports of comparisons: as lines, and as files, whose places are tried before the work is done."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..checkpoint.text_writer import write_text
from ..conversion.pairs import Pair
from ..errors import ConverterError, UsageError, printable
from ..parity.ci.batch import outcome
from ..parity.provenance import files_of
from ..reports import KINDS, card, render
from ..reports.report import INTERNAL, PASS, REJECTED, Report

SHOWN = 8  # failed checks that are printed; the reports have them all


def lines(pair: Pair, report: Report) -> Iterator[str]:
    """One comparison: its phases, what was assumed, and last the verdict in words."""
    yield f"{printable(pair.original)} -> {printable(pair.converted)}"
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
    yield outcome(report)


def refusal(pair: Pair, report: Report, *, alone: bool) -> str:
    """What stands on standard error where nothing was compared, as in every command; '' where there is a result."""
    if report.verdict not in (REJECTED, INTERNAL):
        return ""
    whose = "" if alone else f"{printable(pair.original)} -> {printable(pair.converted)}: "
    return printable(" ".join(f"{whose}{report.reason}".split()), 4000)


def check_reports(reports: Sequence[str], card: str | None, sources: Sequence[str]) -> None:
    """Whether the reports can be written, and over nothing that is compared; asked before the work is done.

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
    """Whether files can be written there, and over nothing of the sources, which are read.

    Args:
        flags: that name the targets.

    Raises: `UsageError`.
    """
    paths = [Path(target) for target in targets]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError(f"{flags}: two of them name the same file")
    read = set(_read(sources)) if any(path.exists() for path in paths) else set()
    for path in paths:
        if path.resolve() in read:
            raise UsageError(f"{printable(path)}: is part of what is compared, and a report would overwrite it")
        if path.is_dir():
            raise UsageError(f"{printable(path)}: cannot be written there: it is a folder")
        try:
            # Tried, not asked: `os.access` knows nothing of a folder that is a file, and tells root what is not so.
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise UsageError(f"{printable(path)}: cannot be written there: {error.strerror or error}") from None


def _read(sources: Sequence[str]) -> Iterator[Path]:
    """Every file of them, as far as that can be told; what cannot is refused later."""
    for source in sources:
        try:
            yield from (path.resolve() for path in files_of(source).values())
        except ConverterError:
            continue


def write_reports(reports: Sequence[Report], paths: Sequence[str], card_path: str | None) -> None:
    """Write every file, each whole or not at all."""
    for path in map(Path, paths):
        write_text(path, render(reports, path.suffix))
    if card_path:
        write_text(Path(card_path), card(reports[0]))
