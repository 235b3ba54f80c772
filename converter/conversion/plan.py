"""What a conversion will write, decided before a byte of it is: the tensors, the texts, the record and its notes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.file import reading
from ..checkpoint.folder import CONFIG
from ..checkpoint.state_dicts import selecting_flag
from ..checkpoint.weights_kind import LABELS
from ..checkpoint.write.layout import lay_out_safetensors
from ..errors import InputError, UsageError, as_flags, printable
from ..filenames import RECORD, SIDECAR
from ..hub import local
from ..mapping import fold, summed_up
from .additions import Adding, Additions
from .analysis import Analysis, open_model
from .inspection import report
from .options import ConversionOptions
from .output import COMFYUI, Destination
from .record import ConversionRecord, Record
from .sidecar import Sidecar, analyse_with_record, open_sidecar
from .to_diffusers import TensorWrites, to_diffusers
from .to_original import to_original
from .verdicts import demand_evidence
from .write import TensorFile, TensorWrite
from .zeros import find_zeros, refuse_zeros


@dataclass
class ConversionPlan:
    """What will be written, all but the bytes of the tensors. `notes` are part of the record, and grow with it.

    `texts`: text files by name. `additions`: what stands beside the model; its texts and notes are among those here.
    """

    analysis: Analysis
    destination: Destination
    sidecar: Sidecar
    writes: TensorWrites
    parts: list[TensorWrite]
    files: list[TensorFile]
    texts: dict[str, str]
    record: ConversionRecord
    additions: Additions = field(default_factory=Additions)

    @property
    def notes(self) -> list[str]:
        """What the user should know."""
        return self.record.notes

    @property
    def size(self) -> int:
        """Bytes needed on disk; 1 MiB for the record."""
        texts = sum(map(len, self.texts.values()))
        return sum(file.layout.size for file in self.files) + texts + self.additions.size + (1 << 20)


@contextmanager
def open_plan(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: ConversionOptions,
    hyper_parameters: Mapping[str, Any],
    *,
    components: Adding | None = None,
    quiet: bool = True,
) -> Iterator[ConversionPlan]:
    """The plan of a conversion, while its source is open: fetched if it is on the hub, analysed, and planned.

    Args:
        components: says what is to stand beside the model.
        quiet: no progress bar while fetching.

    Raises: `InputError` and `UsageError`, whatever stands against the conversion.
    """
    destination = Destination.of(target, options)
    if components and not destination.folder:
        raise UsageError(f"`to` {destination.to}: writes the transformer only, and no pipeline")
    # Asked before anything is fetched, and once more when it is known where the source lies.
    destination.check(Path(source), overwrite=options.overwrite)
    if not destination.folder and destination.path.name == SIDECAR:
        raise UsageError(f"{printable(destination.path)}: is the name of a conversion's sidecar; choose another")
    with reading(options.null_caption or ""):  # a path at all
        pass
    if options.null_caption is not None and os.path.realpath(options.null_caption) == os.path.realpath(
        destination.path
    ):
        raise UsageError(f"{printable(destination.path)}: is the null caption to be read; choose another path")
    place = local(source, quiet=quiet)
    destination = destination.check(place, overwrite=options.overwrite)
    with ExitStack() as stack:
        with reading(place):
            opened = open_model(place, options.weights, options.state_dict_key, options.family)
            analysis = analyse_with_record(stack.enter_context(opened), hyper_parameters, options.family)
            plan = _make_plan_or_report_zeros(analysis, destination, options, stack)
        if place != Path(source):  # in the cache it has a name that says nothing
            plan.record.about["source"]["name"] = printable(source)
        if components:
            plan.additions = components(analysis, plan.sidecar, destination.path, quiet)
            plan.texts.update(plan.additions.texts)
            plan.notes.extend(plan.additions.notes)
        yield plan


def _make_plan_or_report_zeros(
    analysis: Analysis, destination: Destination, options: ConversionOptions, stack: ExitStack
) -> ConversionPlan:
    """`make_plan`. Where it fails, an incomplete download may be the cause (a table of positions that is zero fits no
    scale): in files without checksums look for zeros first, and report those instead."""
    try:
        return make_plan(analysis, destination, options, stack)
    except (InputError, UsageError):
        unproven = {key: tensor for key, tensor in analysis.checkpoint.items() if tensor.storage.crc is None}
        if analysis.family and not options.allow_zeros:
            refuse_zeros(analysis.checkpoint.path, find_zeros(analysis.plan, unproven).refused, False)
        raise


def make_plan(
    analysis: Analysis, destination: Destination, options: ConversionOptions, stack: ExitStack
) -> ConversionPlan:
    """Decide everything. Only tensors that are recomputed or copied are read, to compare them.

    Args:
        stack: keeps open what lies beside the source, until it is written.

    Raises: `InputError` and `UsageError`, whatever stands against the conversion.
    """
    family, checkpoint, texts = analysis.require(), analysis.checkpoint, dict[str, str]()
    analysis.findings.used.clear()  # what this result is made with counts
    if destination.folder:
        texts[f"{family.subfolder}/{CONFIG}"] = json.dumps(analysis.config(), indent=2, sort_keys=True) + "\n"
    if destination.to == COMFYUI and family.comfyui is None:
        raise UsageError(f"`to` comfyui: ComfyUI cannot read a {family.title} from such a file")
    convert = to_diffusers if destination.folder else to_original
    sidecar = open_sidecar(stack, analysis, options.null_caption)
    with analysis.state.file_checked_first():
        writes = convert(analysis, sidecar, destination.dtype)
    if not writes.model:
        raise UsageError(f"`family` {family.name}: its table gives no tensor of this file to the target")
    keys = {key for part in writes.model for key in part.keys}
    if twice := sorted(key for part in writes.sidecar for key in part.keys if key in keys):
        raise UsageError(f"`family` {family.name}: {twice[0]} is a key of the target, and of a tensor in the sidecar")
    findings = analysis.findings
    if options.require_evidence:
        demand_evidence(family, findings, checkpoint)
    notes = [*findings.notes, *(findings.diffusers_notes if destination.folder else []), *checkpoint_notes(checkpoint)]
    if analysis.diffusers and checkpoint.folder and not checkpoint.config:
        notes.append(f"the folder holds no {CONFIG}: its values are given or assumed")
    notes += [*sidecar.notes, *differences_from_record(analysis, sidecar.record), *writes.notes]
    if destination.to == COMFYUI and family.comfyui:
        notes += family.comfyui(findings)
    model = destination.with_prefix(writes.model)
    files, more = destination.files(model, family.subfolder)
    if writes.sidecar:
        entries = (entry for part in writes.sidecar for entry in part.entries)
        files.append(TensorFile(SIDECAR, lay_out_safetensors(entries)))
    return ConversionPlan(
        analysis=analysis,
        destination=destination,
        sidecar=sidecar,
        writes=writes,
        parts=[*model, *writes.sidecar],
        files=files,
        texts=texts | more,
        record=ConversionRecord(
            about=report(analysis),
            sources=_sources(checkpoint),
            to=destination.to,
            cast=writes.cast,
            notes=notes,
            plan=writes.rows,
        ),
    )


def digest_of(data: bytes) -> dict[str, int | str]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def differences_from_record(analysis: Analysis, record: Record) -> list[str]:
    """Where a converted folder says otherwise than the record of its conversion: its config was changed."""
    recorded = record.content.get("hyper_parameters", {}) if analysis.diffusers else {}
    return [
        f"{name} is {printable(finding.value)} ({printable(finding.evidence, 80)}), and {RECORD} says "
        f"{printable(recorded[name]['value'])}: was {CONFIG} changed?"
        for name, finding in analysis.findings.items()
        if name in recorded
        and None not in (finding.value, recorded[name]["value"])
        and finding.value != recorded[name]["value"]
    ]


def _sources(checkpoint: Checkpoint) -> dict[str, dict[str, int | str]]:
    """Files other than the weights that were relied on, so that the record suffices for an audit."""
    return {
        Path(os.path.relpath(path, checkpoint.folder)).as_posix(): digest_of(data)
        for path, data in checkpoint.companions.items()
    }


def checkpoint_notes(checkpoint: Checkpoint) -> list[str]:
    """What the user should know about the source before using the result."""
    notes, chosen = [*checkpoint.notes], checkpoint.selected
    # Where nobody chose, those of the same kind are the very same tensors under another name.
    others = [candidate for candidate in checkpoint.plausible if candidate.weights != chosen.weights]
    if chosen.why:
        notes.append(f"{chosen.where}: {chosen.why}")
    if others and checkpoint.requested_weights is None and checkpoint.requested_key is None:
        other, flag = others[0], as_flags(selecting_flag(others[0], checkpoint.plausible))
        kind = LABELS[other.weights]
        notes.append(
            f"took the {chosen.weights} weights ({chosen.where}); {kind} weights are there too: {flag} takes those"
        )
    if checkpoint.left_out:
        notes.append(f"left out, not part of the model: {summed_up(checkpoint.left_out)}")
    for name, danger in checkpoint.foreign_globals:
        if danger:
            notes.append(f"the file asks to import {name}, which can run code in other readers; nothing of it ran here")
    if shared := _sharing_storage(checkpoint):
        tied = (
            " (tied weights, as its metadata says)"
            if len({id(t) for t in checkpoint.values()}) < len(checkpoint)
            else ""
        )
        notes.append(f"{', '.join(fold(shared)[:6])} share their storage with other keys{tied}: each gets its own copy")
    return notes


def _sharing_storage(checkpoint: Checkpoint) -> list[str]:
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
