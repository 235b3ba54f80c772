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
from threading import Event
from typing import Any

from .._version import __version__
from ..checkpoint.file import InputFile, reads
from ..checkpoint.folders.folder import CONFIG, in_cache, model_folder, weight_files
from ..checkpoint.folders.folder import averaged_sibling as averaged_beside
from ..conversion.pairs import Pair
from ..families.from_file import is_file
from ..filenames import RECORD, SIDECAR
from ..reports.report import REPORT_VERSION
from .waivers import Waiver

_PIECE = 1 << 22
# Where failures are saved and how progress is shown changes no verdict.
_IRRELEVANT = ("save_failing", "progress")


@reads
def files_of(path: str | os.PathLike[str]) -> dict[str, Path]:
    """The files that a checkpoint, or a converted folder, is read from: name inside it -> path.

    >>> list(files_of("fixtures/golden/sigma-ms.pth"))
    ['sigma-ms.pth']
    """
    root = Path(path)
    if not root.is_dir():
        return {root.name: root}
    root = in_cache(root)
    place = model_folder(root)
    # The averaged weights beside it count as well: a flag takes those instead.
    places = [place, *filter(None, [averaged_beside(place)])]
    # Of `out/transformer`, the record and the sidecar are looked for in `out` too.
    beside = [folder / name for folder in (root, *places) for name in (CONFIG, RECORD, SIDECAR)]
    beside += [root.absolute().parent / name for name in (RECORD, SIDECAR)]
    found: list[Path] = []
    for place in places:
        weights, index, passed_over = weight_files(place)
        beside += sorted(place.glob("*.index*.json")) if index else []
        # Weights that are passed over count too: stock diffusers may choose otherwise.
        found += [*weights, *(place / name for name in passed_over)]
    found += (file for file in beside if os.path.lexists(file))
    return {os.path.relpath(file, root): file for file in found}


@reads
def digest(path: str | os.PathLike[str]) -> dict[str, str]:
    """SHA-256 of every file that counts; `InputError` for what is no regular file, or no model folder."""
    return {name: sha256(file) for name, file in files_of(path).items()}


@reads
def stamp(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """What shows cheaply that no file was touched in between: identity, size and times of each."""
    made: dict[str, tuple[int, ...]] = {}
    for name, file in files_of(path).items():
        with InputFile(file):  # it has to be there, and to be a regular file
            status = os.stat(file)
        made[name] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return made


def sha256(path: Path, enough: Event | None = None) -> str:
    """Of a regular file, in pieces; of as much of it as was read when `enough` was set."""
    made, buffer = hashlib.sha256(), memoryview(bytearray(_PIECE))
    with InputFile(path) as file:
        for start in range(0, file.size, _PIECE):
            if enough and enough.is_set():
                break
            piece = buffer[: min(_PIECE, file.size - start)]
            file.read_into(piece, start)
            made.update(piece)
    return made.hexdigest()


def key_of(pair: Pair, waivers: Sequence[Waiver] = (), today: date | None = None) -> str:
    """The key of one comparison: equal exactly where running it again would be running the same thing again.

    `today` is in it by way of the waivers only: on the day after one has expired, the key is another one, so no
    verdict outlives a waiver that it needed.
    """
    day = today or date.today()
    mattering = {k: v for k, v in pair.options.items() if v is not None and k not in _IRRELEVANT}
    if "cases" in mattering:
        mattering["cases"] = digest(mattering["cases"])
    if is_file(mattering.get("family", "")):
        # Its nets may lie beside it.
        beside = sorted(Path(mattering["family"]).absolute().parent.glob("*.py"))
        mattering["family"] = [mattering["family"], {path.name: sha256(path) for path in beside}]
    content = {
        # Names too: they stand in the report.
        "original": [os.path.basename(os.path.abspath(pair.original)), digest(pair.original)],
        "converted": [os.path.basename(os.path.abspath(pair.converted)), digest(pair.converted)],
        "options": mattering,
        "hyper_parameters": {**pair.hyper_parameters},
        "waivers": [[asdict(waiver), waiver.active(day)] for waiver in waivers],
        "program": program(),
    }
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def canonical(content: Any) -> str:
    """JSON that does not depend on the order of keys. What JSON lacks is spelt as Python shows it.

    >>> canonical({"b": 1, "a": 2.0})
    '{"a":2.0,"b":1}'
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=repr)


@cache
def program() -> dict[str, str]:
    """The versions that a verdict depends on. Of this package the source too: a checkout changes between versions."""
    from importlib.metadata import PackageNotFoundError, entry_points, version

    made = {"report": str(REPORT_VERSION), "converter": __version__, "source": _source()}
    for package in ("torch", "diffusers", "numpy"):
        try:
            made[package] = version(package)
        except PackageNotFoundError:
            made[package] = ""
    for point in entry_points(group="converter.families"):
        made[f"family {point.name}"] = f"{point.value} {point.dist.version if point.dist else ''}"
    return made


def _source() -> str:
    root, made = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        made.update(f"{path.relative_to(root).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return made.hexdigest()
