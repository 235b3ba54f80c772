"""The way back: every tensor in the original layout, buffers included, in the order that the original file had."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..checkpoint import DType, LazyTensor
from ..checkpoint.dtypes import BY_NAME
from ..errors import InputError, UsageError, printable
from ..mapping import Computed, Extra, MappingError, Move, fold
from ..mapping.dims import bind, mismatch
from .analysis import Analysis
from .buffers import computed, table_of
from .sidecar import Sidecar, rows_of
from .to_diffusers import Arrangement, cast_parts, dtype_of, named
from .write import TensorWrite


def to_original(looked: Analysis, beside: Sidecar, dtype: DType | None) -> Arrangement:
    """Every tensor under its original key, cast to `dtype` if that is given, but for buffers that are computed.

    Raises: `InputError` for a model that cannot be put together, `UsageError` where a buffer is to be computed and
    what it depends on is not known.
    """
    return (_from_diffusers if looked.diffusers else _as_it_is)(looked, beside, dtype)


def _as_it_is(looked: Analysis, beside: Sidecar, dtype: DType | None) -> Arrangement:
    """The same layout in another container, or in another dtype."""
    family, made = looked.require(), Arrangement()
    moves = {move.origin: move for move in looked.plan.moves}
    for key, tensor in (named(looked.checkpoint) | beside.given).items():
        rounded = None if key in looked.plan.computed else dtype
        move = moves.get(key)
        groups = move.operation.groups(len(move.parts)) if move else 1
        wanted = dtype_of(family, rounded, tensor, move.parts if move else ())
        made.model.append(TensorWrite((tensor,), (key,), wanted, fused=groups))
        made.row("keep", tensor, targets=[key])
    return made


def _from_diffusers(looked: Analysis, beside: Sidecar, dtype: DType | None) -> Arrangement:
    family, path, made = looked.require(), looked.checkpoint.path, Arrangement()
    checkpoint = named(looked.checkpoint)
    recorded, parts = beside.record.rows, dict[str, TensorWrite]()
    try:
        moves = family.keys.plan_back(checkpoint).moves
    except MappingError as error:
        raise InputError(f"{printable(path)}: {error}") from error
    words = {}
    for move in moves:
        if move.operation.must_agree:
            _agree(path, move, checkpoint)
        (parts[move.origin],) = cast_parts(family, dtype, move, checkpoint)
        words[move.origin] = move.operation.word_back
    strays = {name: checkpoint[key] for key, name in looked.plan.extras.items()}
    for name, tensor in (strays | beside.tensors).items():
        rounded = None if any(row.match(name) for row in rows_of(looked, Computed)) else dtype
        parts[name] = TensorWrite((tensor,), (name,), rounded or tensor.dtype)
    if rounding := beside.record.rounding:
        made.notes.append(f"its weights were rounded to {rounding} when it was converted: bits are lost")
    made.notes += _lost(looked, recorded, parts)
    buffers = _buffers(looked, recorded, parts, made.notes)
    parts |= buffers
    # In the order of the file that all this once came from, where that is known.
    for key in [*(key for key in recorded if key in parts), *(key for key in parts if key not in recorded)]:
        part = parts[key]
        made.model.append(part)
        made.row("recompute" if key in buffers else words.get(key, "rename"), *part.sources, targets=[key])
    made.hold_to(beside, buffers)
    return made


def _agree(path: str, move: Move, checkpoint: Mapping[str, LazyTensor]) -> None:
    """Copies of one tensor are read and compared, by their digests: one run of bytes in memory at a time."""
    import numpy as np

    digests = []
    for key in move.parts:
        digest = hashlib.sha256()
        for _, part in checkpoint[key].chunks():
            digest.update(part)
        digests.append(np.frombuffer(digest.digest(), np.uint8))
    if strange := move.operation.disagreeing(move.origin, move.parts, digests):
        raise InputError(f"{printable(path)}: {MappingError(strange)}")


def _lost(looked: Analysis, recorded: dict[str, Any], parts: dict[str, TensorWrite]) -> list[str]:
    """In words, what diffusers has no home for and nothing beside the model holds: it is left out, never invented."""
    notes = []
    for row in rows_of(looked, Extra):
        if any(row.match(key) for key in parts):
            continue
        if recorded and not any(row.match(key) for key in recorded):
            notes.append(f"{row.source}: the original had none either")
        else:
            assert isinstance(row.value, Extra)
            notes.append(f"left out: {row.source}" + (f", {row.value.without}" if row.value.without else ""))
    return notes


def _buffers(
    looked: Analysis, recorded: dict[str, Any], parts: dict[str, TensorWrite], notes: list[str]
) -> dict[str, TensorWrite]:
    """What the target computes for itself and the original layout stores: computed, in the dtype that it had."""
    made = {}
    for row in rows_of(looked, Computed):
        known = [key for key in recorded if row.match(key)]
        lacking = [key for key in known or row.keys(looked.plan.stacks) if key not in parts]
        if not lacking:
            continue
        if recorded and not known:
            notes.append(f"{row.source}: the original had none, so none is written")
            continue
        table = table_of(looked.require(), row, looked.found)
        dims = bind([(row.source, row.pattern, table.shape)])[0] | looked.plan.dims
        if row.pattern and (wanted := mismatch(row.pattern, table.shape, dims)):
            family, shape = looked.require().name, list(table.shape)
            raise UsageError(f"the row {row.source!r} of the family {family} computes the shape {shape}, not {wanted}")
        for key in lacking:
            tensor = computed(key, table, BY_NAME[recorded[key]["dtype"]] if key in recorded else None)
            made[key] = TensorWrite((tensor,), (key,), tensor.dtype)
        if not recorded:
            notes += [f"{key}: computed, since diffusers stores none" for key in fold(lacking)]
    return made
