"""The nets of one pair, in every precision: the original's, and the one that the target's own code makes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from ..checkpoint.dtypes import BY_NAME
from ..nets import Memory, Net, Stage, Weights
from ..nets.faults import Altered
from ..nets.inputs import Case
from ..nets.spec import ParitySpec
from ..nets.streamed import Streamed
from . import localise
from .choices import FLOAT64, HALF
from .weight_pair import WeightPair


class NetPair:
    """Makes the nets of one pair, whose weights are read when they run.

    Args:
        sides: the opened state dicts with their plan; `config`: the converted `config.json`.
    """

    def __init__(self, sides: WeightPair, model: ParitySpec, config: Mapping[str, Any], device: str) -> None:
        self.sides, self.model, self.config, self.device = sides, model, config, device
        self._memory = Memory()
        self._net: Net | None = None

    @cached_property
    def _source(self) -> Mapping[str, Any]:
        """What the converted net is held against: the original's weights, rounded as the conversion was declared to.

        What does not travel is as the original has it; a table that the target computes, not as it was stored.
        """
        sides = self.sides
        if not sides.cast:
            return self._stored
        torch_dtype, dtype = getattr(torch, sides.cast), BY_NAME[sides.cast]
        moved = {move.origin for move in sides.plan.moves}
        return {
            key: Altered(held, lambda tensor: tensor.to(torch_dtype), dtype) if key in moved else held
            for key, held in self._stored.items()
        }

    @cached_property
    def _stored(self) -> Mapping[str, Any]:
        return {**self.sides.original, **self.sides.exact}

    def original(self, precision: str, rounded: str = "", as_stored: bool = False) -> Net:
        """The reference net; of weights that are rounded as the conversion was declared to, unless `as_stored`."""
        state = self._stored if as_stored else self._source
        return self.model.reference(self.sides.found, self.weights(state, precision, rounded))

    def converted(self, precision: str, rounded: str = "") -> Net:
        return self.build(self.config, self.sides.converted, precision, rounded)

    def build(
        self, config: Mapping[str, Any], state: Mapping[str, Any], precision: str = FLOAT64, rounded: str = ""
    ) -> Net:
        """The converted net of a config. A streamed one is built once and goes from one state dict to the next: only
        one is in use at a time."""
        weights = self.weights(state, precision, rounded)
        if config is not self.config:
            return self.model.converted(config, weights)
        if isinstance(self._net, Streamed):
            return self._net.on(weights)
        self._net = self.model.converted(config, weights)
        return self._net

    def weights(self, state: Mapping[str, Any], precision: str, rounded: str = "") -> Weights:
        """A state dict in a precision, read when it is asked for."""
        first = getattr(torch, rounded) if rounded else None
        return Weights(state, getattr(torch, precision), self.device, rounded=first, memory=self._memory)

    def lockstep(self, case: Case, precision: str) -> tuple[list[localise.StageError], list[str]]:
        """What `localise.lockstep` finds in a precision, and the names of the stages that are faulty."""
        rounded = precision if precision in HALF else ""
        stages = localise.lockstep(
            self.original(precision, rounded),
            self.converted(precision, rounded),
            case,
            self.device,
            dtype=getattr(torch, precision),
            exact=None if precision == FLOAT64 else self.original(FLOAT64, rounded),
        )
        return stages, [stage.name for stage in stages if stage.faulty]


def stage_of(net: Net, name: str) -> Stage:
    """The stage of that name."""
    return next(stage for stage in net.stages if stage.name == name)


def is_resource_error(error: Exception) -> bool:
    """Whether something went wrong that says nothing of either net: no room for them, or a library that is broken."""
    room = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return room or isinstance(error, ImportError)
