"""The model card: what a published conversion was made from, how, and what the parity checker says of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from ..checkpoint.folder import CONFIG
from ..checkpoint.weights_kind import LABELS
from ..errors import human_bytes
from ..filenames import PARITY, RECORD, SIDECAR
from ..hub.names import hub_path
from ..reports import facts
from ..reports.markdown import ICONS
from ..reports.markdown_text import blocks, bullets, code, fenced, table, text
from ..reports.published import published, without_paths
from ..reports.report import Report
from ..reports.wording import MEANING
from .target import MARK

_OPERATIONS = {"rename": "renamed", "split": "split", "sidecar": "kept in the sidecar", "recompute": "recomputed"}
_HOW_KNOWN = {"file": "read from the file", "given": "given by the user", "assumed": "assumed"}


def card(
    record: dict[str, Any],
    parity: dict[str, Any] | None = None,
    *,
    repo: str = "",
    source: str | None = None,
    revision: str | None = None,
    class_names: Mapping[str, object] | None = None,
    paths: Iterable[object] = (),
) -> str:
    """The card of a conversion, as Markdown with the hub's metadata in YAML; no paths of this computer.

    Args:
        record: the content of `conversion.json`, `parity` that of `parity.json`. No text in them can break out.
        repo, revision: where it is published, for the example that loads it from there.
        source: how the source was named. It is shown where that is a place on the hub, the repository of which is then
            the base model; a path says nothing to others.
        class_names: of each of the `model_folders`, what its config names as its class.
        paths: that may stand in the texts of the record, however they are spelled.

    Raises: what a dict raises that is not such a record: KeyError, TypeError, AttributeError, ValueError.
    """
    from huggingface_hub import ModelCardData

    on_hub = hub_path(source) if source else None
    record = without_paths(record, [*paths, *([] if on_hub or not source else [source])])
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=on_hub.repo if on_hub else None,
        tags=[str(record["family"])],
    )
    name = "/".join(filter(None, (f"hf://{on_hub.repo}", on_hub.path))) if on_hub else record["source"]["name"]
    parts = [
        *_head(record, name, repo, revision, class_names=class_names or {}),
        *_source(record, name, (on_hub.revision if on_hub else None) or ""),
        *_conversion(record),
        *_hyper_parameters(record),
        *_parity(parity),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + blocks(parts)


def model_folders(record: dict[str, Any]) -> list[str]:
    """The folders of a record that hold a model's config and weights: one, or of a ControlNet and its base two.

    >>> written = ["net/config.json", "net/diffusion_pytorch_model.safetensors", "sidecar.safetensors"]
    >>> model_folders({"written": {name: {"header_sha256": ""} for name in written}})
    ['net']
    """
    # Of a component, which was copied, nothing but the whole is hashed.
    weights = (PurePosixPath(name) for name, about in record["written"].items() if "header_sha256" in about)
    folders = dict.fromkeys(str(path.parent) for path in weights)
    return [folder for folder in folders if f"{folder}/{CONFIG}" in record["written"]]


def _head(
    record: dict[str, Any], name: str, repo: str, revision: str | None, class_names: Mapping[str, object]
) -> Iterator[str]:
    tool = f"{code(record['tool']['name'])} {text(record['tool']['version'])}"
    yield f"<!-- {MARK}: delete this line to make the next push keep your card -->"
    yield f"# {text(repo.rpartition('/')[2] or name)}"
    yield f"{code(name)}, converted to the layout of diffusers by {tool}."
    classes, loads = list[str](), list[str]()
    for folder in model_folders(record) if repo else ():
        class_name = str(class_names.get(folder, ""))
        if not class_name.isidentifier():
            continue
        # A module beside the config: the class travels with the weights.
        travels = any(PurePosixPath(path).match(f"{folder}/*.py") for path in record["written"])
        classes.append("AutoModel" if travels else class_name)
        arguments = [json.dumps(repo), f"subfolder={json.dumps(folder)}"]
        arguments += [f"revision={json.dumps(revision)}"] if revision else []
        arguments += ["trust_remote_code=True"] if travels else []
        variable = folder if folder.isidentifier() else "model"
        loads.append(f"{variable} = {classes[-1]}.from_pretrained({', '.join(arguments)})")
    if loads:
        imported = ", ".join(sorted({*classes}))
        yield fenced("\n".join([f"from diffusers import {imported}", "", *loads]), "python")


def _source(record: dict[str, Any], name: str, revision: str) -> Iterator[str]:
    source, others = record["source"], [c for c in record["candidates"] if not c["selected"]]
    rows = [
        ["source", code(name)],
        ["revision", code(revision)],
        ["file", code(source["name"] if source["name"] != name else "")],
        ["size", human_bytes(int(source["size"]))],
        ["container", text(source["container"])],
        ["weights", f"{LABELS[source['weights']]}, from {code(source['where'])}"],
        ["also there", ", ".join(f"{LABELS[c['weights']]} weights ({text(c['where'])})" for c in others)],
        ["key prefix removed", code(source["prefix"])],
        ["model", f"{text(record['family'])}, {text(record['layout'])} layout"],
        ["parameters", f"{int(record['parameters']):,} in {int(record['tensors'])} tensors"],
        ["tensors", ", ".join(f"{int(count)} of {code(dtype)}" for dtype, count in record["dtypes"].items())],
        *([f"SHA-256 of {code(file)}", code(about["sha256"])] for file, about in record["sources"].items()),
    ]
    yield "## What it was made from"
    yield table(["", ""], [row for row in rows if row[1]])


def _conversion(record: dict[str, Any]) -> Iterator[str]:
    operations = Counter(row["operation"] for row in record["plan"])
    counts = ", ".join(f"{count} {_OPERATIONS.get(name, text(name))}" for name, count in operations.items())
    weights = "The bytes of the weights are the source's: nothing was computed with them."
    if record.get("cast"):
        weights = f"The weights were rounded to {code(record['cast'])}."
    sidecar = f", and {code(SIDECAR)} what diffusers has no place for" if SIDECAR in record["written"] else ""
    yield "## How"
    yield f"The source's tensors: {counts}. {weights}"
    yield (
        f"Every byte written was read back. {code(RECORD)} holds the plan tensor by tensor "
        f"with a digest of each{sidecar}."
    )
    rows = []
    for name, file in record["written"].items():
        header = f"header: {code(file['header_sha256'])}" if file.get("header_sha256") else ""
        rows.append([code(name), human_bytes(int(file["size"])), code(file.get("sha256") or "") or header])
    yield table(["file", "size", "SHA-256"], rows)


def _hyper_parameters(record: dict[str, Any]) -> Iterator[str]:
    """What the model is, with the evidence; what was assumed without any; and the notes."""
    findings = record["hyper_parameters"]
    yield "## Hyper-parameters"
    rows = []
    for name, f in findings.items():
        value, how = "" if f["value"] is None else f["value"], _HOW_KNOWN.get(f["source"], f["source"])
        rows.append([code(name), code(value), text(how), text(f["evidence"])])
    yield table(["name", "value", "how it is known", "evidence"], rows)
    assumed = [f"{code(name)} = {code(f['value'])}" for name, f in findings.items() if f["source"] == "assumed"]
    yield (
        f"Assumed, as the source holds no evidence of it: {', '.join(assumed)}. If that is wrong, so is the model."
        if assumed
        else "Nothing was assumed."
    )
    if record["notes"]:
        yield "## Notes"
        yield bullets(text(note) for note in record["notes"])


def _parity(parity: dict[str, Any] | None) -> Iterator[str]:
    """The verdict of the parity checker, and what it rests on."""
    yield "## Is it the same model?"
    if parity is None:
        yield (
            "Nobody has compared the two nets yet. "
            f"{code('pixart parity --orig_ckpt_path ORIGINAL --converted_path FOLDER')} does."
        )
        return
    report = published(Report.from_dict(parity))
    yield f"{ICONS[report.verdict]} **{report.verdict}**: {text(report.reason)}"
    yield MEANING[report.verdict]
    yield bullets(f"{number.label}: **{number.value}** {text(number.words)}" for number in facts.key_numbers(report))
    phases = [[text(phase.name), text(phase.verdict), text(phase.words)] for phase in report.phases]
    yield table(["phase", "verdict", "in words"], phases)
    digests = [
        [side, code(about["sha256"])]
        for side, about in (("original", report.original), ("converted", report.converted))
        if about.get("sha256")
    ]
    yield table(["compared", "SHA-256"], digests) if digests else ""
    yield f"Full report: {code(PARITY)}."
