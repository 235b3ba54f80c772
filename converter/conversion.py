"""`convert`: an original checkpoint becomes a folder that diffusers loads, whole or not at all, with its record."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._version import __version__
from .buffers import Comparison, compare
from .checkpoint import Checkpoint, LazyTensor, open_checkpoint
from .checkpoint.folder import CONFIG, WEIGHTS, beside, model_folder, read_json
from .checkpoint.publish import Publication
from .checkpoint.target import check_target, leftovers
from .checkpoint.transfer import Progress
from .errors import ConverterError, printable
from .inspection import report
from .mapping import Computed, fold
from .survey import Survey, survey
from .writing import TensorFile, nonfinite_words, write_files

EXTRAS = "original_extras.safetensors"
RECORD = "conversion.json"
PARITY = "parity.json"  # what was found of the result, where it was asked for
TOOL = "convert-pixart"


@dataclass
class Conversion:
    """What was done, or in a dry run would be: `record` is the content of `conversion.json`, `files` the sizes."""

    path: Path
    record: dict[str, Any]
    notes: list[str]
    written: bool
    files: dict[str, int] = field(default_factory=dict)


def convert(
    orig_ckpt_path: str | os.PathLike[str],
    dump_path: str | os.PathLike[str],
    *,
    weights: str | None = None,
    family: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    allow_nonfinite: bool = False,
    progress: Callable[[int], Progress] | None = None,
    **given: Any,
) -> Conversion:
    """Convert a checkpoint to the diffusers layout.

    Args:
        orig_ckpt_path: any accepted file or folder.
        dump_path: the folder to make; it appears whole or not at all.
        weights: 'raw' or 'ema' where the file holds both (default: raw).
        family: insist on a model family instead of recognising it.
        overwrite: replace a folder that holds what an earlier conversion wrote, by its record, and nothing else.
        dry_run: plan, and write nothing.
        allow_nonfinite: let NaN and infinity through, bit for bit.
        progress: called with the number of bytes to come; returns what is called with each count of bytes done.
        given: hyper-parameters by flag name, such as `num_attention_heads=16`, for what the file cannot show.

    Returns: a `Conversion`.

    Raises: `InputError` (exit code 3) for a file that is refused, `UsageError` (2) for a call that is,
    `ConverterError` itself (5) where the disk fills up or fails.

    Example:
        >>> done = convert("fixtures/golden/sigma-ms.pth", tmp / "out", num_attention_heads=4)
        >>> sorted(p.name for p in done.path.rglob("*.*"))
        ['config.json', 'conversion.json', 'diffusion_pytorch_model.safetensors', 'original_extras.safetensors']
    """
    source = Path(orig_ckpt_path)
    target = check_target(Path(dump_path), source, overwrite=overwrite, allowed=_ours)
    with open_checkpoint(source, weights) as checkpoint:
        plan = _plan(survey(checkpoint, given, family))
        sizes: dict[str, int] = {}
        if not dry_run:
            with Publication(target, needed_bytes=plan.size, overwrite=overwrite, allowed=_ours) as out:
                sizes = _write(out, plan, checkpoint.path, allow_nonfinite, progress)
                out.publish()
        return Conversion(target, plan.record, [*plan.notes, *_leftovers(target)], not dry_run, sizes)


def _ours(folder: Path) -> Set[str]:
    """The files that our own record in a folder says we wrote, and the record; nothing where there is none."""
    try:
        record = read_json(folder / RECORD)
        tool, written = record["tool"]["name"], record["written"]
    except (ConverterError, TypeError, KeyError):
        return frozenset()
    return {*written, RECORD, PARITY} if tool == TOOL and isinstance(written, dict) else frozenset()


@dataclass
class _Plan:
    """What will be written, all but the bytes of the tensors. `notes` are part of the record, and grow with it."""

    files: list[TensorFile]
    config_name: str
    config: str
    record: dict[str, Any]
    notes: list[str]

    @property
    def size(self) -> int:
        """What it takes on the disk, the record generously."""
        return sum(file.layout.size for file in self.files) + len(self.config) + (1 << 20)


def _plan(looked: Survey) -> _Plan:
    """Decide everything; the tensors that are recomputed are read and compared, no other is."""
    maker, config = looked.require(), looked.config()
    notes = _notes(looked.checkpoint, looked)
    model = TensorFile(f"{maker.subfolder}/{WEIGHTS}", {"format": "pt"})
    extras = TensorFile(EXTRAS, None)
    rows = _fill(looked, model, extras, notes)
    files = [file for file in (model, extras) if file.parts]
    for file in files:
        file.plan()
    record = report(looked) | {
        "sources": _sources(looked.checkpoint),
        "tool": {"name": TOOL, "version": __version__},
        "notes": notes,
        "plan": rows,
    }
    config_text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return _Plan(files, f"{maker.subfolder}/{CONFIG}", config_text, record, notes)


def _write(
    out: Publication,
    plan: _Plan,
    source: str,
    allow_nonfinite: bool,
    progress: Callable[[int], Progress] | None,
) -> dict[str, int]:
    """Write the tensors, the config and, last, the record, which tells what was found; returns the files' sizes."""
    total = sum(tensor.nbytes for file in plan.files for tensor, _ in file.parts)
    written = write_files(out, plan.files, source, allow_nonfinite, progress(total) if progress else lambda count: None)
    if written.nonfinite:
        plan.notes.append(f"{nonfinite_words(written.nonfinite)}: converted as they are")
    for row in plan.record["plan"]:
        # The parts of a split tensor are, in order, its bytes, and every copy is all of them. What was read to compare
        # it gives way to what was written: the file may have changed in between, and not every kind has checksums.
        row["sha256"] = written.digests.get(row["source"], row.get("sha256"))
    out.write_text(plan.config_name, plan.config)
    plan.record["written"] = written.files | {plan.config_name: _digest(plan.config.encode())}
    record = json.dumps(plan.record, indent=1, ensure_ascii=False) + "\n"
    out.write_text(RECORD, record)
    return {name: file["size"] for name, file in plan.record["written"].items()} | {RECORD: len(record.encode())}


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
    source = Path(checkpoint.path)
    if source.is_dir() and any((folder / EXTRAS).exists() for folder in (source, source.absolute().parent)):
        notes.append(f"the source is a conversion already: {EXTRAS} beside it is not carried over, keep it")
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


