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
from threading import Event
from typing import Any

from .._version import __version__
from ..checkpoint.folder import WEIGHTS, read_json, weight_files
from ..errors import ConverterError, UsageError, printable
from ..families import Family
from ..record import EXTRAS, RECORD, TOOL
from .digests import files_of, sha256
from .inputs import SEED
from .model import Model
from .report import PASS, Phase

DIFFUSERS = (WEIGHTS, "diffusion_pytorch_model.bin")  # the names that it loads weights by, best first
CASTS = ("float64", "float32", "float16", "bfloat16")  # what a conversion may round weights to


@dataclass(frozen=True)
class Record:
    """What a conversion record says that parity takes from it: which weights, which cast, and the user's own words."""

    weights: str | None = None
    size: int | None = None
    cast: str = ""
    given: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def record_of(converted: Path) -> tuple[Record, list[str]]:
    """The record of the conversion that made a folder, if it lies in it or beside it; and what is odd about it."""
    for folder in (converted, converted.absolute().parent):
        if (folder / RECORD).is_file():
            try:
                content = read_json(folder / RECORD)
                if content["tool"]["name"] != TOOL or not _made(folder, converted, content["written"]):
                    continue
                given = {
                    name: finding["value"]
                    for name, finding in content["hyper_parameters"].items()
                    if finding["source"] == "given"
                }
                source, cast = content["source"], content.get("cast") or ""
                if source["weights"] not in ("raw", "ema") or cast not in ("", *CASTS):
                    raise TypeError
                return Record(source["weights"], source["size"], cast, given, folder), []
            except (ConverterError, TypeError, KeyError, AttributeError):
                return Record(), [f"{RECORD} cannot be read as a record of a conversion, and is not believed"]
    return Record(), []


def _made(folder: Path, converted: Path, written: dict[str, Any]) -> bool:
    """Whether the record in `folder` is of the converted model: what lies beside a folder may be of another one."""
    inside = "" if folder == converted else f"{converted.absolute().name}/"
    return any(name.startswith(inside) for name in written)


def sidecar_of(converted: Path, record: Record) -> Path | None:
    """Where a conversion kept what the converted model has no place for: in the folder, or beside its record."""
    places = (converted, *([record.folder] if record.folder else []))
    return next((folder / EXTRAS for folder in places if (folder / EXTRAS).is_file()), None)


def unloaded(folder: Path) -> str:
    """Names of weights under which diffusers looks for none (transformers does); '' where it finds some."""
    if any((folder / f"{name}{end}").exists() for name in DIFFUSERS for end in ("", ".index.json")):
        return ""
    return ", ".join(printable(path.name) for path in weight_files(folder)[0][:4])


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


def phase(original: dict[str, Any]) -> Phase:
    """Phase 0: nothing is judged, all of it recorded."""
    return Phase("provenance", PASS, f"both sides hashed; {original['name']} is {original['sha256'][:16]}...")


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
