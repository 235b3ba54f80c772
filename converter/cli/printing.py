"""Results as lines: `name: value`, so that a person reads them and a script can cut them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..errors import human_bytes, plural, printable
from ..filenames import SIDECAR
from ..mapping import fold, summed_up

if TYPE_CHECKING:
    from pathlib import Path

    from ..conversion.convert import Conversion
    from ..new_family import Draft


def _source_lines(record: dict[str, Any]) -> Iterator[str]:
    source = record["source"]
    yield f"source: {printable(source['name'])}, {human_bytes(source['size'])}, {source['container']}"
    yield f"weights: {source['weights']} ({source['where']})" + (
        f", prefix {source['prefix']!r} removed" if source["prefix"] else ""
    )


def _model_lines(record: dict[str, Any]) -> Iterator[str]:
    yield f"model: {model_words(record)}"


def model_words(about: dict[str, Any]) -> str:
    """What a model is, of a record or of a side of a comparison, in a few words.

    >>> model_words({"family": None, "parameters": 12, "dtypes": {"float16": 1, "float32": 2}})
    'unknown family, 1.2e-05 M parameters, 3 tensors (1 float16, 2 float32)'
    """
    dtypes = about["dtypes"]
    kind = f"{about['family']}, {about['layout']} layout" if about["family"] else "unknown family"
    kinds = ", ".join(f"{count} {name}" if len(dtypes) > 1 else name for name, count in dtypes.items())
    tensors = plural(sum(dtypes.values()), "tensor")
    return f"{kind}, {about['parameters'] / 1e6:.4g} M parameters, {tensors} ({kinds})"


def _evidence_lines(record: dict[str, Any]) -> Iterator[str]:
    width = max(map(len, record["hyper_parameters"]), default=0)
    for name, finding in record["hyper_parameters"].items():
        value = "?" if finding["value"] is None else finding["value"]
        yield f"  {name:<{width}}  {value!s:<8} {finding['source']:<8} {printable(finding['evidence'], 300)}"


# Where the alpha of an adapter is from.
_ALPHA = {
    "file": "alpha {alpha:.4g} in the file",
    "config": "alpha {alpha:.4g} by adapter_config.json",
    "header": "alpha {alpha:.4g} by the header",
    "given": "alpha {alpha:.4g}, given",
    "assumed": "alpha {alpha:.4g}, assumed",
    "convention": "no alpha, which means this",
    "unknown": "alpha unknown",
}


def _adapter_lines(report: dict[str, Any]) -> Iterator[str]:
    """What an adapter is, of the report of `pixart inspect` or of its conversion."""
    source, adapter = report["source"], report["adapter"]
    yield f"source: {printable(source['name'])}, {human_bytes(source['size'])}, {source['container']}"
    kinds = ", ".join(f"{kind} ({plural(count, 'module')})" for kind, count in adapter["kinds"].items())
    tool = f", written by {adapter['tool']}" if adapter["tool"] else ""
    family, layout, rest = model_words(report).split(", ", 2)
    yield f"adapter: {kinds or 'nothing that can be used'}, for {family} in the {layout}; {rest}"
    title = "" if adapter["title"].lower() == adapter["spelling"] else f" ({adapter['title']})"
    yield f"spelling: {adapter['spelling']}{title}{tool}"
    rslora = ", rsLoRA" if adapter["rslora"] else ""
    for group in adapter["scales"]:
        rank = "" if group["rank"] is None else f"rank {group['rank']}, "
        alpha = "no rank" if group["alpha"] is None else _ALPHA[group["source"]].format(alpha=group["alpha"]) + rslora
        yield f"  {rank}scale {group['scale']:.4g} ({alpha}): {plural(group['modules'], 'module')}"


def adapter_inspection_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report of `pixart inspect` of an adapter."""
    yield from _adapter_lines(report)
    yield from (f"  {printable(module)}" for module in report["adapter"]["modules"])
    yield from (f"note: {note}" for note in report["notes"])
    yield from (f"problem: {problem}" for problem in report["problems"])
    needs = report["needs"].partition(" is needed")[0]
    yield "usable: " + ("no" if report["problems"] else f"with {needs}" if needs else "yes")


def adapter_conversion_lines(done: Conversion, seconds: float) -> Iterator[str]:
    """What `convert-pixart` prints of an adapter."""
    record = done.record
    yield from _adapter_lines(record)
    yield from (f"note: {note}" for note in done.notes)
    if not done.written:
        yield f"dry run: nothing was written to {printable(done.path)}"
        return
    yield from wrote_lines(done.path, done.files)
    tensors = plural(record["tensors"], "tensor")
    yield f"done: {tensors} in the spelling {record['to']} in {seconds:.1f} s, read back and verified"


