"""The way back: every tensor in the original layout, buffers included, in the order that the original file had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint import DType, LazyTensor
from ..checkpoint.digest import Digest
from ..checkpoint.dtypes import BY_NAME
from ..errors import InputError, UsageError, printable
from ..filenames import RECORD
from ..mapping import Computed, Extra, MappingError, Move, fold
from ..mapping.dims import bind, mismatch
from .analysis import Analysis
from .buffers import computed, table_of
from .sidecar import Sidecar, rows_of
from .to_diffusers import TensorWrites, dtype_of, named, tensor_writes
from .write import TensorWrite


def to_original(analysis: Analysis, sidecar: Sidecar, dtype: DType | None) -> TensorWrites:
    """Every tensor under its original key, cast to `dtype` if that is given, but for buffers that are computed.

    Raises: `InputError` for a model that cannot be put together, `UsageError` where a buffer is to be computed and
    what it depends on is not known.
    """
    return (_from_diffusers if analysis.diffusers else _same_layout)(analysis, sidecar, dtype)


def _same_layout(analysis: Analysis, sidecar: Sidecar, dtype: DType | None) -> TensorWrites:
    """The same layout in another container, or in another dtype."""
    family, writes = analysis.require(), TensorWrites()
    writes.notes.append("the source is in the original layout already: there was nothing to revert")
    moves = {move.origin: move for move in analysis.plan.moves}
    for key, tensor in (named(analysis.checkpoint) | sidecar.given).items():
        rounded = None if key in analysis.plan.computed else dtype
        move = moves.get(key)
        groups = move.operation.groups(len(move.parts)) if move else 1
        wanted = dtype_of(family, rounded, tensor, move.parts if move else ())
        writes.model.append(TensorWrite((tensor,), (key,), wanted, fused=groups))
        writes.row("keep", tensor, targets=[key])
    return writes


def _from_diffusers(analysis: Analysis, sidecar: Sidecar, dtype: DType | None) -> TensorWrites:
    family, path, writes = analysis.require(), analysis.checkpoint.path, TensorWrites()
    checkpoint = named(analysis.checkpoint)
    recorded, parts = sidecar.record.rows, dict[str, TensorWrite]()
    try:
        moves = family.keys.plan_back(checkpoint).moves
    except MappingError as error:
        raise InputError(f"{printable(path)}: {error}") from error
    words = {}
    for move in moves:
        row = recorded.get(move.origin, {})
        now = (move.operation.word, list(move.parts))
        if (before := (row.get("operation", now[0]), row.get("targets", now[1]))) != now or (recorded and not row):
            was = f"{before[0]} to {', '.join(map(str, before[1]))}" if row else "nothing"
            rule = (
                f"{RECORD} says {was}, and the table of the family {family.name} says {now[0]} to {', '.join(now[1])}"
            )
            raise InputError.at(path, move.origin, f"{rule}: was it another version?")
        if move.operation.must_agree:
            _check_copies(path, move, checkpoint)
        (parts[move.origin],) = tensor_writes(family, dtype, move, checkpoint)
        words[move.origin] = move.operation.word_back
    strays = {name: checkpoint[key] for key, name in analysis.plan.extras.items()}
    for name, tensor in (strays | sidecar.tensors).items():
        rounded = None if any(row.match(name) for row in rows_of(analysis, Computed)) else dtype
        parts[name] = TensorWrite((tensor,), (name,), rounded or tensor.dtype)
    if rounding := sidecar.record.rounding:
        writes.notes.append(f"its weights were rounded to {rounding} when it was converted: bits are lost")
    writes.notes += _left_out(analysis, recorded, parts)
    buffers = _buffers(analysis, recorded, parts, writes.notes)
    parts |= buffers
    # In the order of the file that all this once came from, where that is known.
    for key in [*(key for key in recorded if key in parts), *(key for key in parts if key not in recorded)]:
        part = parts[key]
        writes.model.append(part)
        writes.row("recompute" if key in buffers else words.get(key, "rename"), *part.sources, targets=[key])
    writes.expect_digests(sidecar, buffers)
    return writes


def _check_copies(path: str, move: Move, checkpoint: Mapping[str, LazyTensor]) -> None:
    """Copies of one tensor are read and compared, by their digests: one run of bytes in memory at a time."""
    import numpy as np

    digests = []
    for key in move.parts:
        digest = Digest()
        for _, part in checkpoint[key].chunks():
            digest.update(part)
        digests.append(np.frombuffer(digest.text.encode(), np.uint8))
    if strange := move.operation.disagreeing(move.origin, move.parts, digests):
        raise InputError(f"{printable(path)}: {MappingError(strange)}")


def _left_out(analysis: Analysis, recorded: dict[str, Any], parts: dict[str, TensorWrite]) -> list[str]:
    """Notes on what diffusers has no place for and no sidecar holds: it is left out, never invented."""
    notes = []
    for row in rows_of(analysis, Extra):
        assert isinstance(row.value, Extra)
        if any(row.match(key) for key in parts) or row.value.of_group not in {"", *analysis.plan.groups}:
            continue
        if recorded and not any(row.match(key) for key in recorded):
            if row.value.may_be_given:  # else most originals have none
                notes.append(f"{row.source}: the original had none either")
        else:
            notes.append(f"left out: {row.source}" + (f", {row.value.without}" if row.value.without else ""))
    return notes


def _buffers(
    analysis: Analysis, recorded: dict[str, Any], parts: dict[str, TensorWrite], notes: list[str]
) -> dict[str, TensorWrite]:
    """What the target computes for itself and the original layout stores: computed, in the dtype that it had."""
    writes = {}
    for row in rows_of(analysis, Computed):
        known = [key for key in recorded if row.match(key)]
        lacking = [key for key in known or row.keys(analysis.plan.stacks) if key not in parts]
        if not lacking:
            continue
        if recorded and not known:
            notes.append(f"{row.source}: the original had none, so none is written")
            continue
        table = table_of(analysis.require(), row, analysis.findings)
        dims = bind([(row.source, row.pattern, table.shape)])[0] | analysis.plan.dims
        if row.pattern and (wanted := mismatch(row.pattern, table.shape, dims)):
            family, shape = analysis.require().name, list(table.shape)
            raise UsageError(f"the row {row.source!r} of the family {family} computes the shape {shape}, not {wanted}")
        for key in lacking:
            tensor = computed(key, table, BY_NAME[recorded[key]["dtype"]] if key in recorded else None)
            writes[key] = TensorWrite((tensor,), (key,), tensor.dtype)
        if not recorded:
            notes += [f"{key}: computed, since diffusers stores none" for key in fold(lacking)]
    return writes
