"""What is compared, and on what: digests of both sides, versions, threads, and the switches that make it repeatable."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._version import __version__
from ..checkpoint.file import InputFile
from ..checkpoint.folder import read_json
from ..conversion import EXTRAS, RECORD, TOOL
from ..errors import ConverterError, UsageError, printable
from ..families import Family
from .inputs import SEED
from .model import Model
from .report import PASS, Phase

_CHUNK = 4 << 20


@dataclass(frozen=True)
class Record:
    """What a conversion record says that parity takes from it: which weights, which cast, and the user's own words."""

    weights: str | None = None
    size: int | None = None
    cast: str = ""
    given: dict[str, Any] = field(default_factory=dict)


def record_of(converted: Path) -> tuple[Record, list[str]]:
    """The record of the conversion that made a folder, if it lies in it or beside it; and what is odd about it."""
    for folder in (converted, converted.absolute().parent):
        if (folder / RECORD).is_file():
            try:
                content = read_json(folder / RECORD)
                if content["tool"]["name"] != TOOL:
                    continue
                given = {
                    name: finding["value"]
                    for name, finding in content["hyper_parameters"].items()
                    if finding["source"] == "given"
                }
                source = content["source"]
                return Record(source["weights"], source["size"], content.get("cast") or "", given), []
            except (ConverterError, TypeError, KeyError, AttributeError):
                return Record(), [f"{RECORD} cannot be read as a record of a conversion, and is not believed"]
    return Record(), []


def sidecar_of(converted: Path) -> Path | None:
    """Where a conversion kept what the converted model has no place for."""
    places = (converted, converted.absolute().parent)
    return next((folder / EXTRAS for folder in places if (folder / EXTRAS).is_file()), None)


def sha256(path: Path) -> tuple[int, str]:
    """(size, SHA-256) of a regular file."""
    digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
    with InputFile(path) as file:
        for offset in range(0, file.size, _CHUNK):
            part = memoryview(buffer)[: min(_CHUNK, file.size - offset)]
            file.read_into(part, offset, "")
            digest.update(part)
        return file.size, digest.hexdigest()


def about(path: Path) -> dict[str, Any]:
    """Name, size and digest of a checkpoint; of a folder, of all its files."""
    if path.is_dir():
        return about_folder(path)
    size, digest = sha256(path)
    return {"name": printable(path.name), "size": size, "sha256": digest}


def about_folder(folder: Path) -> dict[str, Any]:
    """Name, size and digest of every file of a folder, and one digest over them all."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(sha256, files))
    listed = {
        printable(name): {"size": size, "sha256": digest} for name, (size, digest) in zip(names, found, strict=True)
    }
    whole = hashlib.sha256("".join(f"{row['sha256']}  {name}\n" for name, row in listed.items()).encode())
    return {
        "name": printable(folder.absolute().name),
        "size": sum(size for size, _ in found),
        "sha256": whole.hexdigest(),
        "files": listed,
    }


def phase(original: dict[str, Any]) -> Phase:
    """Phase 0: nothing is judged, all of it recorded."""
    return Phase(
        "provenance", PASS, f"{original['name']}, SHA-256 {original['sha256'][:12]}..., and every file beside it"
    )


def environment(device: str, precisions: Sequence[str]) -> dict[str, Any]:
    """Versions and settings that could change a last bit."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    made: dict[str, Any] = {"tool": __version__, "python": platform.python_version()}
    for name in ("torch", "diffusers", "numpy"):
        try:
            made[name] = version(name)
        except PackageNotFoundError:
            made[name] = "not installed"
    return made | {
        "device": device,
        "threads": torch.get_num_threads(),
        "tf32": False,
        "deterministic_algorithms": True,
        "dtypes": list(precisions),
        "seed": SEED,
    }


@contextmanager
def deterministic() -> Iterator[None]:
    """TF32 off and deterministic algorithms on, as they were afterwards."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA has no deterministic products
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, conv.allow_tf32, torch.are_deterministic_algorithms_enabled())
    matmul.allow_tf32 = conv.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        matmul.allow_tf32, conv.allow_tf32 = before[:2]
        torch.use_deterministic_algorithms(before[2])


def model_of(family: Family) -> Model:
    """The nets that a family brings; imported where they are needed."""
    made = family.parity
    if isinstance(made, str):
        from importlib import import_module

        module, _, name = made.partition(":")
        made = getattr(import_module(module), name)
    if not isinstance(made, Model):
        raise UsageError(f"the family {family.name} brings no reference net (`parity`), so nothing can be compared")
    return made
