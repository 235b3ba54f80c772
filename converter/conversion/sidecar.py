"""What a model in diffusers' layout has no place for: in the sidecar, or in a file that the user names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from ..checkpoint import Checkpoint, LazyTensor, open_checkpoint
from ..errors import InputError, UsageError, printable, shortened
from ..filenames import RECORD, SIDECAR
from ..mapping import Computed, Extra
from ..mapping.dims import bind, mismatch
from ..mapping.rows import Row
from .analysis import Analysis, analyse
from .null_caption import mask_fault, open_tensors, without_batch
from .record import Record, find_sidecar

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
        """Digests by key, from the record, of the sidecar's tensors in use."""
        return {key: text for key, text in self.record.digests.items() if key in self.kept.keys() - self.given.keys()}

    @property
    def recorded(self) -> dict[str, str]:
        """Digests by key, from the record, of all others, which may have been trained since."""
        digests = self.record.digests
        return {key: digests[key] for key in sorted(digests.keys() - self.kept.keys() - self.given.keys())}


def analyse_with_record(
    checkpoint: Checkpoint, hyper_parameters: Mapping[str, Any], family: str | None, *, stock: bool = False
) -> Analysis:
    """`analyse`; if a converted folder does not suffice, again with the values that its record says were given."""
    analysis = analyse(checkpoint, hyper_parameters, family, stock=stock)
    if not analysis.family or not (analysis.plan.problems or analysis.needs):
        return analysis
    flags = analysis.family.flags
    given = {name: value for name, value in analysis.record.given.items() if name in flags}
    given |= {name: value for name, value in hyper_parameters.items() if value is not None}
    try:
        again = analyse(checkpoint, given, family, stock=stock)
    except UsageError:
        return analysis  # the folder is another one by now
    # What stands against it with these values says more than which of them is lacking.
    return analysis if again.needs or (again.plan.problems and analysis.plan.problems) else again


def rows_of(analysis: Analysis, kind: type) -> list[Row]:
    """The rows of the family's table that have this kind of value, but for optional groups that are not there."""
    return [row for row in analysis.require().keys.rows if isinstance(row.value, kind) and _is_there(analysis, row)]


def _is_there(analysis: Analysis, row: Row) -> bool:
    return not row.group or row.group in analysis.plan.groups


def open_sidecar(stack: ExitStack, analysis: Analysis, null_caption: str | os.PathLike[str] | None) -> Sidecar:
    """Open the sidecar of a checkpoint, and what the user says is its null caption.

    Raises: `InputError` for a sidecar, or a null caption, that is not of this model; `UsageError` for a null caption
    where none is wanted.
    """
    folder, sidecar = analysis.checkpoint.folder, Sidecar()
    if analysis.diffusers and folder:
        family, sidecar.record = analysis.require(), analysis.record
        if path := find_sidecar(folder, sidecar.record):
            tensors = stack.enter_context(open_checkpoint(path))
            for key, tensor in tensors.items():
                rows = [row for row in family.keys.rows if isinstance(row.value, Extra | Computed) and row.match(key)]
                if not rows:
                    raise InputError.at(path, key, f"nothing that a {family.title} keeps in {SIDECAR}")
                if _is_there(analysis, rows[0]):
                    sidecar.kept[key] = _checked(analysis, path, key, tensor)
    if null_caption is not None:
        sidecar.given = given_caption(stack, analysis, null_caption)
        for key, tensor in sidecar.given.items():
            recorded = sidecar.record.rows.get(key, {}).get("shape", list(tensor.shape))
            if recorded != list(tensor.shape):
                rule = f"has shape {list(tensor.shape)}, and the original's {key} had {recorded}"
                raise InputError.at(null_caption, tensor.key, rule)
        there = sorted(sidecar.given.keys() & analysis.checkpoint.keys())
        if there and not analysis.diffusers:
            raise UsageError(f"`null_caption` {printable(null_caption)}: the checkpoint has its own, {there[0]}")
    return sidecar


def given_caption(
    stack: ExitStack,
    analysis: Analysis,
    path: str | os.PathLike[str],
    tensors: Mapping[str, LazyTensor] | None = None,
) -> dict[str, LazyTensor]:
    """The null caption of a file: under its own key, or the only tensor of floats there is (a mask is none).

    Args:
        tensors: those of the file, where they are at hand.

    Raises: `InputError` where there is none that fits the model, `UsageError` where none is wanted.
    """
    family = analysis.require()
    rows = [row for row in rows_of(analysis, Extra) if isinstance(row.value, Extra) and row.value.may_be_given]
    if not rows:
        raise UsageError(f"`null_caption`: a {family.title} has none")
    masks = list[LazyTensor]()
    tensors = open_tensors(stack, path) if tensors is None else tensors
    matching = {key: tensor for key, tensor in tensors.items() if any(row.match(key) for row in rows)}
    floats = [tensor for tensor in tensors.values() if tensor.dtype.floating] or [*tensors.values()]
    if not matching and len(floats) == len(rows) == 1:
        (row,) = rows
        matching = {row.source: without_batch(floats[0], len(row.pattern or floats[0].shape))}
        masks = [tensor for name, tensor in tensors.items() if "mask" in name.lower() and not tensor.dtype.floating]
    if not matching:
        shown = shortened([f"{printable(tensor.key)} {list(tensor.shape)}" for tensor in floats], 4)
        rule = f"holds no {rows[0].source}, and more than one tensor: which one is meant? ({shown})"
        raise InputError.at(path, "", rule)
    given = {key: _checked(analysis, path, key, tensor) for key, tensor in matching.items()}
    for key, tensor in given.items():
        for row in rows:
            assert isinstance(row.value, Extra)
            if row.match(key) and (rule := row.value.misfit(analysis.findings, tensor.shape)):
                raise InputError.at(path, matching[key].key, rule)
        for mask in masks if tensor.shape else ():
            if rule := mask_fault(mask, tensor.shape[0]):
                raise InputError.at(path, mask.key, rule)
    return given


def _checked(analysis: Analysis, path: str | os.PathLike[str], key: str, tensor: LazyTensor) -> LazyTensor:
    """The tensor of a file under this key, if it has the shape that the table says, with the sizes of this model."""
    rows = [row for kind in (Extra, Computed) for row in rows_of(analysis, kind)]
    row, (_, suffix) = next((row, place) for row in rows if (place := row.match(key)))
    pattern = row.shape_pattern(suffix)
    dims = bind([(key, pattern, tensor.shape)])[0] | analysis.plan.dims
    wanted = mismatch(pattern, tensor.shape, dims) if pattern else ""
    if wanted or not tensor.dtype.floating:
        kind = f"{tensor.dtype} {list(tensor.shape)}"
        raise InputError.at(path, tensor.key, f"{kind} is not the {key} of this model: {wanted or 'no floats'}")
    return replace(tensor, key=key)
