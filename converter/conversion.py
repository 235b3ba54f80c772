"""`convert`: a checkpoint becomes a folder for diffusers or a file in the original layout, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._version import __version__
from .arrangement import Arrangement, to_diffusers
from .beside import look_beside
from .checkpoint import Checkpoint, open_checkpoint
from .checkpoint.folder import CONFIG, beside, model_folder
from .checkpoint.publish import Publication
from .checkpoint.safetensors_writer import lay_out_safetensors
from .checkpoint.target import leftovers
from .checkpoint.transfer import Progress
from .destination import COMFYUI, Destination
from .errors import InputError, UsageError, printable
from .existing import holds
from .hub import local
from .inspection import report
from .mapping import fold
from .record import EXTRAS, RECORD, TOOL
from .survey import Survey, survey
from .way_back import to_original
from .writing import Part, TensorFile, Written, counted, write_files


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
    source = local(orig_ckpt_path, quiet=progress is None)
    wanted = wanted.check(source, overwrite=overwrite)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(source, weights))
        plan = _plan(survey(checkpoint, given, family), wanted, null_caption, stack)
        if source != Path(orig_ckpt_path):  # in the cache it has a name that says nothing
            plan.record["source"]["name"] = printable(orig_ckpt_path)
        sizes: dict[str, int] = {}
        if not dry_run:
            with wanted.publication(plan.size, overwrite=overwrite) as out:
                sizes = _write(out, plan, allow_nonfinite, allow_overflow, progress)
                out.publish()
        return Conversion(wanted.path, plan.record, [*plan.notes, *_leftovers(wanted.path)], not dry_run, sizes)


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
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(source, weights))
        plan = _plan(survey(checkpoint, given, family), wanted, null_caption, stack)
        return holds(wanted.path if wanted.folder else wanted.path.parent, plan.files, plan.parts, plan.texts)


_OF_WRITING = ("overwrite", "dry_run", "allow_nonfinite", "allow_overflow", "progress")


@dataclass
class _Plan:
    """What will be written, all but the bytes of the tensors. `notes` are part of the record, and grow with it.

    `texts`: text files by name; `recorded`: whether the record is written beside them.
    """

    source: str
    arranged: Arrangement
    parts: list[Part]
    files: list[TensorFile]
    texts: dict[str, str]
    record: dict[str, Any]
    recorded: bool
    notes: list[str]

    @property
    def size(self) -> int:
        """What it takes on the disk, the record generously."""
        return sum(file.layout.size for file in self.files) + sum(map(len, self.texts.values())) + (1 << 20)


def _plan(looked: Survey, wanted: Destination, null_caption: str | os.PathLike[str] | None, stack: ExitStack) -> _Plan:
    """Decide everything; of the tensors, those that are recomputed or copies are read and compared, no other is."""
    maker, checkpoint, texts = looked.require(), looked.checkpoint, dict[str, str]()
    if wanted.folder:
        texts[f"{maker.subfolder}/{CONFIG}"] = json.dumps(looked.config(), indent=2, sort_keys=True) + "\n"
    if wanted.to == COMFYUI and maker.comfyui is None:
        raise UsageError(f"--to comfyui: ComfyUI knows no {maker.title} that would be read from such a file")
    arrange = to_diffusers if wanted.folder else to_original
    around = look_beside(stack, looked, null_caption)
    with looked.state.blaming():
        arranged = arrange(looked, around, wanted.dtype)
    notes = [*_notes(checkpoint, looked), *([around.record.odd] if around.record.odd else []), *arranged.notes]
    if wanted.to == COMFYUI and maker.comfyui:
        notes += maker.comfyui(looked.found)
    model = wanted.spelt(arranged.model)
    files, more = wanted.files(model, maker.subfolder)
    if arranged.aside:
        entries = (entry for part in arranged.aside for entry in part.entries)
        files.append(TensorFile(EXTRAS, lay_out_safetensors(entries)))
    record = report(looked) | {
        "sources": _sources(checkpoint),
        "tool": {"name": TOOL, "version": __version__},
        "to": wanted.to,
        "cast": arranged.cast,
        "notes": notes,
        "plan": arranged.rows,
    }
    parts = [*model, *arranged.aside]
    return _Plan(checkpoint.path, arranged, parts, files, texts | more, record, wanted.folder, notes)


def _write(
    out: Publication,
    plan: _Plan,
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
    plan.record["written"] = written.files | {name: _digest(text.encode()) for name, text in plan.texts.items()}
    sizes = {name: int(file["size"]) for name, file in plan.record["written"].items()}
    if plan.recorded:
        record = json.dumps(plan.record, indent=1, ensure_ascii=False) + "\n"
        out.write_text(RECORD, record)
        sizes[RECORD] = len(record.encode())
    return sizes


def _as_promised(plan: _Plan, written: Written) -> list[str]:
    """What the record of the conversion that made the source says of what was now written out of it, in words.

    Raises: `InputError` where what nobody trains is not what it was.
    """
    arranged, cast = plan.arranged, {t.key for p in plan.parts for t in p.sources if t.dtype != p.dtype}
    found = {key: next(iter(made.values())) for key, made in written.digests.items() if key not in cast}
    for key, promised in arranged.promised.items():
        if found.get(key, promised) != promised:
            rule = f"is not what {RECORD} says that the original held: was the config or {EXTRAS} changed?"
            raise InputError.at(plan.source, key, rule)
    held = [key for key in arranged.remembered if key in found]
    changed = [key for key in held if found[key] != arranged.remembered[key]]
    if changed:
        return [f"{len(changed)} of {len(held)} tensors are not what {RECORD} says was converted (trained since?)"]
    return [f"all {len(held)} tensors are what {RECORD} says was converted"] if held else []


def _digest(data: bytes) -> dict[str, int | str]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sources(checkpoint: Checkpoint) -> dict[str, dict[str, int | str]]:
    """Of a folder, what was believed beside the weights, so that the record is enough to audit what it led to."""
    path = Path(checkpoint.path)
    if not path.is_dir():
        return {}
    place = model_folder(path)
    found = beside(place, checkpoint.config)
    return {(place / name).relative_to(path).as_posix(): _digest(data) for name, data in found.items()}


def _leftovers(target: Path) -> list[str]:
    """What lies beside the target; it is no part of the record, which depends on the input alone."""
    return [
        f"{printable(path)} is left from an interrupted run: delete it, unless a run is still writing there"
        if path.suffix == ".partial"
        else f"{printable(path)} is an earlier result, whole: a run was interrupted while replacing it"
        for path in leftovers(target)
    ]


def _notes(checkpoint: Checkpoint, looked: Survey) -> list[str]:
    """What the user should know before the result is used."""
    notes, chosen = list(looked.found.notes), checkpoint.selected
    other = [c for c in checkpoint.candidates if c is not chosen]
    if other and checkpoint.asked is None:
        notes.append(
            f"took the {chosen.weights} weights ({chosen.where}); {other[0].weights.upper()} weights are there too: "
            f"--weights {other[0].weights} takes those"
        )
    for name, danger in checkpoint.foreign:
        if danger:
            notes.append(f"the file asks to import {name}, which can run code in other readers; nothing of it ran here")
    if shared := _sharing(checkpoint):
        notes.append(f"{', '.join(fold(shared)[:6])} share their storage with other keys: each gets its own copy")
    return notes


def _sharing(checkpoint: Checkpoint) -> list[str]:
    """The keys whose run of bytes overlaps with that of a key before them, be it in part."""
    runs: dict[int, list[tuple[int, int, str]]] = {}
    for key, tensor in checkpoint.items():
        if tensor.nbytes:
            runs.setdefault(id(tensor.storage), []).append((*tensor.span, key))
    shared = set()
    for run in runs.values():
        reached = 0
        for start, stop, key in sorted(run, key=lambda item: item[0]):  # of equal ones, the first stays the first
            if start < reached:
                shared.add(key)
            reached = max(reached, stop)
    return [key for key in checkpoint if key in shared]
