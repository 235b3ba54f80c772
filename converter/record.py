"""What an earlier conversion left beside a model: its record, and the sidecar of what diffusers has no place for."""

from __future__ import annotations

from collections.abc import Collection
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
ASIDE = ("sidecar", "recompute")  # the operations on what is no weight of the model, which no cast touches


@dataclass(frozen=True)
class Record:
    """A `conversion.json` that is ours: its content, and the folder that it describes; empty where there is none.

    `odd` says in words that a file of that name is there and is not believed.
    """

    content: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    odd: str = ""

    @property
    def origin(self) -> dict[str, Any]:
        """What is known of the conversion out of the original layout: this one, or one that its source had been through
        before; empty where neither was one."""
        return self.content if self.content.get("layout") == "original" else self.content.get("origin") or {}

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of the plan of that conversion by the original key, in the original file's order."""
        return {row["source"]: row for row in self.origin.get("plan", ())}

    @property
    def casts(self) -> list[str]:
        """The dtypes that weights were rounded to on the way out, one after the other."""
        last = self.content.get("cast")
        return [*(self.content.get("origin") or {}).get("casts", ()), *([last] if last else [])]

    def passed_on(self, cast: str, displaced: Collection[str]) -> dict[str, Any]:
        """The origin as the record of a conversion of this model holds it, so that the way back stays exact.

        Args:
            cast: what the weights are rounded to in that conversion; their digests are not passed on then.
            displaced: original keys whose tensors are other ones from then on.
        """
        if not self.origin:
            return {}

        def holds(row: dict[str, Any]) -> bool:
            return row["source"] not in displaced and (not cast or row.get("operation") in ASIDE)

        kept = {name: self.origin[name] for name in ("source", "layout", "hyper_parameters") if name in self.origin}
        rows = [row if holds(row) else row | {"sha256": None} for row in self.origin["plan"]]
        return {"origin": kept | {"casts": self.casts, "plan": rows}}


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
            origin = content.get("origin") or {"plan": [], "casts": []}
            casts = [content.get("cast") or "float32", *origin["casts"]]
            if not all(map(_sound, [*rows, *origin["plan"]])) or not all(cast in BY_NAME for cast in casts):
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