def inspection_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report of `pixart inspect`."""
    if "adapter" in report:
        yield from adapter_inspection_lines(report)
        return
    yield from _source_lines(report)
    for candidate in report["candidates"]:
        if not candidate["selected"]:
            yield f"also there: {candidate['weights']} weights ({candidate['where']})"
        if "why" in candidate:
            yield f"note: {candidate['where']}: {candidate['why']}"
    if report["left_out"]:
        yield f"left out, not part of the model: {summed_up(report['left_out'])}"
    if report["other_entries"]:
        yield f"other entries: {'; '.join(report['other_entries'])}"
    yield from _model_lines(report)
    if report["hyper_parameters"]:
        yield "hyper-parameters:"
        yield from _evidence_lines(report)
    if read := report.get("deep"):
        proof = "verified against its checksums" if read["checksums"] else "which has no checksums"
        shown = "" if read["checksums"] and report["problems"] else f", {proof}"
        yield f"read: all {human_bytes(read['bytes'])} of the {report['source']['weights']} weights{shown}"
    for title in ("features", "dropped", "sidecar"):
        if report[title]:
            yield f"{title}: {', '.join(map(printable, report[title]))}"
    for item in report["foreign_objects"]:
        yield f"foreign object: {item['name']}" + (
            " (DANGEROUS: it can run code in other readers)" if item["dangerous"] else ""
        )
    yield from (f"note: {note}" for note in report["notes"])
    yield from (f"problem: {problem}" for problem in report["problems"])
    yield "convertible: " + ("no" if report["problems"] else _missing(report["needs"], report["unknown"]) or "yes")


def _missing(needs: str, unknown: list[str]) -> str:
    """What a conversion would ask for: the flags of "--flag is needed: why" (the reason stands with the evidence)."""
    first = re.findall(r"(?:^|; )(--\w+)(?= is needed: )", needs)
    more = [flag for name in unknown if (flag := f"--{name}") not in first]
    words = f", and perhaps {', '.join(more)}" if more else ""
    return f"with {', '.join(first) or printable(needs)}{words}" if needs else ""


def conversion_lines(done: Conversion, seconds: float) -> Iterator[str]:
    """What `convert-pixart` prints."""
    record = done.record
    if "adapter" in record:
        yield from adapter_conversion_lines(done, seconds)
        return
    yield from _source_lines(record)
    yield from _model_lines(record)
    if done.written:
        yield from assumed_lines(record)
    else:
        yield "hyper-parameters:"
        yield from _evidence_lines(record)
        yield "plan:"
        yield from _plan_lines(record["plan"])
    yield from done.added
    yield from (f"note: {note}" for note in done.notes)
    if not done.written:
        yield f"dry run: nothing was written to {printable(done.path)}"
        return
    yield from wrote_lines(done.path, done.files)
    cast = f", rounded to {record['cast']}" if record["cast"] else ""
    tensors = plural(len(record["plan"]), "tensor")
    yield f"done: {tensors}{cast} in {seconds:.1f} s, read back and verified{_account(record)}"


def _account(record: dict[str, Any]) -> str:
    """Where the tensors of the original layout went to, or came from; '' where all are as they were."""
    rows = record["plan"]
    kept = [row for row in rows if "sidecar" in row]
    computed = [row for row in rows if row["operation"] == "recompute" and "sidecar" not in row]
    moved = len(rows) - len(kept) - len(computed)
    if record["to"] == "diffusers":
        parts = [(moved, "in the model"), (len(kept), f"in {SIDECAR}"), (len(computed), "left to diffusers to compute")]
    else:
        read = sum(len(row.get("sources", [row["source"]])) for row in rows if row["operation"] != "recompute")
        parts = [(moved, f"from the {read} that were read"), (len(computed), "computed")]
        if read == len(rows):
            return ""
    return ": " + ", ".join(f"{count} {where}" for count, where in parts if count)


def assumed_lines(record: dict[str, Any]) -> Iterator[str]:
    """What neither the file nor the user says."""
    for name, finding in record["hyper_parameters"].items():
        if finding["source"] == "assumed":
            yield f"assumed: {name} = {finding['value']} ({finding['evidence']})"


def assumed_together(record: dict[str, Any]) -> list[str]:
    """The same in one line, for one of several checkpoints; no line where nothing is assumed."""
    findings = record["hyper_parameters"].items()
    values = [f"{name} = {finding['value']}" for name, finding in findings if finding["source"] == "assumed"]
    return [f"assumed: {', '.join(values)}"] if values else []


def wrote_lines(path: Path | str, files: dict[str, int]) -> Iterator[str]:
    """The files that were written, with their sizes, in a folder or as the only one."""
    for name, size in files.items():
        inside = os.path.isdir(path) or (isinstance(path, str) and path.rpartition("/")[2] != name)
        yield f"wrote: {printable(f'{path}/{name}' if inside else path)} ({human_bytes(size)})"


def _plan_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The rows of the plan; what is done alike in every block is one line."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        alike = (row["operation"], str(row["shape"]), re.sub(r"\.\d+\.", ".{}.", row["source"], count=1))
        groups.setdefault(alike, []).append(row)
    for (operation, shape, _), members in groups.items():
        targets = [row.get("targets", [row["sidecar"]] if "sidecar" in row else []) for row in members]
        # A part of each is one name; of copies there are as many as blocks.
        parts: Iterable[Iterable[str]] = [chain(*targets)] if operation == "copy" else zip(*targets, strict=True)
        to = ", ".join(name for part in parts for name in fold(part))
        sources = ", ".join(fold(name for row in members for name in row.get("sources", [row["source"]])))
        yield f"  {sources} {shape} -> {operation}" + (f": {to}" if to else "")


def draft_lines(path: Path, draft: Draft) -> Iterator[str]:
    """What `pixart new-family` prints."""
    for row in draft.rows:
        if row.doubt:
            yield f"? {row.source} [{row.pattern}] -> {', '.join(row.targets) or row.kind}: {row.doubt}"
    for what, paths in (("no row yet", draft.unmatched_source), ("no source yet", draft.unmatched_target)):
        yield from (f"{what}: {printable(path)}" for path in paths)
    yield from (f"? {one.name}: {printable(one.doubt)}" for one in draft.shown if one.doubt)
    for doubt in dict.fromkeys(one.doubt for one in draft.fields if one.doubt):
        keys = ", ".join(printable(one.key) for one in draft.fields if one.doubt == doubt)
        yield f"? config.json: {keys}: {printable(doubt)}"
    yield from (f"note: {printable(note)}" for note in draft.notes)
    values = f"; {draft.unsure_values} other values to check" if draft.unsure_values else ""
    yield f"wrote: {printable(path)}, {len(draft.rows)} rows, {draft.unsure} of them to check (# ?){values}"
