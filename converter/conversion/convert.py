"""`convert`: a checkpoint becomes a folder for diffusers or a file in the original layout, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.file import reading
from ..checkpoint.write.publish import Publication
from ..checkpoint.write.target import REPLACED, leftovers
from ..checkpoint.write.transfer import Progress
from ..errors import InputError, UsageError, printable
from ..hub import local
from .analysis import Analysis, open_model
from .output import Destination, ours
from .plan import ConversionPlan, digest_of, make_plan
from .record import PARITY, RECORD, SIDECAR
from .sidecar import analyse_again
from .up_to_date import holds
from .verdicts import Allowed, give_verdict
from .write import write_files
from .zeros import find_zeros, refuse_zeros


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
    state_dict_key: str | None = None,
    family: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    allow_nonfinite: bool = False,
    allow_overflow: bool = False,
    require_evidence: bool = False,
    allow_zeros: bool = False,
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
        state_dict_key: where in the file the weights lie, such as 'app.model', where it holds several state dicts.
        family: insist on a model family instead of recognising it.
        overwrite: replace a file, or a folder that holds what an earlier conversion wrote, by its record, and nothing
            else.
        dry_run: plan, and write nothing.
        allow_nonfinite: let NaN and infinity through, bit for bit where nothing is cast.
        allow_overflow: let what is beyond the range of `dtype` become infinity.
        require_evidence: refuse (`UsageError`) a result that rests on an assumption, with the words that state it.
        allow_zeros: let tensors through that are zero throughout and that no training leaves so.
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
    allowed = Allowed(allow_nonfinite, allow_overflow, allow_zeros)
    # Asked before anything is fetched, and once more when it is known where the source lies.
    wanted.check(Path(orig_ckpt_path), overwrite=overwrite)
    if not wanted.folder and wanted.path.name == SIDECAR:
        raise UsageError(f"{printable(wanted.path)}: is the name of a conversion's sidecar; take another")
    with reading(null_caption or ""):  # a path at all
        pass
    if null_caption is not None and os.path.realpath(null_caption) == os.path.realpath(wanted.path):
        raise UsageError(f"{printable(wanted.path)}: is the null caption that is to be read; name a place elsewhere")
    source = local(orig_ckpt_path, quiet=progress is None)
    wanted = wanted.check(source, overwrite=overwrite)
    with ExitStack() as stack:
        with reading(source):
            checkpoint = stack.enter_context(open_model(source, weights, state_dict_key, family))
            looked = analyse_again(checkpoint, given, family)
            plan = _planned(looked, wanted, null_caption, require_evidence, allowed, stack)
        if source != Path(orig_ckpt_path):  # in the cache it has a name that says nothing
            plan.record["source"]["name"] = printable(orig_ckpt_path)
        sizes: dict[str, int] = {}
        afterwards: list[str] = []
        if not dry_run:
            with wanted.publication(plan.size, overwrite=overwrite) as out:
                sizes = _write(out, plan, allowed, progress)
                out.publish()
            afterwards = out.notes
        notes = [*plan.notes, *afterwards, *_leftovers(wanted.path, afterwards)]
        return Conversion(wanted.path, plan.record, notes, not dry_run, sizes)


def already(
    orig_ckpt_path: str | os.PathLike[str],
    dump_path: str | os.PathLike[str],
    *,
    to: str = "diffusers",
    dtype: str | None = None,
    max_shard_size: str | int | None = None,
    variant: str | None = None,
    null_caption: str | os.PathLike[str] | None = None,
    weights: str | None = None,
    state_dict_key: str | None = None,
    family: str | None = None,
    allow_nonfinite: bool = False,
    allow_overflow: bool = False,
    require_evidence: bool = False,
    allow_zeros: bool = False,
    **given: Any,
) -> list[str] | None:
    """What `convert` would say of the tensors, where `dump_path` holds what it would write; None where it does not.

    Both sides are read and hashed. Words of `convert` that change nothing of the result are accepted and ignored.

    Raises: as `convert` does, for what it refuses of the source.
    """
    wanted = Destination.of(dump_path, to, dtype, max_shard_size, variant)
    allowed = Allowed(allow_nonfinite, allow_overflow, allow_zeros)
    given = {name: value for name, value in given.items() if name not in _OF_WRITING}
    source = local(orig_ckpt_path, quiet=True)
    wanted = wanted.check(source, overwrite=True)
    with ExitStack() as stack, reading(source):
        checkpoint = stack.enter_context(open_model(source, weights, state_dict_key, family))
        looked = analyse_again(checkpoint, given, family)
        plan = _planned(looked, wanted, null_caption, require_evidence, allowed, stack)
        names = {RECORD, PARITY, *plan.texts, *(file.name for file in plan.files)}
        if wanted.folder and ours(wanted.path) != names:
            return None  # without its record, or with more than we would write, it is another result
        place = wanted.path if wanted.folder else wanted.path.parent
        found = holds(place, plan.files, plan.parts, plan.texts, plan.arranged.stated)
        return give_verdict(looked, plan.arranged, found, allowed)[0] if found else None


_OF_WRITING = ("overwrite", "dry_run", "progress")


def _planned(
    looked: Analysis,
    wanted: Destination,
    null_caption: str | os.PathLike[str] | None,
    require_evidence: bool,
    allowed: Allowed,
    stack: ExitStack,
) -> ConversionPlan:
    """`make_plan`. Where planning fails, an incomplete download may be the cause (a table of positions that is zero
    fits no scale): in files without checksums look for zeros first, and report those instead."""
    try:
        return make_plan(looked, wanted, null_caption, stack, require_evidence)
    except (InputError, UsageError):
        unproven = {key: tensor for key, tensor in looked.checkpoint.items() if tensor.storage.crc is None}
        if looked.family and not allowed.zeros:
            refuse_zeros(looked.checkpoint.path, find_zeros(looked.plan, unproven).refused, False)
        raise


def _write(
    out: Publication,
    plan: ConversionPlan,
    allowed: Allowed,
    progress: Callable[[int], Progress] | None,
) -> dict[str, int]:
    """Write the tensors, the texts and, last, the record, which tells what was found; returns the files' sizes."""
    total = sum(part.nbytes for part in plan.parts)
    step = progress(total) if progress else lambda count: None
    written = write_files(out, plan.files, plan.parts, step, plan.arranged.stated)
    notes, changed = give_verdict(plan.looked, plan.arranged, written, allowed)
    plan.notes += notes
    if changed:
        plan.record["changed"] = changed
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
        # What was changed before is not vouched for: what was promised of it is passed on.
        made_anew = (plan.arranged.rounded | plan.beside.given.keys()) - changed.keys()
        shas = {key: sha for name in made_anew for key, sha in written.digests.get(name, {}).items()}
        plan.record |= plan.beside.record.passed_on(shas)
        record = json.dumps(plan.record, indent=1, ensure_ascii=False) + "\n"
        out.write_text(RECORD, record)
        sizes[RECORD] = len(record.encode())
    return sizes


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
