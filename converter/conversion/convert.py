"""`convert`: a checkpoint becomes a folder for diffusers or a file in the original layout, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoint.write.publish import Publication
from ..checkpoint.write.target import REPLACED, leftovers
from ..checkpoint.write.transfer import Progress
from ..errors import printable
from ..filenames import RECORD
from ..hub.redaction import redacted
from ..remote import is_url, send, target_at
from .additions import Adding
from .alterations import Altering
from .options import ConversionOptions, with_shortcuts
from .plan import ConversionPlan, digest_of, open_plan
from .verdicts import give_verdict
from .write import Written, write_files


@dataclass
class Conversion:
    """What was done, or would be in a dry run: `record` is the content of `conversion.json` (not written for a
    single file), `files` the sizes, `added` says what stands beside the model; `path` is a URL where one was given."""

    path: Path | str
    record: dict[str, Any]
    notes: list[str]
    written: bool
    files: dict[str, int] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)


def convert(
    orig_ckpt_path: str | os.PathLike[str],
    dump_path: str | os.PathLike[str],
    options: ConversionOptions | None = None,
    *,
    hyper_parameters: Mapping[str, Any] | None = None,
    components: Adding | None = None,
    altering: Altering | None = None,
    progress: Callable[[int], Progress] | None = None,
    **shortcuts: Any,
) -> Conversion:
    """Convert a checkpoint of any accepted kind to the diffusers layout, or back to the original one.

    Args:
        orig_ckpt_path: any accepted file or folder, a hub id, `hf://owner/name/file`, or a URL of fsspec, such as
            `s3://bucket/runs/epoch_5.pth`, of which only what is needed is fetched.
        dump_path: where the result goes, a path or such a URL; it appears whole or not at all.
        options: what may be chosen; see `ConversionOptions`.
        hyper_parameters: what the file cannot show, by name, such as `{"num_attention_heads": 16}`.
        components: makes it a whole pipeline: `converter.pipelines.assemble.Components`. Default: the transformer only.
        altering: changes tensors on the way, as `converter.merge_lora` does. Default: none is changed.
        progress: called with the number of bytes to come; returns what is called with each count of bytes done.
        shortcuts: fields of `ConversionOptions`, which take the place of those in `options`.

    Returns: a `Conversion`.

    Raises: `InputError` (exit code 3) for a file that is refused, `UsageError` (2) for a call that is,
    `ConverterError` itself (5) where the disk fills up or fails.

    Example:
        >>> done = convert("fixtures/golden/sigma-ms.pth", tmp / "out", hyper_parameters={"num_attention_heads": 4})
        >>> sorted(p.name for p in done.path.rglob("*.*"))
        ['config.json', 'conversion.json', 'diffusion_pytorch_model.safetensors', 'original_extras.safetensors']
        >>> back = convert(tmp / "out", tmp / "back.pth", to="original")
        >>> back.record["plan"][0]["targets"]
        ['pos_embed']
    """
    options = with_shortcuts(options or ConversionOptions(), shortcuts)
    if is_url(dump_path):
        with target_at(dump_path, orig_ckpt_path) as target:
            known: dict[str, Any] = {
                "hyper_parameters": hyper_parameters, "components": components, "altering": altering
            }  # fmt: skip
            done = convert(orig_ckpt_path, target.path, options, progress=progress, **known)
            notes = [*map(target.words, done.notes), *([send(target)] if done.written else [])]
            return replace(done, path=redacted(dump_path), notes=notes)
    extra: dict[str, Any] = {"components": components, "altering": altering, "quiet": progress is None}
    planned = open_plan(orig_ckpt_path, dump_path, options, hyper_parameters or {}, **extra)
    with planned as plan:
        destination, sizes, afterwards = plan.destination, dict[str, int](), list[str]()
        if not options.dry_run:
            with destination.publication(plan.size, overwrite=options.overwrite) as out:
                sizes = _write(out, plan, options, progress)
                for file in plan.analysis.checkpoint.files:
                    if file.fetching:
                        file.fetching.check_unchanged()
                out.publish()
            afterwards = out.notes
        there = [destination.there] if destination.there else []
        notes = [*plan.notes, *there, *afterwards, *_leftovers(destination.path, afterwards)]
        record = plan.record.as_dict()
        added = [*plan.additions.lines]
        return Conversion(destination.path, record, notes, written=not options.dry_run, files=sizes, added=added)


def _write(
    out: Publication,
    plan: ConversionPlan,
    options: ConversionOptions,
    progress: Callable[[int], Progress] | None,
) -> dict[str, int]:
    """Write the tensors, the texts and, last, the record, which says what was written; returns the files' sizes."""
    record, sidecar = plan.record, plan.sidecar
    total = sum(part.nbytes for part in plan.parts) + plan.additions.size
    step = progress(total) if progress else lambda count: None
    written = write_files(out, plan.files, plan.parts, step=step, digests=plan.writes.stated)
    notes, record.changed = give_verdict(plan.analysis, plan.writes, written, options, given=plan.sidecar.given)
    record.notes += notes
    _add_digests(plan, written)
    for name, text in plan.texts.items():
        out.write_text(name, text)
    record.written = written.files | {name: digest_of(text.encode()) for name, text in plan.texts.items()}
    record.written |= plan.additions.write(out, step)
    sizes = {name: int(file["size"]) for name, file in record.written.items() if "link" not in file}
    if plan.destination.folder:
        # Earlier changes are not confirmed: the digests stated of them are passed on.
        anew = (plan.writes.rounded | plan.writes.altered | sidecar.given.keys()) - record.changed.keys()
        digests = {key: text for name in anew for key, text in written.digests.get(name, {}).items()}
        record.earlier = sidecar.record.history(digests)
        text = json.dumps(record.as_dict(), indent=1, ensure_ascii=False) + "\n"
        out.write_text(RECORD, text)
        sizes[RECORD] = len(text.encode())
    return sizes


def _add_digests(plan: ConversionPlan, written: Written) -> None:
    """The parts of a split tensor are, in order, its bytes, and every copy is all of them. What was read to compare it
    gives way to what was written: the file may have changed in between, and not every kind has checksums."""
    for row in plan.record.plan:
        digests = [written.digests[key] for key in row.sources if key in written.digests]
        if len(row.sources) == 1:
            row.digests = digests[0] if digests else row.digests
        else:
            row.digests = {key: next(iter(of.values())) for key, of in zip(row.sources, digests, strict=True)}


_LEFTOVER_NOTES = {
    ".partial": "is left from an interrupted run: delete it, unless a run is still writing there",
    ".old": "is an earlier result, whole: a run was interrupted while replacing it",
    REPLACED: "is left over from a replaced earlier result: delete it",
}


def _leftovers(target: Path, noted: list[str]) -> list[str]:
    """What lies beside the target, but for what is `noted` already; it is no part of the record, which depends on the
    input alone."""
    left = [(printable(path), _LEFTOVER_NOTES[path.suffix]) for path in leftovers(target)]
    return [f"{path} {what}" for path, what in left if not any(note.startswith(path) for note in noted)]
