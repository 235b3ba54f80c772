"""What a conversion will write, decided before a byte of it is: the tensors, the texts, the record and its notes."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._version import __version__
from ..checkpoint import Checkpoint
from ..checkpoint.folders.folder import CONFIG
from ..checkpoint.folders.folder import files_next_to_weights as beside
from ..checkpoint.state_dicts import selecting_flag as asked_by
from ..checkpoint.weights_kind import LABELS as SPOKEN
from ..checkpoint.write.safetensors_writer import lay_out_safetensors
from ..errors import UsageError, printable
from ..mapping import fold, summed_up
from .analysis import Analysis
from .evidence_required import demand
from .inspection import report
from .output import COMFYUI, Destination
from .record import RECORD, SIDECAR, TOOL, Record
from .sidecar import Sidecar, open_sidecar
from .to_diffusers import Arrangement, to_diffusers
from .to_original import to_original
from .write import TensorFile, TensorWrite


@dataclass
class ConversionPlan:
    """What will be written, all but the bytes of the tensors. `notes` are part of the record, and grow with it.

    `texts`: text files by name; `recorded`: whether the record is written beside them.
    """

    looked: Analysis
    beside: Sidecar
    arranged: Arrangement
    parts: list[TensorWrite]
    files: list[TensorFile]
    texts: dict[str, str]
    record: dict[str, Any]
    recorded: bool
    notes: list[str]

    @property
    def source(self) -> str:
        """Where it is read from."""
        return self.looked.checkpoint.path

    @property
    def size(self) -> int:
        """What it takes on the disk, the record generously."""
        return sum(file.layout.size for file in self.files) + sum(map(len, self.texts.values())) + (1 << 20)


def make_plan(
    looked: Analysis,
    wanted: Destination,
    null_caption: str | os.PathLike[str] | None,
    stack: ExitStack,
    require_evidence: bool = False,
) -> ConversionPlan:
    """Decide everything; of the tensors, those that are recomputed or copies are read and compared, no other is.

    Args:
        stack: keeps open what lies beside the source, until it is written.
        require_evidence: refuse what rests on an assumption.

    Raises: `InputError` and `UsageError`, whatever stands against the conversion.
    """
    maker, checkpoint, texts = looked.require(), looked.checkpoint, dict[str, str]()
    looked.found.asked.clear()  # what this result is made with counts
    if wanted.folder:
        texts[f"{maker.subfolder}/{CONFIG}"] = json.dumps(looked.config(), indent=2, sort_keys=True) + "\n"
    if wanted.to == COMFYUI and maker.comfyui is None:
        raise UsageError(f"--to comfyui: ComfyUI knows no {maker.title} that would be read from such a file")
    arrange = to_diffusers if wanted.folder else to_original
    lying_beside = open_sidecar(stack, looked, null_caption)
    with looked.state.blaming():
        arranged = arrange(looked, lying_beside, wanted.dtype)
    found = looked.found
    if require_evidence:
        demand(maker, found, checkpoint)
    notes = [*found.notes, *(found.diffusers_notes if wanted.folder else []), *notes_on(checkpoint)]
    if looked.diffusers and checkpoint.folder and not checkpoint.config:
        notes.append(f"the folder holds no {CONFIG}: what it would say is given or assumed")
    notes += [*lying_beside.notes, *_unlike_record(looked, lying_beside.record), *arranged.notes]
    if wanted.to == COMFYUI and maker.comfyui:
        notes += maker.comfyui(found)
    model = wanted.with_prefix(arranged.model)
    files, more = wanted.files(model, maker.subfolder)
    if arranged.aside:
        entries = (entry for part in arranged.aside for entry in part.entries)
        files.append(TensorFile(SIDECAR, lay_out_safetensors(entries)))
    record = report(looked) | {
        "sources": _sources(checkpoint),
        "tool": {"name": TOOL, "version": __version__},
        "to": wanted.to,
        "cast": arranged.cast,
        "notes": notes,
        "plan": arranged.rows,
    }
    parts = [*model, *arranged.aside]
    return ConversionPlan(looked, lying_beside, arranged, parts, files, texts | more, record, wanted.folder, notes)


def digest_of(data: bytes) -> dict[str, int | str]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _unlike_record(looked: Analysis, record: Record) -> list[str]:
    """Where a converted folder says otherwise than the record of its conversion: its config was changed."""
    told = record.content.get("hyper_parameters", {}) if looked.diffusers else {}
    return [
        f"{name} is {printable(found.value)} ({printable(found.evidence, 80)}), and {RECORD} says "
        f"{printable(told[name]['value'])}: was {CONFIG} changed?"
        for name, found in looked.found.items()
        if name in told and None not in (found.value, told[name]["value"]) and found.value != told[name]["value"]
    ]


def _sources(checkpoint: Checkpoint) -> dict[str, dict[str, int | str]]:
    """What was believed beside the weights, so that the record is enough to audit what it led to."""
    folder, place = checkpoint.folder, checkpoint.place
    if folder is None or place is None:
        return {}
    # Of a file by itself the place is known, and no index says what is in it.
    found = beside(place, checkpoint.config, indexed=os.path.isdir(checkpoint.path))
    return {Path(os.path.relpath(place / name, folder)).as_posix(): digest_of(data) for name, data in found.items()}


def notes_on(checkpoint: Checkpoint) -> list[str]:
    """What the user should know of what was read before the result is used."""
    notes, chosen = [*checkpoint.notes], checkpoint.selected
    # Where nobody chose, those of the same kind are the very same tensors under another name.
    others = [candidate for candidate in checkpoint.likely if candidate.weights != chosen.weights]
    if chosen.why:
        notes.append(f"{chosen.where}: {chosen.why}")
    if others and checkpoint.asked is None and checkpoint.asked_key is None:
        other, flag = others[0], asked_by(others[0], checkpoint.likely)
        kind = SPOKEN[other.weights]
        notes.append(
            f"took the {chosen.weights} weights ({chosen.where}); {kind} weights are there too: {flag} takes those"
        )
    if checkpoint.left_out:
        notes.append(f"left out, as no part of the model: {summed_up(checkpoint.left_out)}")
    for name, danger in checkpoint.foreign:
        if danger:
            notes.append(f"the file asks to import {name}, which can run code in other readers; nothing of it ran here")
    if shared := _sharing(checkpoint):
        tied = (
            " (tied weights, as its metadata says)"
            if len({id(t) for t in checkpoint.values()}) < len(checkpoint)
            else ""
        )
        notes.append(f"{', '.join(fold(shared)[:6])} share their storage with other keys{tied}: each gets its own copy")
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
