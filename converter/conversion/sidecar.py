"""What a model in diffusers' layout has no place for: in the sidecar, or in a file that the user names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from ..checkpoint import Checkpoint, LazyTensor, open_checkpoint
from ..errors import InputError, UsageError, printable
from ..filenames import RECORD, SIDECAR
from ..mapping import Computed, Extra
from ..mapping.dims import bind, mismatch
from ..mapping.rows import Row
from .analysis import Analysis, analyse
from .record import Record, find_record, find_sidecar

CHANGED = f"is not what {RECORD} says that the original held: was the config or {SIDECAR} changed?"


@dataclass
class Sidecar:
    """The record of the conversion that made a model, and tensors by their original key: `kept` in the sidecar, or
    `given` by the user.
    """

    record: Record = field(default_factory=Record)
    kept: dict[str, LazyTensor] = field(default_factory=dict)
    given: dict[str, LazyTensor] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, LazyTensor]:
        """All of them; those that the user gives take precedence."""
        return self.kept | self.given

    @property
    def notes(self) -> list[str]:
        """What the user should know of it."""
        odd = [self.record.odd] if self.record.odd else []
        displaced = sorted(self.kept.keys() & self.given.keys())
        return odd + [f"{key}: the one given by the user replaces that in {SIDECAR}" for key in displaced]

    @property
    def must_match(self) -> dict[str, str]:
        """SHA-256 by key, from the record, of the sidecar's tensors in use."""
        return {key: sha for key, sha in self.record.digests.items() if key in self.kept.keys() - self.given.keys()}

    @property
    def recorded(self) -> dict[str, str]:
        """SHA-256 by key, from the record, of all others, which may have been trained since."""
        others = self.record.digests.keys() - self.kept.keys() - self.given.keys()
        return {key: self.record.digests[key] for key in sorted(others)}


def analyse_with_record(checkpoint: Checkpoint, hyper_parameters: Mapping[str, Any], family: str | None) -> Analysis:
    """`analyse`; if a converted folder does not suffice, again with the values that its record says were given."""
    analysis, folder = analyse(checkpoint, hyper_parameters, family), checkpoint.folder
    if not analysis.family or not analysis.diffusers or not folder or not (analysis.plan.problems or analysis.needs):
        return analysis
    flags = analysis.family.flags
    given = {name: value for name, value in find_record(folder).given.items() if name in flags}
    given |= {name: value for name, value in hyper_parameters.items() if value is not None}
    try:
        again = analyse(checkpoint, given, family)
    except UsageError:
        return analysis  # the folder is another one by now
    return analysis if again.plan.problems or again.needs else again


def rows_of(analysis: Analysis, kind: type) -> list[Row]:
    """The rows of the family's table that have this kind of value."""
    return [row for row in analysis.require().keys.rows if isinstance(row.value, kind)]


def open_sidecar(stack: ExitStack, analysis: Analysis, null_caption: str | os.PathLike[str] | None) -> Sidecar:
    """Open the sidecar of a checkpoint, and what the user says is its null caption.

    Raises: `InputError` for a sidecar, or a null caption, that is not of this model; `UsageError` for a null caption
    where none is wanted.
    """
    folder, sidecar = analysis.checkpoint.folder, Sidecar()
    if analysis.diffusers and folder:
        sidecar.record = find_record(folder)
        if path := find_sidecar(folder, sidecar.record):
            tensors = stack.enter_context(open_checkpoint(path))
            for key, tensor in tensors.items():
                if not any(row.match(key) for kind in (Extra, Computed) for row in rows_of(analysis, kind)):
                    raise InputError.at(path, key, f"nothing that a {analysis.require().title} keeps in {SIDECAR}")
                sidecar.kept[key] = _checked(analysis, key, tensor)
    if null_caption is not None:
        sidecar.given = _given(stack, analysis, null_caption)
        for key, tensor in sidecar.given.items():
            recorded = sidecar.record.rows.get(key, {}).get("shape", list(tensor.shape))
            if recorded != list(tensor.shape):
                rule = f"has shape {list(tensor.shape)}, and the original's {key} had {recorded}"
                raise InputError.at(null_caption, tensor.key, rule)
        there = sorted(sidecar.given.keys() & analysis.checkpoint.keys())
        if there and not analysis.diffusers:
            raise UsageError(f"`null_caption` {printable(null_caption)}: the checkpoint has its own, {there[0]}")
    return sidecar


def _given(stack: ExitStack, analysis: Analysis, path: str | os.PathLike[str]) -> dict[str, LazyTensor]:
    """The null caption of a file: under its own key, or the only tensor there is."""
    rows, family = rows_of(analysis, Extra), analysis.require()
    if not rows:
        raise UsageError(f"`null_caption`: a {family.title} has none")
    tensors = stack.enter_context(open_checkpoint(path))
    matching = {key: tensor for key, tensor in tensors.items() if any(row.match(key) for row in rows)}
    if not matching and len(tensors) == len(rows) == 1:
        matching = {rows[0].source: next(iter(tensors.values()))}
    if not matching:
        raise InputError.at(path, "", f"holds no {rows[0].source}, and more than one tensor: which one is meant?")
    return {key: _checked(analysis, key, tensor) for key, tensor in matching.items()}


def _checked(analysis: Analysis, key: str, tensor: LazyTensor) -> LazyTensor:
    """The tensor under this key, if it has the shape that the table says, with the sizes of this model."""
    rows = [row for kind in (Extra, Computed) for row in rows_of(analysis, kind)]
    row, (_, suffix) = next((row, place) for row in rows if (place := row.match(key)))
    pattern = row.shape_pattern(suffix)
    dims = bind([(key, pattern, tensor.shape)])[0] | analysis.plan.dims
    wanted = mismatch(pattern, tensor.shape, dims) if pattern else ""
    if wanted or not tensor.dtype.floating:
        kind = f"{tensor.dtype} {list(tensor.shape)}"
        raise tensor.storage.file.error(tensor.key, f"{kind} is not the {key} of this model: {wanted or 'no floats'}")
    return replace(tensor, key=key)
