"""What goes where: every tensor of a checkpoint, in diffusers' layout, and nothing without a reason."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..checkpoint import DType, LazyTensor
from ..checkpoint.digest import Digest
from ..checkpoint.dtypes import BY_NAME
from ..errors import InputError, printable
from ..families import Family
from ..mapping import Computed, Move
from .analysis import Analysis
from .buffers import Comparison, computed, recomputed, table_of
from .record import PlanRow
from .sidecar import CHANGED, Sidecar, rows_of
from .write import TensorWrite


@dataclass
class TensorWrites:
    """Tensors of the model and of the sidecar, the rows of the record, what the user should know, and how buffers
    differ from what the target computes, which are in the sidecar for that.

    `must_match`: key of a source -> its digest in an earlier record, which it still has to have; `recorded`:
    of what may have been trained since; `altered`: the keys of sources that something else takes the place of.
    """

    model: list[TensorWrite] = field(default_factory=list)
    sidecar: list[TensorWrite] = field(default_factory=list)
    rows: list[PlanRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    must_match: dict[str, str] = field(default_factory=dict)
    recorded: dict[str, str] = field(default_factory=dict)
    altered: set[str] = field(default_factory=set)

    @property
    def parts(self) -> list[TensorWrite]:
        """All of them."""
        return [*self.model, *self.sidecar]

    @property
    def stated(self) -> dict[str, str]:
        """Every digest that an earlier record states."""
        return self.must_match | self.recorded

    @property
    def rounded(self) -> set[str]:
        """The keys of the sources that are rounded."""
        return {tensor.key for part in self.parts for tensor in part.sources if tensor.dtype != part.dtype}

    @property
    def cast(self) -> str:
        """The dtype that something of the model is rounded to, '' where nothing is."""
        return next((part.dtype.name for part in self.model if part.dtype != part.sources[0].dtype), "")

    def expect_digests(self, sidecar: Sidecar, buffers: Collection[str] = ()) -> None:
        """What is written has to be what the record beside its source says; `buffers` were computed for it."""
        digests = sidecar.record.digests
        self.must_match |= sidecar.must_match | {key: digests[key] for key in buffers if key in digests}
        self.recorded |= {key: sha for key, sha in sidecar.recorded.items() if key not in self.must_match}

    def alter(self, keys: Collection[str]) -> None:
        """Of these sources something else is written: no earlier record says what."""
        self.altered = {*keys}
        for stated in (self.must_match, self.recorded):
            for key in self.altered & stated.keys():
                del stated[key]

    def row(self, operation: str, *sources: LazyTensor, **more: Any) -> None:
        """A row of the record. What is written of it is hashed later."""
        first, keys = sources[0], [tensor.key for tensor in sources]
        self.rows.append(PlanRow(keys, first.dtype.name, list(first.shape), operation, **more))


def named(checkpoint: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Its tensors under the keys that the table knows, so that records agree: a prefix of all keys is not in them."""
    return {key: replace(tensor, key=key) for key, tensor in checkpoint.items()}


def tensor_writes(
    family: Family, dtype: DType | None, move: Move, checkpoint: Mapping[str, LazyTensor]
) -> list[TensorWrite]:
    """What a move writes of the tensors of a checkpoint, cast where that is asked for."""
    writes = []
    for write in move.writes:
        sources = tuple(checkpoint[key] for key in write.sources)
        wanted = dtype_of(family, dtype, sources[0], move.parts if move.back else write.targets)
        writes.append(TensorWrite(sources, write.targets, wanted, runs=write.runs))
    return writes


def dtype_of(family: Family, dtype: DType | None, tensor: LazyTensor, names: Iterable[str]) -> DType:
    """What a tensor of the model is written in; `names` are its keys in the target's own library."""
    ends = tuple(f".{end}" for end in family.keep_dtype)
    kept = bool(ends) and any(f".{name}".rpartition(".")[0].endswith(ends) for name in names)
    return tensor.dtype if kept or dtype is None else dtype


def to_diffusers(analysis: Analysis, sidecar: Sidecar, dtype: DType | None) -> TensorWrites:
    """Every tensor of the model under its diffusers key, cast to `dtype` if that is given; what has no home there goes
    to the sidecar as it is. The tensors that are recomputed are read and compared, no other is."""
    family, plan, writes = analysis.require(), analysis.plan, TensorWrites()
    moves = {move.origin: move for move in plan.moves}
    there, checkpoint = sidecar.tensors, named(analysis.checkpoint)
    for key, tensor in checkpoint.items():
        if move := moves.get(key):
            writes.model += tensor_writes(family, dtype, move, checkpoint)
            writes.row(move.operation.word, tensor, targets=list(move.targets))
        elif key in plan.extras and plan.extras[key] in there:
            writes.notes.append(f"{key} is a stray copy; the sidecar's or given one is used")
        elif key in plan.extras:
            _to_sidecar(writes, tensor, plan.extras[key])
        else:
            _drop_computed(writes, analysis, key, tensor)
    for key, tensor in there.items():
        _to_sidecar(writes, tensor, key)
    writes.expect_digests(sidecar)
    check_computed(analysis, sidecar)
    return writes


def check_computed(analysis: Analysis, sidecar: Sidecar) -> None:
    """Check that a converted model's recomputed buffers still match the original's: its config may have changed.

    Raises: `InputError` where it is not.
    """
    recorded = sidecar.record.rows if analysis.diffusers else {}
    for row in rows_of(analysis, Computed):
        for key in (key for key in recorded if row.match(key)):
            wanted = sidecar.record.digests.get(key)
            if not wanted or key in sidecar.tensors:
                continue
            tensor = computed(
                key, table_of(analysis.require(), row, analysis.findings), BY_NAME[recorded[key]["dtype"]]
            )
            digest = Digest(wanted)
            digest.update(tensor.read())
            if digest.text != wanted:
                raise InputError.at(analysis.checkpoint.path, key, CHANGED)


def _to_sidecar(writes: TensorWrites, tensor: LazyTensor, name: str) -> None:
    writes.sidecar.append(TensorWrite((tensor,), (name,), tensor.dtype))
    writes.row("sidecar", tensor, sidecar=name)


def _drop_computed(writes: TensorWrites, analysis: Analysis, key: str, tensor: LazyTensor) -> None:
    compared, difference = compare_with_computed(analysis, key, tensor)
    row = {"digests": {key: compared.digest}, "reproduced": compared.equal}
    writes.row("recompute", tensor, **row, **({"sidecar": key} if difference else {}))
    if difference:
        writes.differing.append(difference)
        writes.sidecar.append(TensorWrite((tensor,), (key,), tensor.dtype))


def compare_with_computed(analysis: Analysis, key: str, tensor: LazyTensor) -> tuple[Comparison, str]:
    """(the comparison with what is recomputed; how the stored buffer, which is to be kept, differs, '' where it need
    not be)."""
    compared, dispensable, what = recomputed(analysis.require(), analysis.plan.computed[key], tensor, analysis.findings)
    if not dispensable:
        raise tensor.storage.file.error(key, what)
    return compared, f"{printable(key)} {what}" if what else ""
