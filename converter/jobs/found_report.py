"""A parity report that was found in a file: what it compared, and where that lies, as far as a report can say."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ..errors import ConverterError, printable
from ..filenames import RECORD
from ..parity.provenance import sha256
from ..reports.numbers import mapping
from ..reports.report import Report


@dataclass(frozen=True)
class Found:
    """A report, the file that it stands in, and the place in the HTML report beside it, '' for the whole."""

    report: Report
    file: Path
    place: str

    @property
    def original(self) -> str:
        return str(self.report.run.get("original") or self.report.original.get("name") or "")

    @property
    def converted(self) -> str:
        return str(self.report.run.get("converted") or self.report.converted.get("name") or "")

    @property
    def places(self) -> tuple[str, ...]:
        """Where both sides lie."""
        return self.located(self.original), self.located(self.converted), str(self.report.profile)

    @property
    def digests(self) -> tuple[str, ...]:
        """Of both sides, with their names; empty where the report has none."""
        digests = [str(side.get("sha256") or "") for side in (self.report.original, self.report.converted)]
        names = ["".join(parts_of(path)[-1:]) for path in (self.original, self.converted)]
        return (*digests, *names, str(self.report.profile)) if all(digests) else ()

    def located(self, path: str) -> str:
        """Where a path of the report leads. Nobody knows in which folder the command ran: it is the nearest above the
        report with such a path in it, and else that of the report. What is no path leads to the report itself."""
        if not path or "\0" in path:
            return f"{self.file}{self.place}"
        folders = self.file.absolute().parents
        places = [os.path.abspath(os.path.join(folder, path)) for folder in folders]
        return next((place for place in places if os.path.exists(place)), places[0])

    def is_about(self, folder: str) -> bool:
        """Whether the converted side was what lies in a folder now, as far as the digest of its record tells."""
        record = mapping(mapping(self.report.converted.get("files")).get(RECORD))
        with suppress(ConverterError):
            return not record or record.get("sha256") == sha256(Path(folder, RECORD))
        return False

    @property
    def date(self) -> str:
        """When it was compared; where that is not said, when it was written."""
        written = datetime.fromtimestamp(os.stat(self.file).st_mtime, timezone.utc)
        return str(self.report.run.get("date") or written.isoformat())


def latest(found: Sequence[Found]) -> list[Found]:
    """Of several reports of one comparison, the last: of the same bytes, or where a report has no digests, since
    nothing was compared, of the same places."""
    last: dict[tuple[str, ...], Found] = {}
    for each in sorted(found, key=lambda each: each.date):
        if each.digests and all(map(os.path.exists, each.places[:2])):  # else the places are guessed
            last.pop(each.places, None)
        last[each.digests or each.places] = each
    return [*last.values()]


def not_compared(converted: Sequence[str], found: Sequence[Found]) -> list[str]:
    """The folders of conversions that no report is about."""
    compared: dict[str, list[Found]] = {}
    for each in found:
        compared.setdefault(os.path.realpath(each.located(each.converted)), []).append(each)
    about = {folder: compared.get(os.path.realpath(folder), []) for folder in converted}
    return [printable(folder) for folder in converted if not any(each.is_about(folder) for each in about[folder])]


def parts_of(path: str) -> list[str]:
    """The names in a path of any system.

    >>> parts_of("../runs\\\\a/out/")
    ['runs', 'a', 'out']
    """
    return [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..")]
