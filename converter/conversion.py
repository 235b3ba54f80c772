"""`convert`: a checkpoint becomes a folder for diffusers or a file in the original layout, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .beside import CHANGED, survey_again
from .checkpoint import open_checkpoint
from .checkpoint.file import reading
from .checkpoint.publish import Publication
from .checkpoint.target import REPLACED, leftovers
from .checkpoint.transfer import Progress
from .destination import Destination, ours
from .errors import InputError, UsageError, printable
from .existing import holds
from .hub import local
from .planning import Blueprint, digest_of, draw_up
from .record import EXTRAS, PARITY, RECORD
from .writing import Written, counted, write_files


@dataclass
class Conversion:
    """What was done, or in a dry run would be: `record` is the content of `conversion.json` (of a single file, which
    has none beside it, what would be), `files` the sizes."""

    path: Path
    record: dict[str, Any]
    notes: list[str]
    written: bool
    files: dict[str, int] = field(default_factory=dict)


def convert(
    orig_ckpt_path: str | os.PathLike[str],
    dump_path: str | os.PathLike[str],
    *,
    to: str = "diffusers",
    dtype: str | None = None,
    max_shard_size: str | int | None = None,
    variant: str | None = None,
    null_caption: str | os.PathLike[str] | None = None,
    weights: str | None = None,
    family: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    allow_nonfinite: bool = False,
    allow_overflow: bool = False,
    progress: Callable[[int], Progress] | None = None,
    **given: Any,
) -> Conversion:
    """Convert a checkpoint of any accepted kind to the diffusers layout, or back to the original one.

    Args:
        orig_ckpt_path: any accepted file or folder, a hub id, or `hf://owner/name/file`.
        dump_path: what to make; it appears whole or not at all.
        to: 'diffusers' (a folder), 'original' (a `.pth`, `.pt` or `.safetensors`) or 'comfyui' (a `.safetensors` with
            the original's keys, prefixed as ComfyUI reads them).
        dtype: round the model's weights to 'float32', 'float16' or 'bfloat16', to nearest, ties to even.
        max_shard_size: bytes, or a size such as '5GB'; larger models are written in several files and an index.
        variant: put this into the names of the weights, as in `diffusion_pytorch_model.fp16.safetensors`.
        null_caption: a file that holds the null caption, where the source does not.
        weights: 'raw' or 'ema' where the file holds both (default: raw).
        family: insist on a model family instead of recognising it.
        overwrite: replace a file, or a folder that holds what an earlier conversion wrote, by its record, and nothing
            else.
        dry_run: plan, and write nothing.
        allow_nonfinite: let NaN and infinity through, bit for bit where nothing is cast.
        allow_overflow: let what is beyond the range of `dtype` become infinity.
        progress: called with the number of bytes to come; returns what is called with each count of bytes done.
        given: hyper-parameters by flag name, such as `num_attention_heads=16`, for what the file cannot show.

    Returns: a `Conversion`.

    Raises: `InputError` (exit code 3) for a file that is refused, `UsageError` (2) for a call that is,
    `ConverterError` itself (5) where the disk fills up or fails.

    Example:
        >>> done = convert("fixtures/golden/sigma-ms.pth", tmp / "out", num_attention_heads=4)
        >>> sorted(p.name for p in done.path.rglob("*.*"))
        ['config.json', 'conversion.json', 'diffusion_pytorch_model.safetensors', 'original_extras.safetensors']
        >>> back = convert(tmp / "out", tmp / "back.pth", to="original")
        >>> back.record["plan"][0]["targets"]
        ['pos_embed']
    """
    wanted = Destination.of(dump_path, to, dtype, max_shard_size, variant)
    # Asked before anything is fetched, and once more when it is known where the source lies.
    wanted.check(Path(orig_ckpt_path), overwrite=overwrite)
    if not wanted.folder and wanted.path.name == EXTRAS:
        raise UsageError(f"{printable(wanted.path)}: is the name of a conversion's sidecar; take another")
    with reading(null_caption or ""):  # a path at all
        pass
    if null_caption is not None and os.path.realpath(null_caption) == os.path.realpath(wanted.path):
        raise UsageError(f"{printable(wanted.path)}: is the null caption that is to be read; name a place elsewhere")
    source = local(orig_ckpt_path, quiet=progress is None)
    wanted = wanted.check(source, overwrite=overwrite)
    with ExitStack() as stack:
        with reading(source):
            checkpoint = stack.enter_context(open_checkpoint(source, weights))
            plan = draw_up(survey_again(checkpoint, given, family), wanted, null_caption, stack)
        if source != Path(orig_ckpt_path):  # in the cache it has a name that says nothing
            plan.record["source"]["name"] = printable(orig_ckpt_path)
        sizes: dict[str, int] = {}
        afterwards: list[str] = []
        if not dry_run:
            with wanted.publication(plan.size, overwrite=overwrite) as out:
                sizes = _write(out, plan, allow_nonfinite, allow_overflow, progress)
                out.publish()
            afterwards = out.notes
        notes = [*plan.notes, *afterwards, *_leftovers(wanted.path, afterwards)]
        return Conversion(wanted.path, plan.record, notes, not dry_run, sizes)


def is_done(
    orig_ckpt_path: str | os.PathLike[str],
    dump_path: str | os.PathLike[str],
    *,
    to: str = "diffusers",
    dtype: str | None = None,
    max_shard_size: str | int | None = None,
    variant: str | None = None,
    null_caption: str | os.PathLike[str] | None = None,
    weights: str | None = None,
    family: str | None = None,
    **given: Any,
) -> bool:
    """Whether `dump_path` holds already what `convert` with the same words would write there, to the last bit.

    Both sides are read and hashed. Words that change nothing of the result are accepted and ignored.
    """
    wanted = Destination.of(dump_path, to, dtype, max_shard_size, variant)
    given = {name: value for name, value in given.items() if name not in _OF_WRITING}
    source = local(orig_ckpt_path, quiet=True)
    wanted = wanted.check(source, overwrite=True)
    with ExitStack() as stack, reading(source):
        checkpoint = stack.enter_context(open_checkpoint(source, weights))
        plan = draw_up(survey_again(checkpoint, given, family), wanted, null_caption, stack)
        names = {RECORD, PARITY, *plan.texts, *(file.name for file in plan.files)}
        if wanted.folder and ours(wanted.path) != names:
            return False  # without its record, or with more than we would write, it is another result
        return holds(wanted.path if wanted.folder else wanted.path.parent, plan.files, plan.parts, plan.texts)


_OF_WRITING = ("overwrite", "dry_run", "allow_nonfinite", "allow_overflow", "progress")


def _write(
    out: Publication,
    plan: Blueprint,
    allow_nonfinite: bool,
    allow_overflow: bool,
    progress: Callable[[int], Progress] | None,
) -> dict[str, int]:
    """Write the tensors, the texts and, last, the record, which tells what was found; returns the files' sizes."""
    total = sum(part.nbytes for part in plan.parts)
    step = progress(total) if progress else lambda count: None
    known = plan.arranged.promised | plan.arranged.remembered
    written = write_files(out, plan.files, plan.parts, step, known)
    for bad, allowed, what, flag in (
        (written.nonfinite, allow_nonfinite, "NaN or infinite", "--allow_nonfinite converts them as they are"),
        (written.overflowed, allow_overflow, f"beyond {plan.arranged.cast}", "--allow_overflow makes them infinite"),
    ):
        if bad and not allowed:
            raise InputError(f"{printable(plan.source)}: {counted(bad, what)}; {flag}")
        if bad:
            plan.notes.append(f"{counted(bad, what)}: let through")
    plan.notes += _as_promised(plan, written)
    for row in plan.record["plan"]:
        # The parts of a split tensor are, in order, its bytes, and every copy is all of them. What was read to compare
        # it gives way to what was written: the file may have changed in between, and not every kind has checksums.
        keys = row.get("sources", [row["source"]])
        digests = [written.digests[key] for key in keys if key in written.digests]
        if len(keys) == 1:
            row["sha256"] = digests[0] if digests else row.get("sha256")
        else:
            row["sha256"] = {key: next(iter(found.values())) for key, found in zip(keys, digests, strict=True)}
    for name, text in plan.texts.items():
        out.write_text(name, text)
    plan.record["written"] = written.files | {name: digest_of(text.encode()) for name, text in plan.texts.items()}
    sizes = {name: int(file["size"]) for name, file in plan.record["written"].items()}
    if plan.recorded:
        made_anew = _cast(plan) | plan.around.given.keys()
        shas = {key: sha for name in made_anew for key, sha in written.digests.get(name, {}).items()}
        plan.record |= plan.around.record.passed_on(shas)
        record = json.dumps(plan.record, indent=1, ensure_ascii=False) + "\n"
        out.write_text(RECORD, record)
        sizes[RECORD] = len(record.encode())
    return sizes


def _cast(plan: Blueprint) -> set[str]:
    """The keys of the sources that are rounded."""
    return {tensor.key for part in plan.parts for tensor in part.sources if tensor.dtype != part.dtype}


def _as_promised(plan: Blueprint, written: Written) -> list[str]:
    """What the record of the conversion that made the source says of what was now written out of it, in words.

    Raises: `InputError` where what nobody trains is not what it was.
    """
    arranged, cast = plan.arranged, _cast(plan)
    found = {key: next(iter(made.values())) for key, made in written.digests.items() if key not in cast}
    for key, promised in arranged.promised.items():
        if found.get(key, promised) != promised:
            raise InputError.at(plan.source, key, CHANGED)
    held = [key for key in arranged.remembered if key in found]
    changed = [key for key in held if found[key] != arranged.remembered[key]]
    if changed:
        return [f"{len(changed)} of {len(held)} tensors are not what {RECORD} says was converted (trained since?)"]
    return [f"all {len(held)} tensors are what {RECORD} says was converted"] if held else []


_LEFT = {
    ".partial": "is left from an interrupted run: delete it, unless a run is still writing there",
    ".old": "is an earlier result, whole: a run was interrupted while replacing it",
    REPLACED: "is what is left of an earlier result that has been replaced: delete it",
}


def _leftovers(target: Path, said: list[str]) -> list[str]:
    """What lies beside the target, but for what is `said` already; it is no part of the record, which depends on the
    input alone."""
    found = [(printable(path), _LEFT[path.suffix]) for path in leftovers(target)]
    return [f"{path} {what}" for path, what in found if not any(note.startswith(path) for note in said)]
