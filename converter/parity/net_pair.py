"""The nets of one pair, in every precision: the original's, and the one that the target's own code makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..nets import Memory, Net, Values, Weights
from ..nets.faults import ChangedTensor, Fault
from ..nets.streamed import Streamed
from ..reports.report import Check
from .catalogue import catalogue
from .choices import FLOAT64
from .function import CaseOutcome, Judge
from .sides import Sides
from .waivers import Waiver, apply


class NetPair:
    """Makes the nets of one pair, whose weights are read when they run, and keeps what they gave.

    Args:
        waivers: those in force.
        digest: SHA-256 of the original, which a waiver may be bound to.

    Attributes:
        fix: the family's `PostLoadFix`, where this model needs it; `fixed`: whether the mended net is compared.
        outcomes: what the nets gave, by case.
        saved: the file of a user's own inputs, where it is not those of a profile that are run.
        tail: for faults that cost no more than the last two stages: the first of these, and the original's values
            before it.
    """

    def __init__(self, sides: Sides, device: str = "cpu", waivers: Sequence[Waiver] = (), digest: str = "") -> None:
        self.as_loaded = sides.spec
        self.fix = sides.spec.fix(sides.findings, sides.config)
        self.fixed = self.fix is not None and bool(sides.findings.given.get(self.fix.flag))
        self.sides = replace(sides, spec=self.fix.spec) if self.fix and self.fixed else sides
        self.model, self.config, self.device = self.sides.spec, sides.config, device
        self.waivers, self.digest = waivers, digest
        self.judge = Judge(self.model.parts(sides.findings), self.model.patch(sides.findings))
        self.outcomes: list[CaseOutcome] = []
        self.saved: str | os.PathLike[str] | None = None
        self._memory = Memory()
        self._net: Net | None = None
        names = [stage.name for stage in self.original(FLOAT64).stages]
        self._early, self.tail = set(names[:-2]), (names[-2:][0], dict[str, Tensor]())

    @cached_property
    def _source(self) -> Mapping[str, Any]:
        """The weights of the reference net: the original's, rounded as the conversion was declared to.

        What is not converted stays as in the original; a table that the target computes is the computed one.
        """
        sides = self.sides
        if not sides.cast:
            return self._stored
        torch_dtype, dtypes = getattr(torch, sides.cast), {m.origin: sides.dtype_of(m) for m in sides.plan.moves}
        return {
            key: ChangedTensor(held, lambda tensor: tensor.to(torch_dtype), dtypes[key])
            if dtypes.get(key, held.dtype) != held.dtype
            else held
            for key, held in self._stored.items()
        }

    @cached_property
    def _stored(self) -> Mapping[str, Any]:
        return {**self.sides.original, **self.sides.exact}

    def original(self, precision: str, rounded: str = "", as_stored: bool = False) -> Net:
        """The reference net; of weights that are rounded as the conversion was declared to, unless `as_stored`."""
        exact = self.sides.merged.tensors(None) if as_stored and self.sides.merged else {}
        state = {**self._stored, **exact} if as_stored else self._source
        return self.model.reference(self.sides.findings, self.weights(state, precision, rounded))

    def converted(
        self,
        precision: str = FLOAT64,
        rounded: str = "",
        *,
        state: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        change: Callable[[Any], object] | None = None,
    ) -> Net:
        """The converted net, or that of another state dict or config. A streamed one is built once and goes from one
        state dict to the next: only one is in use at a time.

        Args:
            change: done to the target's module, of a net that is built for that alone.
        """
        weights = self.weights(self.sides.converted if state is None else state, precision, rounded)
        if config is not None or change:
            net = self.model.converted(self.config if config is None else config, weights)
            if change:
                if not isinstance(net, Streamed):
                    raise TypeError(f"a fault of the target's module needs one, and not a {type(net).__name__}")
                change(net.model)
            return net
        if isinstance(self._net, Streamed):
            return self._net.on(weights)
        self._net = self.model.converted(self.config, weights)
        return self._net

    def weights(self, state: Mapping[str, Any], precision: str, rounded: str = "") -> Weights:
        """A state dict in a precision, read when it is asked for."""
        first = getattr(torch, rounded) if rounded else None
        dtype, same = getattr(torch, precision), self.sides.proven
        return Weights(state, dtype, self.device, rounded=first, memory=self._memory, same=same)

    def keep(self, stage: str, values: Values) -> None:
        """Keep the original's values as they are before its last two stages."""
        if stage in self._early:
            self.tail[1].update(values)

    def known_faults(self, block: int | None = None) -> list[Fault]:
        """The faults that the table has in it, of one block (default: the last)."""
        return catalogue(self.sides.plan, self.model, block)

    def waive(self, checks: Sequence[Check]) -> list[str]:
        """Apply the waivers in force; returns a line for each."""
        return apply(self.waivers, checks, checkpoint=self.digest)


def is_resource_error(error: Exception) -> bool:
    """Whether an error says nothing about either net: out of memory, or a broken library."""
    room = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return room or isinstance(error, ImportError)
