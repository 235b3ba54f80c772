"""`convert`: an original checkpoint becomes a folder that diffusers loads, whole or not at all, with its record."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._version import __version__
from .buffers import Comparison, compare
from .checkpoint import Checkpoint, LazyTensor, open_checkpoint
from .checkpoint.publish import Publication
from .checkpoint.target import check_target, leftovers
from .checkpoint.transfer import Progress
from .errors import printable
from .inspection import report
from .mapping import Computed, fold
from .survey import Survey, survey
from .writing import TensorFile, nonfinite_words, write_files

WEIGHTS = "diffusion_pytorch_model.safetensors"
EXTRAS = "original_extras.safetensors"
RECORD = "conversion.json"
# What a folder of ours may hold, so that --overwrite never deletes anything else.
_OURS = re.compile(rf"\w+/(config\.json|diffusion_pytorch_model[\w.-]*)|{re.escape(EXTRAS)}|{re.escape(RECORD)}")


def _ours(name: str) -> bool:
    return _OURS.fullmatch(name) is not None


@dataclass
class Conversion:
    """What was done, or in a dry run would be: `record` is the content of `conversion.json`."""

    path: Path
    record: dict[str, Any]
    notes: list[str]
    written: bool


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
        overwrite: replace a folder that an earlier conversion wrote.
        dry_run: plan, and write nothing.
        allow_nonfinite: let NaN and infinity through, bit for bit.
        progress: called with the number of bytes to come; returns what is called with each count of bytes done.
        given: hyper-parameters by flag name, such as `num_attention_heads=16`, for what the file cannot show.

    Returns: a `Conversion`.

    Raises: `InputError` (exit code 3) for a file that is refused, `UsageError` (2) for a call that is.

    Example:
        >>> done = convert("fixtures/golden/sigma-ms.pth", tmp / "out", num_attention_heads=4)
        >>> sorted(p.name for p in done.path.rglob("*.*"))
        ['config.json', 'conversion.json', 'diffusion_pytorch_model.safetensors', 'original_extras.safetensors']
    """
    source, target = Path(orig_ckpt_path), Path(dump_path)
    target = check_target(target, source, overwrite=overwrite, allowed=_ours)
    with open_checkpoint(source, weights) as checkpoint:
        looked = survey(checkpoint, given, family)
        maker = looked.require()
        config = looked.config()
        notes = _notes(checkpoint, looked)
        model = TensorFile(f"{maker.subfolder}/{WEIGHTS}", {"format": "pt"})
        extras = TensorFile(EXTRAS, None)
        rows = _fill(looked, model, extras, notes)
        files = [f for f in (model, extras) if f.parts]
        for file in files:
            file.plan()
        record = report(looked) | {
            "tool": {"name": "convert-pixart", "version": __version__},
            "notes": notes,
            "plan": rows,
        }
        if dry_run:
            return Conversion(target, record, [*notes, *_leftovers(target)], False)
        config_text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        needed = sum(f.layout.size for f in files) + len(config_text) + (1 << 20)
        with Publication(target, needed_bytes=needed, overwrite=overwrite, allowed=_ours) as out:
            step = progress(sum(t.nbytes for f in files for t, _ in f.parts)) if progress else lambda count: None
            written = write_files(out, files, checkpoint.path, allow_nonfinite, step)
            if written.nonfinite:
                notes.append(f"{nonfinite_words(written.nonfinite)}: converted as they are")
            for row in rows:
                # The parts of a split tensor are, in order, its bytes: their digests are those of what was read.
                row.setdefault("sha256", written.digests.get(row["source"]))
            config_name = f"{maker.subfolder}/config.json"
            out.write_text(config_name, config_text)
            digest = hashlib.sha256(config_text.encode()).hexdigest()
            record["written"] = written.files | {config_name: {"size": len(config_text), "sha256": digest}}
            out.write_text(RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            out.publish()
        return Conversion(target, record, [*notes, *_leftovers(target)], True)


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
            f"choose them with --weights {other[0].weights}"
        )
    for name, danger in checkpoint.foreign:
        if danger:
            notes.append(f"the file asks to import {name}, which can run code in other readers; nothing of it ran here")
    seen: set[tuple[int, tuple[int, int]]] = set()
    shared = []
    for key, tensor in checkpoint.items():
        place = (id(tensor.storage), tensor.span)
        if place in seen and tensor.nbytes:
            shared.append(key)
        seen.add(place)
    if shared:
        notes.append(f"{', '.join(fold(shared)[:6])} share their storage with other keys: each gets its own copy")
    return notes


def _fill(looked: Survey, model: TensorFile, extras: TensorFile, notes: list[str]) -> list[dict[str, Any]]:
    """Assign every source tensor to a file, or to nothing with the reason; returns the rows of the record."""
    checkpoint, plan = looked.checkpoint, looked.plan
    targets = {move.sources[0]: move.targets for move in plan.moves}
    rows = []
    for key, tensor in checkpoint.items():
        row: dict[str, Any] = {"source": key, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}
        if key in targets:
            model.parts.append((tensor, targets[key]))
            row |= {"operation": "split" if len(targets[key]) > 1 else "rename", "targets": list(targets[key])}
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
