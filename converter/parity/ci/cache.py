"""`--cache FILE`: a comparison of the same bytes by the same program is looked up instead of run again.

Its key is what it depends on: the bytes of both sides, the options that matter, and this program. Only PASS and FAIL
are kept; what was inconclusive, rejected or went wrong is always tried again. A cache never decides whether a run
succeeds: where it cannot be read or written there is a note, and everything is compared.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...checkpoint.file import InputFile, reads
from ...checkpoint.text_writer import write_text
from ...conversion.pairs import Pair
from ...errors import ConverterError, InputError, printable
from ...families.from_file import is_file, source_files
from ...reports.report import FAIL, PASS, REPORT_VERSION, Report
from ..determinism import version_of
from ..provenance import files_of, sha256
from ..waivers import Waiver

# The first bytes of every cache. A file that begins otherwise is somebody else's, and is neither read nor overwritten.
MARK = '{"format":"pixart parity cache","version":1,'
KEPT_RUNS = 100  # an entry that so many runs have not asked for is dropped
KEPT = 1000  # entries
KEPT_BYTES = 64_000_000  # of reports
# Where failures are saved and how progress is shown changes no verdict.
_IRRELEVANT = ("save_failing", "progress")


class Cache:
    """Reports by key. `get` and `put` work in memory, `save` writes; `notes` says what stood in the way.

    >>> cache = Cache(tmp / "cache.json")
    >>> cache.put("0" * 64, Report("PASS", "1.06 times the noise floor (limit 3)"), date(2026, 5, 12))
    >>> cache.save()
    >>> Cache(tmp / "cache.json").get("0" * 64).run["cached"]
    '2026-05-12'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.realpath(path)  # a link stays one
        self.notes: list[str] = []
        self._usable = True
        self._seen: set[str] = set()
        self._run, self._entries = self._read()
        self._run += 1

    def get(self, key: str) -> Report | None:
        """The report that was kept, marked with the day of its run, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        # Against a bit that flips in a verdict, and an entry that stands under another key.
        if entry["sha256"] != hashed([key, entry["date"], entry["report"]]):
            del self._entries[key]
            self._note("an entry is damaged: compared again")
            return None
        self._seen.add(key)
        report = Report.from_dict(entry["report"])
        report.run = {**report.run, "cached": entry["date"]}
        return report

    def put(self, key: str, report: Report, day: date | None = None) -> None:
        """Keep a report, if its verdict is one that a second run would come to as well."""
        if report.verdict not in (PASS, FAIL):
            return
        content, when = report.as_dict(), (day or date.today()).isoformat()
        self._entries[key] = {"date": when, "report": content, "sha256": hashed([key, when, content])}
        self._seen.add(key)

    def save(self) -> None:
        """Write what is known, and what others have written since; the file is at all times an old or the new one.

        Two runs that save at the same instant may lose each other's last entry, which is then compared once more.
        """
        if not self._usable:
            return
        run, entries = self._read()
        self._run = max(self._run, run)
        entries |= self._entries
        for key in self._seen & entries.keys():
            entries[key]["seen"] = self._run
        content = f'{MARK}"runs":{self._run},"entries":{canonical(_pruned(entries, self._run))}}}\n'
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            write_text(Path(self.path), content)
        except (OSError, ConverterError) as error:
            self._note(f"not written: {getattr(error.__cause__ or error, 'strerror', error)}")

    def _read(self) -> tuple[int, dict[str, dict[str, Any]]]:
        """(number of the last run, entries); an empty cache where there is none that can be believed."""
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                return self._ignore("not a regular file")
        except FileNotFoundError:
            return 0, {}
        except OSError as error:
            return self._ignore(error.strerror or str(error))
        try:
            with InputFile(self.path) as file:
                start = file.read(0, min(file.size, len(MARK)))
                if not MARK.encode().startswith(start):
                    return self._ignore("not a cache of this version; name another file, or delete it")
                if file.size > 2 * KEPT_BYTES:
                    raise ValueError
                content = json.loads(file.read(0, file.size)) if file.size else {}
        except InputError:
            return self._ignore("cannot be read")
        except (ValueError, RecursionError):
            self._note("damaged: everything is compared, and it is written anew")
            return 0, {}
        entries = content.get("entries")
        if not isinstance(entries, dict):
            entries = {}
        whole = {"date", "report", "sha256"}
        entries = {key: entry for key, entry in entries.items() if isinstance(entry, dict) and whole <= entry.keys()}
        return _count(content.get("runs")), entries

    def _ignore(self, why: str) -> tuple[int, dict[str, dict[str, Any]]]:
        self._usable = False
        self._note(f"{why}: it is left alone, and everything is compared")
        return 0, {}

    def _note(self, words: str) -> None:
        note = f"cache {printable(self.path)}: {words}"
        if note not in self.notes:
            self.notes.append(note)


def _pruned(entries: dict[str, dict[str, Any]], run: int) -> dict[str, dict[str, Any]]:
    """The entries that were asked for most recently, within the limits."""
    kept: dict[str, dict[str, Any]] = {}
    size = 0
    for key, entry in sorted(entries.items(), key=lambda item: (-_count(item[1].get("seen")), item[0])):
        size += len(canonical(entry))
        if run - _count(entry.get("seen")) < KEPT_RUNS and len(kept) < KEPT and size <= KEPT_BYTES:
            kept[key] = entry
    return kept


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 53 else 0


@reads
def digest(path: str | os.PathLike[str]) -> dict[str, str]:
    """SHA-256 of every file that counts; `InputError` for what is no regular file, or no model folder."""
    return {name: sha256(file) for name, file in files_of(path).items()}


@reads
def stamp(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """What shows cheaply that no file was touched in between: identity, size and times of each."""
    stamps: dict[str, tuple[int, ...]] = {}
    for name, file in files_of(path).items():
        with InputFile(file):  # it has to be there, and to be a regular file
            status = os.stat(file)
        stamps[name] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return stamps


def key_of(pair: Pair, waivers: Sequence[Waiver] = (), today: date | None = None) -> str:
    """The key of one comparison: equal exactly where running it again would be running the same thing again.

    `today` is in it by way of the waivers only: on the day after one has expired, the key is another one, so no
    verdict outlives a waiver that it needed.
    """
    day = today or date.today()
    options = {name: value for name, value in pair.options.items() if value is not None and name not in _IRRELEVANT}
    if "cases" in options:
        options["cases"] = digest(options["cases"])
    content = {
        # Names too: they stand in the report.
        "original": [os.path.basename(os.path.abspath(pair.original)), digest(pair.original)],
        "converted": [os.path.basename(os.path.abspath(pair.converted)), digest(pair.converted)],
        "options": options,
        "hyper_parameters": {**pair.hyper_parameters},
        "waivers": [[asdict(waiver), waiver.active(day)] for waiver in waivers],
        "program": program(options.get("family")),
    }
    return hashed(content)


def hashed(content: Any) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def canonical(content: Any) -> str:
    """JSON that does not depend on the order of keys. What JSON lacks is written as Python shows it.

    >>> canonical({"b": 1, "a": 2.0})
    '{"a":2.0,"b":1}'
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=repr)


def program(family: str | None = None) -> dict[str, str]:
    """The versions that a verdict depends on; of a family in a file also the source in its folder, with its nets."""
    if not is_file(family or ""):
        return _versions()
    return _versions() | {"family": _source(Path(str(family)).absolute().parent)}


@functools.cache
def _versions() -> dict[str, str]:
    """Of this package the source too, and of other packages' families: a checkout changes between versions."""
    from importlib.metadata import entry_points
    from importlib.util import find_spec

    root = Path(__file__).resolve().parents[2]
    versions = {"report": str(REPORT_VERSION), "converter": __version__, "source": _source(root)}
    versions |= {package: version_of(package) for package in ("torch", "diffusers", "numpy")}
    for point in entry_points(group="converter.families"):
        spec = find_spec(point.module.partition(".")[0])
        folder = Path(spec.origin).parent if spec and spec.origin else None
        source = _source(folder) if folder and folder.name not in ("site-packages", "dist-packages") else ""
        versions[f"family {point.name}"] = f"{point.value} {point.dist.version if point.dist else ''} {source}".strip()
    return versions


def _source(folder: Path) -> str:
    """The digest of all Python source in a folder."""
    return hashed({path.relative_to(folder).as_posix(): sha256(path) for path in source_files(folder)})
