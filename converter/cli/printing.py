"""Results as lines: `name: value`, so that a person reads them and a script can cut them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..errors import human_bytes, printable
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
    dtypes = ", ".join(f"{name} x {count}" for name, count in record["dtypes"].items())
    kind = f"{record['family']}, {record['layout']} layout" if record["family"] else "unknown family"
    yield f"model: {kind}, {record['parameters'] / 1e6:.4g} M parameters, {dtypes}"


def _evidence_lines(record: dict[str, Any]) -> Iterator[str]:
    width = max(map(len, record["hyper_parameters"]), default=0)
    for name, finding in record["hyper_parameters"].items():
        value = "?" if finding["value"] is None else finding["value"]
        yield f"  {name:<{width}}  {value!s:<8} {finding['source']:<8} {printable(finding['evidence'], 300)}"


def inspection_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report of `pixart inspect`."""
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
    """What a conversion would ask for: the flag of "--flag is needed: why" (the reason stands with the evidence)."""
    first = needs.partition(" is needed: ")[0]
    more = [flag for name in unknown if (flag := f"--{name}") != first]
    words = f", and perhaps {', '.join(more)}" if more else ""
    return f"with {printable(first)}{words}" if needs else ""


def conversion_lines(done: Conversion, seconds: float) -> Iterator[str]:
    """What `convert-pixart` prints."""
    record = done.record
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
    yield f"done: {record['tensors']} tensors{cast} in {seconds:.1f} s, read back and verified"


def assumed_lines(record: dict[str, Any]) -> Iterator[str]:
    """What neither the file nor the user says."""
    for name, finding in record["hyper_parameters"].items():
        if finding["source"] == "assumed":
            yield f"assumed: {name} = {finding['value']} ({finding['evidence']})"


def wrote_lines(path: Path, files: dict[str, int]) -> Iterator[str]:
    """The files that were written, with their sizes, in a folder or as the only one."""
    for name, size in files.items():
        yield f"wrote: {printable(path / name if os.path.isdir(path) else path)} ({human_bytes(size)})"


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
    yield from (f"note: {note}" for note in draft.notes)
    yield f"wrote: {printable(path)}, {len(draft.rows)} rows, {draft.unsure} of them to check (# ?)"
