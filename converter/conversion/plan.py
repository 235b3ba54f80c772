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

from ..checkpoint import Checkpoint, DType
from ..checkpoint.file import reading
from ..checkpoint.folder import CONFIG
from ..checkpoint.write.layout import lay_out_safetensors
from ..errors import InputError, UsageError, printable
from ..families.travelling import AUTO_MAP, class_in
from ..filenames import SIDECAR
from ..hub.names import hub_path
from ..remote import fetched, is_url, shown
from .additions import Adding, Additions
from .alterations import Altering
from .analysis import Analysis
from .inspection import report
from .model_files import open_model
from .options import ConversionOptions
from .output import COMFYUI, DIFFUSERS, Destination
from .record import ConversionRecord
from .remarks import checkpoint_notes, differences_from_record, merged_into
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
    altering: Altering | None = None,
    quiet: bool = True,
) -> Iterator[ConversionPlan]:
    """The plan of a conversion, while its source is open: fetched if it lies elsewhere, analysed, and planned.

    Args:
        components: says what is to stand beside the model.
        altering: says what takes the place of some of its tensors.
        quiet: no progress bar while fetching.

    Raises: `InputError` and `UsageError`, whatever stands against the conversion.
    """
    destination = Destination.of(target, options)
    if components and not destination.folder:
        raise UsageError(f"`to` {destination.to}: writes the transformer only, and no pipeline")
    with reading(source):  # a path at all, and one that is here, on the hub or in a store
        if not is_url(source) and hub_path(os.fspath(source)) is None:
            os.lstat(source)
    # Asked before anything is fetched, and once more when it is known where the source lies.
    destination.check(Path(source), overwrite=options.overwrite, dry_run=options.dry_run)
    if not destination.folder and destination.path.name == SIDECAR:
        raise UsageError(f"{printable(destination.path)}: is the name of a conversion's sidecar; choose another")
    caption = options.null_caption
    with reading(caption or ""):  # a path at all
        if caption is not None and os.path.realpath(caption) == os.path.realpath(destination.path):
            raise UsageError(f"{printable(destination.path)}: is the null caption to be read; choose another path")
    with ExitStack() as stack:
        place = stack.enter_context(fetched(source, hub=True, quiet=quiet))
        destination = destination.check(place, overwrite=options.overwrite, dry_run=options.dry_run)
        with reading(place):
            opened = open_model(place, options.weights, options.state_dict_key, options.family)
            checkpoint = stack.enter_context(opened)
            analysis = analyse_with_record(checkpoint, hyper_parameters, options.family, stock=options.stock)
            altered = altering(analysis, options) if altering else None
            if altered:
                checkpoint.selected.tensors.update(altered.tensors)
            with zeros_reported_first(analysis, options):
                plan = make_plan(analysis, destination, options, stack)
            if altered:
                plan.writes.alter(altered.tensors)
                plan.record.adapters = [*plan.record.adapters, *altered.record]
                plan.notes.extend(altered.notes)
        if place != Path(source):  # in the cache it has a name that says nothing
            plan.record.about["source"]["name"] = shown(os.fspath(source))
        if components:
            plan.additions = components(analysis, plan.sidecar, destination.path, quiet)
            plan.texts.update(plan.additions.texts)
            plan.notes.extend(plan.additions.notes)
        yield plan


@contextmanager
def zeros_reported_first(analysis: Analysis, options: ConversionOptions) -> Iterator[None]:
    """Around the making of a plan. Where it fails, an incomplete download may be the cause (a table of positions that
    is zero fits no scale): in files without checksums look for zeros first, and report those instead."""
    try:
        yield
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
    travels: list[str] = []
    if destination.folder:
        for folder, fields in family.by_folder(analysis.config()).items():
            kind = class_in(family.classes, fields)
            fields = fields | {AUTO_MAP: kind.auto_map} if kind.module else fields
            texts[f"{folder}/{CONFIG}"] = json.dumps(fields, indent=2, sort_keys=True) + "\n"
            texts |= {f"{folder}/{name}": text for name, text in kind.text.items()}
            if kind.module:
                load = "AutoModel.from_pretrained(..., trust_remote_code=True)"
                whose = f"the class of {folder}" if family.several else "its class"
                travels.append(f"{whose}, {kind.name}, travels with the weights: {load} loads it")
    sidecar = open_sidecar(stack, analysis, options.null_caption)
    writes, notes = plan_tensors(analysis, sidecar, destination.to, destination.dtype, options)
    notes += [*travels, *(f"{difference}: kept in {SIDECAR}" for difference in writes.differing)]
    model = destination.with_prefix(writes.model)
    files, more = destination.files(model, family)
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
            adapters=analysis.record.adapters,
        ),
    )


def plan_tensors(
    analysis: Analysis, sidecar: Sidecar, to: str, dtype: DType | None, options: ConversionOptions
) -> tuple[TensorWrites, list[str]]:
    """Which tensors of a model go under which keys of another layout, and what the user should know of them.

    Raises: `InputError` and `UsageError`, whatever stands against it.
    """
    family, checkpoint, findings = analysis.require(), analysis.checkpoint, analysis.findings
    if to == COMFYUI and family.comfyui is None:
        raise UsageError(f"the layout comfyui: ComfyUI cannot read a {family.title} from such a file")
    with analysis.state.file_checked_first():
        writes = (to_diffusers if to == DIFFUSERS else to_original)(analysis, sidecar, dtype)
    if not writes.model:
        raise UsageError(f"`family` {family.name}: its table gives no tensor of this file to the target")
    keys = {key for part in writes.model for key in part.keys}
    if twice := sorted(key for part in writes.sidecar for key in part.keys if key in keys):
        raise UsageError(f"`family` {family.name}: {twice[0]} is a key of the target, and of a tensor in the sidecar")
    if options.require_evidence:
        demand_evidence(family, findings, checkpoint)
    of_layout = findings.diffusers_notes if to == DIFFUSERS else findings.original_notes
    notes = [*findings.notes, *of_layout, *checkpoint_notes(checkpoint)]
    if analysis.diffusers and checkpoint.folder and not checkpoint.config:
        notes.append(f"the folder holds no {CONFIG}: its values are given or assumed")
    notes += [*merged_into(analysis.record), *sidecar.notes]
    notes += [*differences_from_record(analysis, sidecar.record), *writes.notes]
    if to == COMFYUI and family.comfyui:
        notes += family.comfyui(findings)
    return writes, notes


def digest_of(data: bytes) -> dict[str, int | str]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sources(checkpoint: Checkpoint) -> dict[str, dict[str, int | str]]:
    """Files other than the weights that were relied on, so that the record suffices for an audit."""
    return {
        Path(os.path.relpath(path, checkpoint.folder)).as_posix(): digest_of(data)
        for path, data in checkpoint.companions.items()
    }
