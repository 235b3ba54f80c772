"""Both sides of a comparison, and what is known of them; and the buffers that the target computes anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import DType, LazyTensor
from ..checkpoint.dtypes import BY_NAME
from ..conversion.buffers import Comparison, computed, recomputed, table_of
from ..conversion.to_diffusers import dtype_of
from ..families import Family, Findings
from ..families.from_file import imported
from ..mapping import Move, Plan
from ..nets.spec import ParitySpec

if TYPE_CHECKING:
    from .merged import Merged

Tensors = Mapping[str, Any]  # key -> something with `dtype`, `shape` and `read()` (a lazy tensor)


def _unavailable(*_: Any) -> Any:
    """Stands in for the nets of a family without any: only weights and config are compared."""
    raise AssertionError("a net of a family that brings none")


UNAVAILABLE = ParitySpec(reference=_unavailable, converted=_unavailable, cases=_unavailable)  # weights and config only


def spec_of(family: Family) -> ParitySpec:
    """The parity spec of a family, imported where it is needed; `UNAVAILABLE` where it has none.

    Raises: `UsageError` where it cannot be imported.
    """
    spec = imported(family, "parity")
    return spec if isinstance(spec, ParitySpec) else UNAVAILABLE


@dataclass(frozen=True)
class Sides:
    """The original with its plan, and the converted state dict.

    Attributes:
        findings: with what was `borrowed` from the converted config, for want of anything else.
        sidecar: None where there is none.
        cast: the dtype that the conversion was declared to round to, '' for none.
        seen: the findings before anything was borrowed, where they differ: what the original does not show cannot
            excuse a buffer.
        folder: that holds the converted model's weights and `config`, or the folders that do.
        notes: what is to be said of the whole comparison.
        merged: the adapters that are in the converted model, and so in `original`; None for none.
        unlike_record: how they differ from what the record of the conversion says of them, in words.
        proven: what the weight audit found equal: converted tensor -> (the original's that has its bytes, the number of
            elements before them).
    """

    family: Family
    findings: Findings
    plan: Plan
    original: Tensors
    converted: Tensors
    sidecar: Tensors | None = None
    cast: str = ""
    seen: Findings | None = None
    spec: ParitySpec = UNAVAILABLE
    config: Mapping[str, Any] = field(default_factory=dict)
    borrowed: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    notes: list[str] = field(default_factory=list)
    merged: Merged | None = None
    unlike_record: str = ""
    proven: dict[Any, tuple[Any, int]] = field(default_factory=dict)

    def against(self, converted: Tensors) -> Sides:
        """The same with another converted state dict, against which sums of base and adapters are held anew."""
        if self.merged is None:
            return replace(self, converted=converted)
        return replace(self, converted=converted, original={**self.original, **self.merged.tensors(converted)})

    @cached_property
    def recomputed(self) -> dict[str, tuple[Comparison, bool, str]]:
        """Key of a stored buffer that the target computes -> (the comparison; whether the model is the same
        without the stored buffer; how the stored one differs).

        Raises: `UsageError` where that has to be stated.
        """
        return {
            key: recomputed(self.family, row, self.original[key], self.findings, seen=self.seen)
            for key, row in self.plan.computed.items()
        }

    @cached_property
    def exact(self) -> dict[str, LazyTensor]:
        """The buffers that differ from the computed ones only by how they were stored, as they are computed: a
        rounding, or a drift that the user declared to ignore, is no part of the function."""
        return {
            key: computed(key, table_of(self.family, self.plan.computed[key], self.findings))
            for key, (comparison, dispensable, _) in self.recomputed.items()
            if dispensable and comparison.difference <= self.family.storing
        }

    def place(self, folder: str) -> Path:
        """Where a folder of the model lies: in `folder`, or that is it."""
        return inner if (inner := self.folder / folder).is_dir() else self.folder

    @property
    def rounded(self) -> bool:
        """Whether the declared cast loses anything: to a wider dtype it does not."""
        kinds = {(self.original[move.origin].dtype, self.dtype_of(move)) for move in self.plan.moves}
        return any(kind != target and kind.itemsize >= target.itemsize for kind, target in kinds)

    def dtype_of(self, move: Move) -> DType:
        """What a conversion with the declared cast writes the tensors of a move in."""
        return dtype_of(self.family, BY_NAME.get(self.cast), self.original[move.origin], move.parts)
