"""What is compared: the files of both sides with their digests, and what the record of the conversion says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from ..checkpoint.file import InputFile, reads
from ..checkpoint.folder import CONFIG, averaged_sibling, cached_snapshot, model_folder, names_in, weight_files
from ..checkpoint.weight_names import STEMS, variants, weights_among, with_variant
from ..checkpoint.weight_names import WEIGHTS as WEIGHTS_FILE
from ..checkpoint.weights_kind import UNKNOWN
from ..conversion.model_files import folders_in
from ..conversion.record import Record, find_record
from ..errors import printable
from ..filenames import RECORD, SIDECAR
from ..reports.report import PASS, Phase
from .choices import PRECISIONS, WEIGHTS

DIFFUSERS = STEMS[:2]  # the names that it loads weights by, best first; the others are those of transformers
_PIECE = 1 << 24  # while nets are imported, the interpreter has to be waited for after each


@reads
def files_of(path: str | os.PathLike[str]) -> dict[str, Path]:
    """The files that a checkpoint, or a converted folder, is read from: name inside it -> path.

    >>> list(files_of("fixtures/golden/sigma-ms.pth"))
    ['sigma-ms.pth']
    """
    root = Path(path)
    if not root.is_dir():
        return {root.name: root}
    root = cached_snapshot(root)
    model = model_folder(root)
    # The averaged weights beside it count as well: a flag takes those instead.
    parts = [root / name for name in folders_in(root)]
    folders = parts or [model, *filter(None, [averaged_sibling(model)])]
    others = [folder / name for folder in (root, *folders) for name in (CONFIG, RECORD, SIDECAR)]
    # Of `out/transformer`, the record and the sidecar are looked for in `out` too.
    others += [root.absolute().parent / name for name in (RECORD, SIDECAR)]
    files: list[Path] = []
    for folder in folders:
        weights, index, passed_over = weight_files(folder)
        others += sorted(folder.glob("*.index*.json")) if index else []
        # Weights that are passed over count too: stock diffusers may choose otherwise.
        files += [*weights, *(folder / name for name in passed_over)]
    files += (file for file in others if os.path.lexists(file))
    return {Path(os.path.relpath(file, root)).as_posix(): file for file in files}


def sha256(path: Path, stop: Event | None = None) -> str:
    """SHA-256 of a regular file, read in pieces; of only a part of it once `stop` is set."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_PIECE))
    with InputFile(path) as file:
        for start in range(0, file.size, _PIECE):
            if stop and stop.is_set():
                break
            piece = buffer[: min(_PIECE, file.size - start)]
            file.read_into(piece, start)
            digest.update(piece)
    return digest.hexdigest()


@reads
def digests_of(path: Path, stop: Event | None = None) -> dict[str, Any]:
    """Name, size and SHA-256 of a checkpoint, as they stand in the report; of a folder, those of the list of its
    `files`, with which they come.

    Args:
        stop: once it is set nobody needs the result any more, and no further byte is read.
    """
    files = files_of(path)
    rows: dict[str, dict[str, Any]] = {
        printable(name): {"size": os.path.getsize(file), "sha256": sha256(file, stop)} for name, file in files.items()
    }
    whole = {"name": printable(path.absolute().name), "size": sum(row["size"] for row in rows.values())}
    if not path.is_dir():
        return whole | {"sha256": next(iter(rows.values()))["sha256"]}
    lines = "".join(f"{row['sha256']}  {name}\n" for name, row in sorted(rows.items()))
    return whole | {"sha256": hashlib.sha256(lines.encode()).hexdigest(), "files": rows}


def recorded_conversion(converted: Path) -> tuple[Record, list[str]]:
    """The record of a folder, in it or beside it, empty where it is not believed; and what is odd about it."""
    record = find_record(converted)
    if record.folder is None:
        return Record(), [record.odd] if record.odd else []
    if record.source["weights"] not in (*WEIGHTS, UNKNOWN) or {*record.casts[-1:]} - {*PRECISIONS}:
        return Record(), [f"{RECORD} is not a valid conversion record, and is ignored"]
    twice = f"by its record the weights were rounded to {record.rounding}, and not once"
    return record, [twice] if len(record.casts) > 1 else []


@reads
def loading(folder: Path) -> tuple[dict[str, Any], str]:
    """(arguments that `from_pretrained` needs to find the weights, usually none; names of weights that it would not
    find at all, as of those that transformers loads, '' where it finds some)."""
    names = names_in(folder)
    single, index = weights_among(names)[0]
    for variant in ("", *variants(names)):
        for name in DIFFUSERS:
            if (single or index) not in (with_variant(name, variant), with_variant(f"{name}.index.json", variant)):
                continue
            arguments: dict[str, Any] = {"variant": variant} if variant else {}
            if index and name != WEIGHTS_FILE:
                arguments["use_safetensors"] = False  # else it looks for shards of the other kind, or for one file
            return arguments, ""
    return {}, ", ".join(printable(path.name) for path in weight_files(folder)[0][:4])


def phase(original: Mapping[str, Any], machine: Mapping[str, Any], adapters: Sequence[Mapping[str, Any]] = ()) -> Phase:
    """Phase 0, of digests, merged adapters and environment as the report has them: nothing is judged, all of it
    recorded."""
    merged = (f"{one['name']} ({one['sha256'][:16]}...) at {one['strength']:g}" for one in adapters)
    words = (
        f"both sides hashed, {original['name']} is {original['sha256'][:16]}...; "
        f"{'with ' if adapters else ''}{', '.join(merged)}{'; ' if adapters else ''}"
        f"{'' if machine['deterministic_algorithms'] else 'NOT '}deterministic, "
        f"TF32 {'ON' if machine['tf32'] else 'off'}, threads: {machine['threads']}, seed: {machine['seed']}"
    )
    return Phase("provenance", PASS, words)
