"""A base with adapters in it, as the original side of a comparison.

What was written of a sum is taken for it where it is as close to the exact one as the rounding of float32, and of what
it is written in, allows; elsewhere the exact one stands, and the audit and the nets find what differs from it. So both
nets have the same weights, and no tolerance is any wider than without adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import DType, LazyTensor
from ..checkpoint.dtypes import BY_NAME, F64
from ..checkpoint.tensor import row_major
from ..conversion.analysis import Analysis
from ..conversion.buffers import ComputedStorage
from ..conversion.record import Record
from ..conversion.to_diffusers import dtype_of
from ..errors import printable
from ..lora.adapter import Adapter
from ..lora.merge import about, open_adapters, place_on, strengths
from ..lora.placed import Placed
from ..reports.report import Check
from .choices import CheckOptions
from .provenance import sha256

if TYPE_CHECKING:
    from torch import Tensor

Written = Mapping[str, Any]  # the converted state dict


@dataclass(frozen=True)
class Merged:
    """What adapters do to a base.

    Attributes:
        adapters: with what a report says of each. placed: the tensors that they change. dtypes: what these are written
            in, by the original's keys.
        shares: key of the original -> the largest error of what was written, as a share of what rounding allows.
    """

    adapters: list[tuple[Adapter, dict[str, Any]]]
    placed: list[Placed]
    dtypes: dict[str, DType]
    shares: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, stack: ExitStack, analysis: Analysis, options: CheckOptions, cast: str) -> Merged:
        """The adapters of the options on a base.

        Args:
            stack: keeps them open. cast: the dtype that the conversion was declared to round to, '' for none.

        Raises: as `merge_lora` does.
        """
        family, partial = analysis.require(), options.allow_partial
        known: dict[str, Any] = {"lora_alpha": options.lora_alpha, "allow_partial": partial}
        opened = open_adapters(stack, strengths(options.adapters), family, **known)
        placed = place_on(analysis, opened, allow_partial=partial)
        wanted = BY_NAME.get(cast)
        dtypes = {row.move.origin: dtype_of(family, wanted, row.held[0], row.move.parts) for row in placed}
        told = [
            (adapter, about(adapter, strength, adapter.check_finite()) | {"sha256": sha256(Path(adapter.path))})
            for adapter, strength in opened
        ]
        return cls(told, placed, dtypes)

    @property
    def told(self) -> list[dict[str, Any]]:
        """What the report says of the adapters."""
        return [each for _, each in self.adapters]

    @property
    def parts(self) -> set[str]:
        """The converted keys of what they change."""
        return {name for row in self.placed for name in row.move.parts}

    @property
    def sources(self) -> list[dict[str, LazyTensor]]:
        """The tensors of the adapters."""
        return [adapter.tensors for adapter, _ in self.adapters]

    @property
    def notes(self) -> list[str]:
        """What the user should know of them."""
        return [
            f"{each['name']}: {words}"
            for adapter, each in self.adapters
            for words in (*adapter.notes, *(f"left out: {skipped}" for skipped in adapter.skipped))
        ]

    def tensors(self, written: Written | None) -> dict[str, LazyTensor]:
        """The sums, by the original's keys, computed when they are read.

        Args:
            written: what they are held against; None for the exact ones, in float64.
        """
        sums = (_Sum(self, row, written) for row in self.placed)
        held = ((row.move.origin, row.held[0].shape, one) for row, one in zip(self.placed, sums, strict=True))
        return {key: LazyTensor(key, one.dtype, shape, one, row_major(shape)) for key, shape, one in held}

    def check(self) -> Check:
        """How far what was written is from the exact sums, once it was read."""
        worst = max(self.shares, key=lambda key: (isnan(self.shares[key]), self.shares[key]), default="")
        share = self.shares.get(worst, 0.0)
        words = f"merged, off by at most {share:.2g} of what rounding allows ({worst})"
        return Check("merged", "merged", share, 1.0, passed=share <= 1, words=words)


class _Sum(ComputedStorage):
    """One tensor of the base with what adapters add to it."""

    def __init__(self, merged: Merged, placed: Placed, written: Written | None) -> None:
        self.merged, self.placed, self.written = merged, placed, written
        self.dtype = F64 if written is None else merged.dtypes[placed.move.origin]
        held = placed.held[0]
        super().__init__(held.key, held.numel * self.dtype.itemsize, self._pieces)
        self.file = held.storage.file
        self._accepted = False  # all of what was written: it need not be computed again

    def _pieces(self) -> Iterator[memoryview]:
        import torch

        written = self._read()
        value = written if written is not None and self._accepted else self._computed(written)
        elements: Any = value.contiguous().flatten().view(torch.uint8).numpy()
        yield memoryview(elements)

    def _read(self) -> Tensor | None:
        """What was written, in the original layout; None where that is no such tensor."""
        move, there, shape = self.placed.move, self.written or {}, self.placed.held[0].shape
        held = [there[name] for name in move.parts if name in there]
        fits = [part.dtype == self.dtype and tuple(part.shape[1:]) == tuple(shape[1:]) for part in held]
        if len(held) < len(move.parts) or not all(fits):
            return None
        whole: Tensor = move.operation.inverse([part.torch() for part in held])
        return whole if tuple(whole.shape) == tuple(shape) else None

    def _computed(self, written: Tensor | None) -> Tensor:
        import torch

        from ..lora.reference import half_step, reference

        dtype = getattr(torch, self.dtype.name)
        exact, doubt = reference(self.placed)
        rounded = exact.to(dtype)
        if written is None:
            return rounded
        allowed = doubt + half_step(exact.abs() + doubt, dtype)
        share = (written.double() - exact).abs() / allowed
        same = (written == rounded) | (written.isnan() & rounded.isnan())  # beyond the range of the dtype
        share = share.masked_fill(same & ~written.isfinite(), 0.0)
        self.merged.shares.setdefault(self.placed.move.origin, float(share.max()))
        self._accepted = bool((share <= 1).all())
        return torch.where(share <= 1, written, rounded)


def unlike_record(record: Record, told: Sequence[Mapping[str, Any]]) -> str:
    """How what was merged by a record differs from what is given, in words; '' where it does not, and without one."""
    said = record.content.get("adapters") or []
    try:
        pairs = [sorted((str(one["digest"]), float(one["strength"])) for one in each) for each in (said, told)]
        recorded, given = _listed(said), _listed(told)
    except (TypeError, KeyError, ValueError):  # anyone may have written it
        return ""
    if not record.content or pairs[0] == pairs[1]:
        return ""
    if not told:
        return f"adapters were merged into it, by its record: give {recorded}"
    if not said:
        return f"no adapters were merged into it, by its record; given: {given}"
    others = ", other files of these names" if recorded == given else ""
    return f"other adapters were merged into it, by its record: {recorded}{others}; given: {given}"


def _listed(told: Sequence[Mapping[str, Any]]) -> str:
    """Adapters with their strengths, as they are given."""
    return " ".join(f"`lora` {printable(str(one['name']))}={float(one['strength']):g}" for one in told)
