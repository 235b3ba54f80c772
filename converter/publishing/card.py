"""The model card: what a published conversion was made from, how, and what was found of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from ..checkpoint.folders.folder import CONFIG
from ..checkpoint.weights_kind import LABELS as SPOKEN
from ..errors import human_bytes
from ..filenames import PARITY, RECORD, SIDECAR
from ..hub.names import place_of
from ..reports import facts
from ..reports.markdown import ICONS
from ..reports.markdown_text import blocks, bullets, code, fenced, table, text
from ..reports.published import published, without_paths
from ..reports.report import Report
from ..reports.wording import PARITY as WORDING
from .target import MARK

_OPERATIONS = {"rename": "renamed", "split": "split", "sidecar": "kept aside", "recompute": "recomputed"}
_HOW_KNOWN = {"file": "read from the file", "given": "given by the user", "assumed": "assumed"}


def card(
    record: dict[str, Any],
    parity: dict[str, Any] | None = None,
    *,
    repo: str = "",
    source: str | None = None,
    revision: str | None = None,
    class_name: str | None = None,
    paths: Iterable[object] = (),
) -> str:
    """The card of a conversion, as Markdown with the hub's metadata in YAML; no paths of this computer.

    Args:
        record: the content of `conversion.json`, `parity` that of `parity.json`. No text in them can break out.
        repo, revision: where it is published, for the example that loads it from there.
        source: how the source was named. It is shown where that is a place on the hub, the repository of which is then
            the base model; a path says nothing to others.
        class_name: of the model class in diffusers.
        paths: that may stand in the texts of the record, however they are spelled.

    Raises: what a dict raises that is not such a record: KeyError, TypeError, AttributeError, ValueError.
    """
    from huggingface_hub import ModelCardData

    place = place_of(source) if source else None
    record = without_paths(record, [*paths, *([] if place or not source else [source])])
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=place.repo if place else None,
        tags=[str(record["family"])],
    )
    named = "/".join(filter(None, (f"hf://{place.repo}", place.path))) if place else record["source"]["name"]
    made = _made(record, named, (place.revision if place else None) or "")
    parts = [*_head(record, named, repo, revision, class_name), *made, *_shown(record)]
    return f"---\n{data.to_yaml()}\n---\n\n" + blocks([*parts, *_parity(parity)])


def _head(record: dict[str, Any], named: str, repo: str, revision: str | None, class_name: str | None) -> Iterator[str]:
    tool = record["tool"]
    yield f"<!-- {MARK}: without this line a card is yours, and the next push keeps it -->"
    yield f"# {text(repo.rpartition('/')[2] or named)}"
    made_by = f"{code(tool['name'])} {text(tool['version'])}"
    yield f"{code(named)}, converted to the layout of diffusers by {made_by}."
    config = next((PurePosixPath(name) for name in record["written"] if PurePosixPath(name).name == CONFIG), None)
    if repo and config and class_name and class_name.isidentifier():
        folder = str(config.parent)
        where = [json.dumps(repo), *([f"subfolder={json.dumps(folder)}"] if folder != "." else [])]
        where += [f"revision={json.dumps(revision)}"] if revision else []
        load = f"transformer = {class_name}.from_pretrained({', '.join(where)})"
        yield fenced(f"from diffusers import {class_name}\n\n{load}", "python")


def _made(record: dict[str, Any], named: str, revision: str) -> Iterator[str]:
    made, others = record["source"], [c for c in record["candidates"] if not c["selected"]]
    rows = [
        ["source", code(named)],
        ["revision", code(revision)],
        ["file", code(made["name"] if made["name"] != named else "")],
        ["size", human_bytes(int(made["size"]))],
        ["container", text(made["container"])],
        ["weights", f"{SPOKEN[made['weights']]}, from {code(made['where'])}"],
        ["also there", ", ".join(f"{SPOKEN[c['weights']]} weights ({text(c['where'])})" for c in others)],
        ["key prefix removed", code(made["prefix"])],
        ["model", f"{text(record['family'])}, {text(record['layout'])} layout"],
        ["parameters", f"{int(record['parameters']):,} in {int(record['tensors'])} tensors"],
        ["dtypes", ", ".join(f"{code(name)} x {int(count)}" for name, count in record["dtypes"].items())],
        *([f"SHA-256 of {code(name)}", code(file["sha256"])] for name, file in record["sources"].items()),
    ]
    yield "## What it was made from"
    yield table(["", ""], [row for row in rows if row[1]])

    done = Counter(row["operation"] for row in record["plan"])
    counts = ", ".join(f"{count} {_OPERATIONS.get(name, text(name))}" for name, count in done.items())
    cast = record.get("cast")
    yield "## How"
    yield f"Of the source's tensors, {counts}." + (
        f" The weights were rounded to {code(cast)}."
        if cast
        else " The bytes of the weights are the source's: nothing was computed with them."
    )
    yield (
        f"Every byte written was read back. {code(RECORD)} holds the plan tensor by tensor with the SHA-256 of each"
        + (f", and {code(SIDECAR)} what diffusers has no place for." if SIDECAR in record["written"] else ".")
    )
    yield table(["file", "size", "SHA-256"], [_file(name, file) for name, file in record["written"].items()])


def _file(name: str, file: dict[str, Any]) -> list[str]:
    header = f"header: {code(file['header_sha256'])}" if file.get("header_sha256") else ""
    return [code(name), human_bytes(int(file["size"])), code(file.get("sha256") or "") or header]


def _shown(record: dict[str, Any]) -> Iterator[str]:
    """What the model is, with the evidence; what there was none for; and what to know."""
    found = record["hyper_parameters"]
    yield "## Hyper-parameters"
    rows = []
    for name, f in found.items():
        value, how = "" if f["value"] is None else f["value"], _HOW_KNOWN.get(f["source"], f["source"])
        rows.append([code(name), code(value), text(how), text(f["evidence"])])
    yield table(["name", "value", "how it is known", "evidence"], rows)
    assumed = [f"{code(name)} = {code(f['value'])}" for name, f in found.items() if f["source"] == "assumed"]
    yield (
        f"Assumed, as the source holds no evidence of it: {', '.join(assumed)}. If that is wrong, so is the model."
        if assumed
        else "Nothing was assumed."
    )
    if record["notes"]:
        yield "## Notes"
        yield bullets(text(note) for note in record["notes"])


def _parity(parity: dict[str, Any] | None) -> Iterator[str]:
    """What the parity checker said, in words."""
    yield "## Is it the same model?"
    if parity is None:
        yield (
            "Nobody has compared the two nets yet. "
            f"{code('pixart parity --orig_ckpt_path ORIGINAL --converted_path FOLDER')} does."
        )
        return
    report = published(Report.from_dict(parity))
    yield f"{ICONS[report.verdict]} **{report.verdict}**: {text(report.reason)}"
    yield WORDING.meaning[report.verdict]
    yield bullets(f"{number.label}: **{number.value}** {text(number.words)}" for number in facts.key_numbers(report))
    phases = [[text(phase.name), text(phase.verdict), text(phase.words)] for phase in report.phases]
    yield table(["phase", "verdict", "in words"], phases)
    digests = [
        [side, code(about["sha256"])]
        for side, about in (("original", report.original), ("converted", report.converted))
        if about.get("sha256")
    ]
    yield table(["compared", "SHA-256"], digests) if digests else ""
    yield f"All of it is in {code(PARITY)}."
