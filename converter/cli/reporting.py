"""What `pixart parity` prints and writes of its reports."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..checkpoint.json_file import read_json
from ..errors import ConverterError, UsageError, printable
from ..hub import local
from ..pairs import Pair
from ..parity.batch import outcome
from ..parity.digests import files_of, program
from ..record import PARITY
from ..reports import KINDS, card, render
from ..reports.report import INTERNAL, NOT_RUN, PASS, REJECTED, Report
from .output import say
from .progress import bar

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


def refused(pair: Pair, report: Report, *, alone: bool) -> str:
    """What stands on standard error where nothing was compared, as in every command; '' where there is a result."""
    if report.verdict not in (REJECTED, INTERNAL):
        return ""
    whose = "" if alone else f"{printable(pair.original)} -> {printable(pair.converted)}: "
    return printable(" ".join(f"{whose}{report.reason}".split()), 4000)


def prepared(reports: Sequence[str], card: str | None, pairs: Sequence[Pair]) -> None:
    """Whether the reports can be written, and over nothing that is compared; asked before the work is done.

    Raises: `UsageError`.
    """
    renderable([Path(path) for path in reports], KINDS)
    targets = [Path(path) for path in (*reports, *([card] if card else []))]
    writable(targets, [side for pair in pairs for side in (pair.original, pair.converted)], "--report, --card")


def renderable(paths: Sequence[Path], kinds: Collection[str]) -> None:
    """Whether reports can be rendered as their suffixes say, one of `kinds`, with what is installed.

    Raises: `UsageError`.
    """
    for path in paths:
        if path.suffix not in kinds:
            raise UsageError(f"--report {printable(path)}: its suffix has to be one of {', '.join(kinds)}")
        if path.suffix == ".html":
            render([Report(PASS, "")], path.suffix)


def writable(targets: Sequence[Path], sources: Sequence[str], flags: str) -> None:
    """Whether files can be written there, and over nothing of the sources, which are read.

    Args:
        flags: that name the targets.

    Raises: `UsageError`.
    """
    if len({path.resolve() for path in targets}) < len(targets):
        raise UsageError(f"{flags}: two of them name the same file")
    read = set(_read(sources)) if any(path.exists() for path in targets) else set()
    for path in targets:
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


def write_text(path: Path, text: str) -> None:
    """Write a file by way of another beside it, so that nobody ever reads half of it."""
    try:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)  # as any other new file; a temporary one is its owner's alone
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise ConverterError(f"{printable(path)}: cannot be written: {error.strerror or error}") from error


def as_dict(reports: Sequence[Report]) -> dict[str, Any]:
    """What the `.json` report holds."""
    made: dict[str, Any] = json.loads(render(reports, ".json"))
    return made


def passed_before(original: str, folder: Path) -> Report | None:
    """The report that an earlier `--parity` left in a folder, if it is a PASS that this very program came to on the
    very bytes of both sides; whatever else lies there proves nothing. Both sides are hashed."""
    from ..parity.provenance import about

    try:
        report = Report.from_dict(read_json(folder / PARITY))
        report.as_dict()
        verdicts = {phase.verdict for phase in report.phases}
        if report.verdict != PASS or PASS not in verdicts or verdicts - {PASS, NOT_RUN}:
            return None
        if report.run["program"] != program():
            return None
        for side, path in ((report.original, local(original, quiet=True)), (report.converted, folder)):
            if side["sha256"] != about(path)["sha256"]:
                return None
    except (ConverterError, TypeError, KeyError, AttributeError, ValueError, RecursionError):
        return None
    return report


class Unproven(KeyboardInterrupt):
    """An interrupt of the comparison after a conversion: what was converted stays, and that is said."""

    def __init__(self, stop: KeyboardInterrupt, folder: Path) -> None:
        super().__init__(str(stop) or "interrupted")
        self.exit_code = getattr(stop, "exit_code", 130)
        self.left = f"{printable(folder)} is converted, whole, and was not compared"


def prove(original: str, folder: Path, command: str, family: str | None, *, quiet: bool, silent: bool) -> Report:
    """What `--parity` does after a conversion: the quick profile, its report beside the record, its words printed.

    Args:
        folder: what the conversion made; its record says which weights were taken and what the user said.
        quiet: no progress bar; `silent`: nothing printed.
    """
    from ..checkpoint.interrupt import interruptible
    from ..parity.checker import check

    try:
        with ExitStack() as shown, interruptible():
            progress = None if quiet else (lambda total: bar(shown, total, "comparing"))
            report = check(local(original, quiet=True), folder, family=family, progress=progress)
            report.run |= {"command": command, "program": program()}
            write_text(folder / PARITY, report.to_json())
    except KeyboardInterrupt as stop:
        raise Unproven(stop, folder) from stop
    for line in [] if silent else [*lines(Pair(original, str(folder)), report), f"wrote: {printable(folder / PARITY)}"]:
        say(line)
    return report
