"""What an earlier conversion left beside a model: its record, and the sidecar of what diffusers has no place for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .._version import __version__
from ..checkpoint.digest import named
from ..checkpoint.dtypes import BY_NAME
from ..checkpoint.file import present
from ..checkpoint.folder import cached_snapshot
from ..checkpoint.json_file import read_json
from ..errors import ConverterError
from ..filenames import PARITY, PARITY_PAGE, RECORD, SIDECAR, TOOL, record_places
from ..hub.names import stays_inside

# Of tensors that a record lists.
LIKE = f"are what {RECORD} says was converted"
UNLIKE = f"are not what {RECORD} says was converted (trained since?)"
PLAIN = (bool, int, float, str, type(None))  # what a hyper-parameter may be


@dataclass
class PlanRow:
    """A row of the plan in `conversion.json`: what became of one tensor of the source, or of several.

    `targets` are the keys it was written under, `sidecar` its key in the sidecar; `digests` has by key those of
    what was written, or of the stored buffer if it is recomputed; `reproduced`: whether recomputing gives that.
    """

    sources: list[str]
    dtype: str
    shape: list[int]
    operation: str
    targets: list[str] | None = None
    sidecar: str | None = None
    digests: dict[str, str] | None = None
    reproduced: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; unknown and default values are left out."""
        row: dict[str, Any] = {"source": self.sources[0], "dtype": self.dtype, "shape": self.shape}
        row["operation"] = self.operation
        if len(self.sources) > 1:
            row["sources"] = self.sources
        names = ("targets", "sidecar", "digests") if self.reproduced is None else ("digests", "reproduced", "sidecar")
        return row | {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass
class ConversionRecord:
    """What becomes `conversion.json`.

    `about` is what `inspect` says of the source too, `sources` the digests of what was believed beside its weights,
    `changed` key -> the digest that an earlier record stated, `adapters` what was merged into it, `written` the files,
    `earlier` what is passed on of earlier conversions.
    """

    about: dict[str, Any]
    sources: dict[str, dict[str, int | str]]
    to: str
    cast: str
    notes: list[str]
    plan: list[PlanRow]
    changed: dict[str, str] = field(default_factory=dict)
    adapters: list[Mapping[str, Any]] = field(default_factory=list)
    written: dict[str, dict[str, int | str]] = field(default_factory=dict)
    earlier: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        content = self.about | {
            "sources": self.sources,
            "tool": {"name": TOOL, "version": __version__},
            "to": self.to,
            "cast": self.cast,
            "notes": self.notes,
            "plan": [row.as_dict() for row in self.plan],
        }
        later = {"changed": self.changed, "adapters": self.adapters, "written": self.written}
        return content | {name: value for name, value in later.items() if value} | self.earlier


@dataclass(frozen=True)
class Record:
    """A `conversion.json` that is ours: its content, and the folder that it describes; empty where there is none.

    `odd` is a note on a file of that name that is there and is ignored.
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
    def source(self) -> dict[str, Any]:
        """What was converted first: its `weights`, `where` they lie and its `size`; empty where there is no record."""
        source: dict[str, Any] = (self.origin or self.content).get("source", {})
        return source

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of the plan of that conversion by the original key, in the original file's order."""
        return {row["source"]: row for row in self.origin.get("plan", ())}

    @property
    def digests(self) -> dict[str, str]:
        """Of what every tensor held when it was converted, by its key in the folder or the sidecar; of what had
        changed before the last conversion, still that from before."""
        rows = (self.origin or self.content).get("plan", ())
        return {key: text for row in rows for key, text in _stated(row).items()} | self.changed

    @property
    def changed(self) -> dict[str, str]:
        """Tensors that differed from their own record when converted: key -> the digest recorded."""
        return _named(self.content.get("changed"))

    @property
    def adapters(self) -> list[Mapping[str, Any]]:
        """What was merged into it."""
        listed = self.content.get("adapters")
        return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []

    @property
    def casts(self) -> list[str]:
        """The dtypes that weights were rounded to on the way out, one after the other."""
        last = self.content.get("cast")
        return [*self.content.get("earlier_casts", ()), *([last] if last else [])]

    @property
    def rounding(self) -> str:
        """The casts in words, '' for none."""
        return " and then to ".join(self.casts)

    @property
    def given(self) -> dict[str, Any]:
        """Hyper-parameters in the user's words, at the first conversion and at this one."""
        return {
            name: finding["value"]
            for record in (self.origin, self.content)
            for name, finding in record.get("hyper_parameters", {}).items()
            if finding["source"] == "given"
        }

    def of_part(self, part: str) -> Record:
        """What it says of one folder of several: of the tensors whose keys begin with `part`, and of no others."""

        def of(record: dict[str, Any]) -> dict[str, Any]:
            rows = [row for row in record["plan"] if any(key.startswith(part) for key in row.get("targets") or ())]
            # Hyper-parameters are those of the whole model.
            return record if len(rows) == len(record["plan"]) else record | {"plan": rows, "hyper_parameters": {}}

        content = of(self.content) if self.content else {}
        return replace(self, content=content | ({"origin": of(content["origin"])} if content.get("origin") else {}))

    def history(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """What the record of a further conversion of this model passes on, so that the way back stays exact.

        Args:
            digests: of what that conversion made anew, by the key in the model or the sidecar.
        """
        earlier: dict[str, Any] = {"earlier_casts": self.casts} if self.casts else {}
        if not self.origin:
            return earlier
        source, rows = self.origin["source"], []
        for row in self.rows.values():
            stated = {key: digests.get(key, text) for key, text in _stated(row).items()}
            kept = ("source", "dtype", "shape", "operation", "targets")
            rows.append({name: row[name] for name in kept if name in row} | {"digests": stated})
        given = {name: {"value": value, "source": "given"} for name, value in self.given.items()}
        about = {name: source[name] for name in ("weights", "where", "size") if name in source}
        return earlier | {"origin": {"source": about, "hyper_parameters": given, "plan": rows}}


def find_record(model: Path) -> Record:
    """The record in one of its `record_places`, and only if it is a record of this very model."""
    model = cached_snapshot(model)
    for folder in record_places(model):
        if not present(folder / RECORD):
            continue
        try:
            content = read_json(folder / RECORD)
            inside = "" if folder == model else f"{model.absolute().name}/"
            if content["tool"]["name"] != TOOL:  # one damaged letter of it, and the rest would be ignored
                raise TypeError
            if not any(name.startswith(inside) for name in content["written"]):
                continue  # of another model, beside this one
            casts = [content.get("cast") or "float32", *_listed(content.get("earlier_casts", []))]
            known = [content, *([content["origin"]] if content.get("origin") else [])]
            if not all(map(_is_valid, known)) or not all(BY_NAME[cast].floating for cast in casts):
                raise TypeError
            _named(content.get("changed"))
        except (ConverterError, TypeError, KeyError, AttributeError):
            return Record(odd=f"{RECORD} is not a valid conversion record, and is ignored")
        return Record(content, folder)
    return Record()


def _is_valid(record: Any) -> bool:
    """Whether all that is relied on is of the types that it ought to be: anyone may have written it."""
    keys = [row["source"] for row in _listed(record["plan"]) if _is_valid_row(row)]
    source, findings = record["source"], record["hyper_parameters"].values()
    return (
        len(set(keys)) == len(record["plan"])
        and isinstance(record.get("family"), str | None)
        and isinstance(source["weights"], str)
        and isinstance(source.get("where", ""), str)
        and type(source["size"]) is int
        and all(isinstance(finding["value"], PLAIN) and finding["source"] for finding in findings)
    )


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _is_valid_row(row: Any) -> bool:
    shape, targets = row["shape"], row.get("targets", [])
    if not (isinstance(shape, list) and isinstance(targets, list)):
        return False
    _stated(row)
    texts = all(isinstance(text, str) for text in (row["source"], row.get("operation", ""), *targets))
    return texts and BY_NAME[row["dtype"]].floating and all(type(size) is int for size in shape)


def _stated(row: dict[str, Any]) -> dict[str, str]:
    """The digests of a row, which earlier versions wrote as bare SHA-256."""
    digests = row.get("digests")
    return _named(row.get("sha256") if digests is None else digests)


def _named(digests: Any) -> dict[str, str]:
    return {} if digests is None else {key: named(text) for key, text in digests.items()}


def find_sidecar(model: Path, record: Record) -> Path | None:
    """Where a conversion kept what the converted model has no place for: in the folder, or beside its record."""
    places = (model, *([record.folder] if record.folder else []))
    return next((folder / SIDECAR for folder in places if present(folder / SIDECAR)), None)


def recorded_files(record: Any) -> dict[str, dict[str, Any]]:
    """The files that a record says were written, with what it says of each; none where it is no record of ours.

    >>> recorded_files({"tool": {"name": "convert-pixart"}, "written": {"transformer/config.json": {"size": 7}}})
    {'transformer/config.json': {'size': 7}}
    """
    try:
        files: dict[str, dict[str, Any]] = {**record["written"]} if record["tool"]["name"] == TOOL else {}
        valid = all(
            isinstance(about["size"], int) and isinstance(about.get("link", ""), str) and stays_inside(name)
            for name, about in files.items()
        )
    except (TypeError, KeyError):
        return {}
    return files if valid else {}


def files_we_wrote(folder: Path) -> Mapping[str, str]:
    """What this tool wrote into a folder, by its record there, and the record and the reports of a comparison: where a
    link leads to, '' for a file. None without a record."""
    try:
        files = recorded_files(read_json(folder / RECORD))
    except ConverterError:
        return {}
    links = {name: about.get("link", "") for name, about in files.items()}
    return links | dict.fromkeys((RECORD, PARITY, PARITY_PAGE), "") if files else {}