def _fill(looked: Survey, model: TensorFile, extras: TensorFile, notes: list[str]) -> list[dict[str, Any]]:
    """Assign every source tensor to a file, or to nothing with the reason; returns the rows of the record."""
    checkpoint, plan = looked.checkpoint, looked.plan
    moves = {move.sources[0]: move for move in plan.moves}
    rows = []
    for key, tensor in checkpoint.items():
        row: dict[str, Any] = {"source": key, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}
        if key in moves:
            targets, copies = moves[key].targets, moves[key].copies
            model.parts += [(tensor, (target,)) for target in targets] if copies else [(tensor, targets)]
            operation = "copy" if copies else "split" if len(targets) > 1 else "rename"
            row |= {"operation": operation, "targets": list(targets)}
        elif key in plan.extras:
            extras.parts.append((tensor, (plan.extras[key],)))
            row |= {"operation": "sidecar", "sidecar": plan.extras[key]}
        else:
            compared, why_kept = _recompute(looked, key, tensor)
            row |= {"operation": "recompute", "sha256": {key: compared.sha256}, "reproduced": compared.equal}
            if why_kept:
                notes.append(why_kept)
                extras.parts.append((tensor, (key,)))
                row["sidecar"] = key
        rows.append(row)
    return rows


def _recompute(looked: Survey, key: str, tensor: LazyTensor) -> tuple[Comparison, str]:
    """(the comparison with what is recomputed; why the stored buffer has to be kept, '' where it need not be)."""
    value = looked.plan.computed[key].value
    assert isinstance(value, Computed)
    compared = compare(tensor, value.function(looked.found))
    if compared.equal:
        return compared, ""
    dispensable, what = looked.require().unreproduced(looked.found, compared.difference)
    if not dispensable:
        raise tensor.storage.file.error(key, what)
    return compared, f"{printable(key)} {what}: kept in {EXTRAS}"
