"""What is compared: digests of both sides, the record of the conversion, what lies beside it, the family's nets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from ..checkpoint.file import reads
from ..checkpoint.folders.folder import names_in, weight_files
from ..checkpoint.weight_names import STEMS, variants, weights_among, with_variant
from ..checkpoint.weight_names import WEIGHTS as WEIGHTS_FILE
from ..checkpoint.weights_kind import UNKNOWN
from ..conversion.record import Record as Found
from ..conversion.record import record_beside, sidecar_beside
from ..errors import printable
from ..families import Family
from ..filenames import RECORD
from ..nets.spec import ParitySpec
from ..reports.report import PASS, Phase
from .choices import PRECISIONS, WEIGHTS
from .digests import files_of, sha256

DIFFUSERS = STEMS[:2]  # the names that it loads weights by, best first; the others are those of transformers


@dataclass(frozen=True)
class Record:
    """What a conversion record says that parity takes from it: which weights, which cast, and the user's own words."""

    weights: str | None = None
    where: str = ""
    size: int | None = None
    cast: str = ""
    given: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def record_of(converted: Path) -> tuple[Record, list[str]]:
    """The record of the conversion that made a folder, if it lies in it or beside it; and what is odd about it. Of a
    conversion of a conversion, what it passes on of the first one counts."""
    found = record_beside(converted)
    if not found.folder:
        return Record(), [found.odd] if found.odd else []
    try:
        source, cast = (found.origin or found.content)["source"], found.casts[-1] if found.casts else ""
        where = source.get("where", "")
        if source["weights"] not in (*WEIGHTS, UNKNOWN) or cast not in ("", *PRECISIONS):
            raise TypeError
        twice = f"by its record the weights were rounded to {found.rounding}, and not once"
        notes = [twice] if len(found.casts) > 1 else []
        return Record(source["weights"], where, source["size"], cast, found.given, found.folder), notes
    except (TypeError, KeyError, AttributeError):
        return Record(), [f"{RECORD} cannot be read as a record of a conversion, and is not believed"]


def sidecar_of(converted: Path, record: Record) -> Path | None:
    """Where a conversion kept what the converted model has no place for: in the folder, or beside its record."""
    return sidecar_beside(converted, Found(folder=record.folder))


@reads
def loading(folder: Path) -> tuple[dict[str, Any], str]:
    """(what `from_pretrained` has to be told to find the weights, nothing as a rule; names of weights that it would
    not find at all, as of those that transformers loads, '' where it finds some)."""
    names = names_in(folder)
    single, index = weights_among(names)[0]
    for variant in ("", *variants(names)):
        for name in DIFFUSERS:
            if (single or index) not in (with_variant(name, variant), with_variant(f"{name}.index.json", variant)):
                continue
            told: dict[str, Any] = {"variant": variant} if variant else {}
            if index and name != WEIGHTS_FILE:
                told["use_safetensors"] = False  # else it looks for shards of the other kind, or for one file
            return told, ""
    return {}, ", ".join(printable(path.name) for path in weight_files(folder)[0][:4])


@reads
def about(path: Path, enough: Event | None = None) -> dict[str, Any]:
    """Name, size and SHA-256 of a checkpoint; of a folder, of every file that it is read from, and of that list.

    Args:
        enough: once it is set nobody wants to know any more, and no further byte is read.
    """
    files = files_of(path)
    with ThreadPoolExecutor(2) as pool:
        digests = list(pool.map(lambda file: sha256(file, enough), files.values()))
    listed: dict[str, dict[str, Any]] = {
        printable(name): {"size": os.path.getsize(file), "sha256": digest}
        for (name, file), digest in zip(files.items(), digests, strict=True)
    }
    made: dict[str, Any] = {
        "name": printable(path.absolute().name),
        "size": sum(row["size"] for row in listed.values()),
    }
    if not path.is_dir():
        return made | {"sha256": digests[0]}
    lines = "".join(f"{row['sha256']}  {name}\n" for name, row in sorted(listed.items()))
    return made | {"sha256": hashlib.sha256(lines.encode()).hexdigest(), "files": listed}


def phase(original: Mapping[str, Any], environment: Mapping[str, Any]) -> Phase:
    """Phase 0: nothing is judged, all of it recorded."""
    words = (
        f"both sides hashed, {original['name']} is {original['sha256'][:16]}...; "
        f"{'' if environment['deterministic_algorithms'] else 'NOT '}deterministic, "
        f"TF32 {'ON' if environment['tf32'] else 'off'}, threads: {environment['threads']}, seed: {environment['seed']}"
    )
    return Phase("provenance", PASS, words)


def _unavailable(*_: Any) -> Any:
    raise NotImplementedError


UNAVAILABLE = ParitySpec(reference=_unavailable, converted=_unavailable, cases=_unavailable)  # weights and config only


def model_of(family: Family) -> ParitySpec:
    """The nets that a family brings, imported where they are needed; `UNAVAILABLE` where it brings none."""
    made = family.parity
    if isinstance(made, str):
        from importlib import import_module

        module, _, name = made.partition(":")
        made = getattr(import_module(module, family.describe.__module__.rpartition(".")[0]), name)
    return made if isinstance(made, ParitySpec) else UNAVAILABLE
