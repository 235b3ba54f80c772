"""What follows a conversion: a comparison of its result with its source, and publishing it on the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.json_file import read_json
from ..checkpoint.text_writer import write_text
from ..checkpoint.write.interrupt import interruptible
from ..checkpoint.write.transfer import Progress
from ..conversion.batch import UNCHANGED, Outcome, Step, StepResult
from ..conversion.pairs import Pair
from ..errors import ConverterError, printable
from ..filenames import PARITY
from ..fleet import ALONE
from ..hub import local
from ..parity.ci.cache import program
from ..remote import is_url
from ..reports.report import NOT_RUN, PASS, Report
from .comparisons import lines


def compare_step(
    outcome: Outcome,
    *,
    command: str,
    family: str | None,
    progress: Callable[[int], Progress] | None,
    merged: Mapping[str, Any] | None = None,
) -> StepResult:
    """The step that compares the result with its source in the quick profile, and leaves the report beside the record,
    which says what weights were taken and what the user stated. An earlier PASS is kept if nothing has changed.

    Args:
        command: the command line, for the report.
        merged: `adapters` and the like, fields of `CheckOptions`, where the result has some merged into it.
    """
    from ..parity.checker import check

    original, folder = outcome.pair.original, _folder(outcome)
    if outcome.status == UNCHANGED and not merged and (report := _passed_before(original, folder, family)):
        return StepResult(report.as_dict(), [])
    try:
        with ALONE, interruptible():
            here = original if is_url(original) else local(original, quiet=True)
            report = check(here, folder, family=family, progress=progress, **(merged or {}))
            report.run |= {"command": command, "program": program(family)}
            write_text(folder / PARITY, report.to_json())
    except KeyboardInterrupt as stop:
        vars(stop)["left"] = f"{printable(folder)} is converted, whole, and was not compared"
        raise
    words = [*lines(Pair(original, str(folder)), report), f"wrote: {printable(folder / PARITY)}"]
    return StepResult(report.as_dict(), words, report.exit_code)


def publish_step(repo: str, private: bool, *, quiet: bool) -> Step:
    """A step that publishes the result on the hub; whether it could is asked at once, before anything is done."""
    from ..publishing import check, push

    check(repo)

    def step(outcome: Outcome) -> StepResult:
        pushed = push(_folder(outcome), repo, private=private or None, source=outcome.pair.original, quiet=quiet)
        return StepResult(pushed.url, [*pushed.notes, f"published: {pushed.url}"])

    return step


def _folder(outcome: Outcome) -> Path:
    return Path(outcome.conversion.path if outcome.conversion else outcome.pair.converted)


def _passed_before(original: str, folder: Path, family: str | None) -> Report | None:
    """The report that an earlier comparison left in a folder, if it is a PASS by this same program on the
    same bytes of both sides; any other report proves nothing. Both sides are hashed."""
    from ..parity.provenance import digests_of

    try:
        report = Report.from_dict(read_json(folder / PARITY))
        report.as_dict()
        verdicts = {phase.verdict for phase in report.phases}
        if (
            report.verdict != PASS
            or PASS not in verdicts
            or verdicts - {PASS, NOT_RUN}
            or "adapters" in report.original
        ):
            return None
        if report.run["program"] != program(family):
            return None
        for side, path in ((report.original, local(original, quiet=True)), (report.converted, folder)):
            if side["sha256"] != digests_of(path)["sha256"]:
                return None
    except (ConverterError, TypeError, KeyError, AttributeError, ValueError, RecursionError):
        return None
    return report
