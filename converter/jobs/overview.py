"""The parity reports below a folder, gathered on one page: `pixart report`."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from ..checkpoint.file import InputFile, reading
from ..checkpoint.json_file import JSON_LIMIT, read_json
from ..checkpoint.text_writer import write_text
from ..checkpoint.weight_names import SUFFIXES
from ..conversion.record import files_we_wrote
from ..conversion.training_folders import natural_order, run_folder
from ..errors import ConverterError, InputError, UsageError, printable, shortened
from ..filenames import PARITY, RECORD
from ..reports.limits import SCALES, margin, precision_of
from ..reports.overview import GENERATOR, Entry, overview
from ..reports.report import EXIT_CODES, NOT_RUN, PASS, REPORT_VERSION, Report, gravity
from .comparisons import check_writable
from .found_report import Found, latest, not_compared, parts_of

# epoch_7_step_9000, checkpoint-9000, step=9000: whatever is no epoch counts steps, and more finely.
_PROGRESS = re.compile(r"(?<![a-z])(epoch|step|checkpoint|ckpt|iter|iteration)s?[ =_-]?([0-9]{1,12})(?![0-9])", re.I)


@dataclass(frozen=True)
class Overview:
    """What was gathered, and where the page was written; `notes` are a line each."""

    path: Path
    reports: list[Report]
    notes: list[str]


def write_overview(folder: str, output: str | None = None, *, overwrite: bool = False) -> Overview:
    """Write a page on all parity reports below a folder, with links to them.

    Args:
        output: the page; `index.html` in the folder, where it is not said.
        overwrite: whatever has that name, and not only an earlier page.

    Raises: `UsageError` where the page cannot be written there, or is not a page that this command wrote. `InputError`
    where the folder holds no report that can be read.
    """
    with reading(folder):
        os.listdir(folder)
    path = Path(os.path.join(folder, "index.html") if output is None else output)
    if path.suffix != ".html":
        raise UsageError(f"`output` {printable(output or repr(output))}: its suffix must be .html")
    check_writable([str(path)], [], "`output`")
    if os.path.lexists(path) and not overwrite and not _ours(path):
        raise UsageError(
            f"{printable(path)}: not a page of `pixart report`: choose another `output`, or add `overwrite`"
        )
    notes: list[str] = []
    found, converted = _gather(folder, notes)
    if not found:
        rule = "no parity report in it (`convert --parity` and `parity --report FILE.json` write them)"
        raise InputError.at(folder, "", shortened([rule, *notes], 2))
    last = latest(found)
    shown = {*map(id, last)}
    if earlier := sorted((each for each in found if id(each) not in shown), key=lambda each: gravity(each.report)):
        files = [f"{printable(each.file)} ({each.report.verdict})" for each in earlier]
        notes.append(f"not shown, since a later report is of the same comparison: {shortened(files, 8)}")
    entries = [_entry(each, path) for each in last]
    entries.sort(key=lambda entry: (natural_order(entry.run), entry.unit, entry.step, natural_order(entry.name)))
    if waiting := not_compared(converted, found):
        notes.append(f"converted, and not compared: {shortened(waiting, 8)}")
    title = os.path.basename(os.path.abspath(folder))
    write_text(path, overview(entries, title, notes))
    return Overview(path, [entry.report for entry in entries], notes)


def _ours(path: Path) -> bool:
    with suppress(ConverterError), InputFile(path) as file:
        return f'content="{GENERATOR}"'.encode() in file.read(0, min(file.size, 400))
    return False


def _gather(folder: str, notes: list[str]) -> tuple[list[Found], list[str]]:
    """The reports below a folder, and the folders of conversions that hold none; what cannot be read becomes a note."""

    def unreadable(error: OSError) -> None:
        notes.append(f"not read: {printable(error.filename)}: {error.strerror}")

    found: list[Found] = []
    converted: list[str] = []
    for place, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural_order)
        if RECORD in names and PARITY not in names and files_we_wrote(Path(place)):
            converted.append(place)
        for name in sorted(names, key=natural_order):
            if name.endswith(".json") and not name.startswith("."):
                file = Path(place, name)
                try:
                    reports = _reports(file)
                except ConverterError as error:
                    notes.append(f"not read: {error}")
                    continue
                order = sorted(range(len(reports)), key=lambda i: gravity(reports[i]))  # of the HTML report
                places = [f"#report-{order.index(i) + 1}" if len(reports) > 1 else "" for i in range(len(reports))]
                found += [Found(report, file, place) for report, place in zip(reports, places, strict=True)]
    return found, converted


def _reports(path: Path) -> list[Report]:
    """The reports in a file, none where it is no report. Raises: `ConverterError` for one that is damaged."""
    with InputFile(path) as file:
        if path.name != PARITY and b'"exit_code"' not in file.read(0, min(file.size, JSON_LIMIT)):
            return []
    content = read_json(path)
    several = content.get("reports") if isinstance(content, dict) else None
    if isinstance(several, list):
        return [_report(path, each) for each in several]
    known = isinstance(content, dict) and {"verdict", "phases"} <= content.keys()
    return [_report(path, content)] if known or path.name == PARITY else []


def _report(path: Path, content: Any) -> Report:
    """A report by others. Raises: `InputError` for one of another version, or whose parts are not of their types."""
    try:
        if (version := content["version"]) != REPORT_VERSION:
            words = f"version {printable(repr(version))} of the report; this program reads version {REPORT_VERSION}"
            raise InputError.at(path, "", words)
        report = Report.from_dict({name: value for name, value in content.items() if name not in ("ok", "error")})
        texts = [report.reason, *(check.statistic for phase in report.phases for check in phase.checks)]
        dicts = all(isinstance(part, dict) for part in (report.original, report.converted, report.run))
        if dicts and report.verdict in EXIT_CODES and all(isinstance(text, str) for text in texts):
            if report.verdict == PASS and (failed := _contradiction(report)):
                raise InputError.at(path, "", f"its verdict is PASS, though {failed} failed: compare again")
            return report
    except (TypeError, KeyError, AttributeError, ValueError):
        pass
    raise InputError.at(path, "", "not a parity report, or a damaged one: compare again")


def _contradiction(report: Report) -> str:
    """What in a report would not let it pass; '' where nothing is."""
    gates = [check for phase in report.phases for check in phase.gates if not check.waived]
    checks = [
        printable(check.what)
        for check in gates
        if not check.passed or (precision_of(check)[0] in SCALES and (margin(check) or 0) > 1)
    ]
    phases = [printable(phase.name) for phase in report.phases if phase.verdict not in (PASS, NOT_RUN)]
    return next(iter(checks + phases), "")


def _entry(found: Found, output: Path) -> Entry:
    """A row of the page, named after the first of its paths that says how far training was."""
    paths = [path for path in (found.original, found.converted, str(found.file.with_suffix(""))) if parts_of(path)]
    parts = parts_of(next((path for path in paths if _PROGRESS.search(path)), paths[0]))
    at = max((i for i, part in enumerate(parts) if _PROGRESS.search(part)), default=len(parts) - 1)
    numbers = {"epoch" if word.lower() == "epoch" else "step": int(n) for word, n in _PROGRESS.findall(parts[at])}
    unit = next((unit for unit in ("step", "epoch") if unit in numbers), "")
    run = str(run_folder(PurePosixPath(*parts[: at + 1])))
    if found.report.original.get("weights") == "ema":
        run += " (ema)"
    page = found.file.with_suffix(".html")
    is_there = page.is_file() and os.path.realpath(page) != os.path.realpath(output)
    target, place = (page, found.place) if is_there else (found.file, "")
    link = _link(target, output.parent) + place
    stem, suffix = os.path.splitext(parts[at])
    name = stem if suffix.lower() in SUFFIXES else parts[at]
    return Entry(found.report, name, run, unit, numbers.get(unit, 0), link)


def _link(target: Path, folder: Path) -> str:
    """The address of a file for a page in a folder: relative, unless it lies on another drive of Windows."""
    try:
        return quote(os.fsencode(Path(os.path.relpath(target, folder)).as_posix()))
    except ValueError:
        return target.absolute().as_uri()
