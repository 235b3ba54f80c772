"""What a comparison depends on, as one key: the bytes of both sides, the options that matter, and this program."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...checkpoint.file import InputFile, reads
from ...conversion.pairs import Pair
from ...families.from_file import is_file
from ...reports.report import REPORT_VERSION
from ..determinism import version_of
from ..provenance import files_of, sha256
from ..waivers import Waiver

# Where failures are saved and how progress is shown changes no verdict.
_IRRELEVANT = ("save_failing", "progress")


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
    if is_file(options.get("family", "")):
        # Its nets may be in files of the same folder.
        sources = sorted(Path(options["family"]).absolute().parent.glob("*.py"))
        options["family"] = [options["family"], {path.name: sha256(path) for path in sources}]
    content = {
        # Names too: they stand in the report.
        "original": [os.path.basename(os.path.abspath(pair.original)), digest(pair.original)],
        "converted": [os.path.basename(os.path.abspath(pair.converted)), digest(pair.converted)],
        "options": options,
        "hyper_parameters": {**pair.hyper_parameters},
        "waivers": [[asdict(waiver), waiver.active(day)] for waiver in waivers],
        "program": program(),
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


@cache
def program() -> dict[str, str]:
    """The versions that a verdict depends on. Of this package the source too: a checkout changes between versions."""
    from importlib.metadata import entry_points

    root = Path(__file__).resolve().parents[2]
    source = {path.relative_to(root).as_posix(): sha256(path) for path in root.rglob("*.py")}
    versions = {"report": str(REPORT_VERSION), "converter": __version__, "source": hashed(source)}
    versions |= {package: version_of(package) for package in ("torch", "diffusers", "numpy")}
    for point in entry_points(group="converter.families"):
        versions[f"family {point.name}"] = f"{point.value} {point.dist.version if point.dist else ''}"
    return versions
