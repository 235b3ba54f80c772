"""What an earlier conversion left beside a model: its record, and the sidecar of what diffusers has no place for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checkpoint.dtypes import BY_NAME
from .checkpoint.folder import read_json
from .errors import ConverterError

EXTRAS = "original_extras.safetensors"
RECORD = "conversion.json"
PARITY = "parity.json"  # what was found of the result, where it was asked for
TOOL = "convert-pixart"


@dataclass(frozen=True)
class Record:
    """A `conversion.json` that is ours: its content, and the folder that it describes; empty where there is none.

    `odd` says in words that a file of that name is there and is not believed.
    """

    content: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    odd: str = ""

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Of a conversion out of the original layout: the rows of its plan by the original key, in the file's order."""
        if self.content.get("layout") != "original":
            return {}
        return {row["source"]: row for row in self.content["plan"]}

    @property
    def cast(self) -> str:
        """The dtype that weights were rounded to on the way out; '' where none was."""
        return str(self.content.get("cast") or "")


def record_beside(model: Path) -> Record:
    """The record in a folder, or, of `out/transformer`, in `out`; and only if it is a record of this very model."""
    for folder in (model, model.absolute().parent):
        if not (folder / RECORD).is_file():
            continue
        try:
            content = read_json(folder / RECORD)
            written, rows = content["written"], content["plan"]
            inside = "" if folder == model else f"{model.absolute().name}/"
            if content["tool"]["name"] != TOOL or not any(name.startswith(inside) for name in written):
                continue
            if not all(map(_sound, rows)) or (content.get("cast") or "float32") not in BY_NAME:
                raise TypeError
        except (ConverterError, TypeError, KeyError, AttributeError):
            return Record(odd=f"{RECORD} cannot be read as a record of a conversion, and is not believed")
        return Record(content, folder)
    return Record()


def _sound(row: Any) -> bool:
    """Whether a row of a plan is of the types that are relied on: anyone may have written it."""
    digests, shape = row.get("sha256") or {}, row.get("shape", [])
    if not (isinstance(digests, dict) and isinstance(shape, list)):
        return False
    texts = isinstance(row["source"], str) and all(isinstance(text, str) for text in digests.values())
    return texts and BY_NAME[row["dtype"]].floating and all(type(size) is int for size in shape)


def sidecar_beside(model: Path, record: Record) -> Path | None:
    """Where a conversion kept what the converted model has no place for: in the folder, or beside its record."""
    places = (model, *([record.folder] if record.folder else []))
    return next((folder / EXTRAS for folder in places if (folder / EXTRAS).is_file()), None)
