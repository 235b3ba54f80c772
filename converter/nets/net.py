"""A net as a list of stages over named tensors; a stage reads its weights when it runs and lets them go after it.

Both sides of a comparison are cut into stages of the same names, over values of the same names: then the one can be
run on what flows in the other, stage by stage, and neither has to be in memory whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Values = dict[str, Tensor]  # what flows through a net, by name: its inputs, what the stages add, at last "output"
Probe = Callable[[str, Tensor], None]  # told of what a stage computes inside, by name


def no_probe(name: str, value: Tensor) -> None:
    """The probe of a run that nobody watches."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a net, such as "block 14"."""

    name: str  # the same on both sides of a comparison
    run: Callable[[Values, Probe], Values]  # -> the values that it adds or replaces; it changes no tensor in place


class Net(Protocol):
    """A net in stages. `output` of the last stage's values is what it is for."""

    @property
    def stages(self) -> Sequence[Stage]: ...

    def forward(self, inputs: Values, watch: Callable[[str, Values], None] | None = None) -> Tensor:
        """The output for `inputs`; `watch` is told after each stage what has come of it."""


class Staged:
    """A net that is nothing but its stages.

    Example:
        >>> double = Staged([Stage("double", lambda values, probe: {"output": 2 * values["x"]})])
        >>> double.forward({"x": torch.tensor([3.0])})
        tensor([6.])
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages

    def steps(self, values: Values, watch: Callable[[str, Values], None] | None = None) -> Iterator[None]:
        """Run one stage whenever the next step is asked for; what comes of it is added to `values`."""
        for stage in self.stages:
            with torch.inference_mode():
                output = stage.run(values, no_probe)
            values |= output
            if watch:
                watch(stage.name, output)
            yield

    def forward(self, inputs: Values, watch: Callable[[str, Values], None] | None = None) -> Tensor:
        values = dict(inputs)
        for _ in self.steps(values, watch):
            pass
        return values["output"]


class Memory:
    """A scratch buffer, as large as the largest request so far, used over and over.

    Attributes:
        lent: what lies in it now: (lazy tensor, dtype, rounding) -> the tensor.
    """

    def __init__(self) -> None:
        self.buffer, self.lent = torch.empty(0, dtype=torch.uint8), dict[Any, Tensor]()

    def scratch(self, tensors: Sequence[tuple[torch.Size, torch.dtype]], staging: int) -> list[Tensor]:
        """Tensors of these shapes and dtypes side by side, and after them `staging` bytes; all of unknown content."""
        self.lent = {}
        sizes = [-(-shape.numel() * dtype.itemsize // 64) * 64 for shape, dtype in tensors] + [staging]
        if len(self.buffer) < sum(sizes):
            self.buffer = torch.empty(0, dtype=torch.uint8)  # let go of the old run first
            self.buffer = torch.empty(sum(sizes), dtype=torch.uint8)
        *runs, staged = self.buffer[: sum(sizes)].split(sizes)
        lent = zip(runs, tensors, strict=True)
        return [*(run[: s.numel() * d.itemsize].view(d).reshape(s) for run, (s, d) in lent), staged]


class Weights(Mapping[str, Tensor]):
    """A state dict in one dtype on one device, each tensor read when it is asked for and kept by nobody.

    Args:
        state: key -> a torch tensor, or a lazy one: its `torch(out)` reads it, into `out` where that is given.
        rounded: round to this dtype first, as a conversion that casts does.
        memory: the scratch memory; several state dicts may share it, since only one stage runs at a time.
        same: lazy tensor -> (another, read by who shares the memory, that was proven to hold the same bytes; the number
            of its elements before them). While that lies in the memory, it is not read again.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        rounded: torch.dtype | None = None,
        memory: Memory | None = None,
        same: Mapping[Any, tuple[Any, int]] | None = None,
    ) -> None:
        self.state, self.dtype, self.device, self.rounded = state, dtype, device, rounded
        self.memory, self.same = memory or Memory(), same or {}

    def dtype_of(self, key: str) -> torch.dtype:
        """The dtype that a tensor is given. A subclass may keep some of them in another one than `dtype`."""
        return self.dtype

    def __getitem__(self, key: str) -> Tensor:
        held = self.state[key]
        tensor: Tensor = held if isinstance(held, Tensor) else held.torch()
        if self.rounded is not None:
            tensor = tensor.to(self.rounded)
        return tensor.to(self.device, self.dtype_of(key))

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose keys begin with `prefix`, read, by the rest of their keys."""
        return {key[len(prefix) :]: self[key] for key in self.state if key.startswith(prefix)}

    def scratch(self, prefix: str) -> dict[str, Tensor]:
        """As `under`, in scratch memory: valid until the next call that uses the same `memory`.

        A stage that has used its weights is done with them, and fresh memory for every block of a large net would cost
        more time than reading into it.
        """
        mine = {key[len(prefix) :]: self.state[key] for key in self.state if key.startswith(prefix)}
        there = {name: tensor for name in mine if (tensor := self._there(prefix + name)) is not None}
        if len(there) == len(mine):
            return there
        room = [(torch.Size(held.shape), self.dtype_of(prefix + name)) for name, held in mine.items()]
        # What is lazy and has the right dtype already is read into its place.
        detours = [held for held, (_, dtype) in zip(mine.values(), room, strict=True) if not self._direct(held, dtype)]
        sizes = (torch.Size(held.shape).numel() * held.dtype.itemsize for held in detours)
        *lent, staging = self.memory.scratch(room, max(sizes, default=0))
        tensors = {}
        for target, (name, held) in zip(lent, mine.items(), strict=True):
            if self._direct(held, target.dtype):
                held = held.torch(target)
            elif not isinstance(held, Tensor):
                dtype = getattr(torch, held.dtype.name)
                held = held.torch(staging[: target.numel() * dtype.itemsize].view(dtype).reshape(target.shape))
            held = held if self.rounded is None else held.to(self.rounded)
            if held is not target:
                target.copy_(held)
            tensors[name] = target.to(self.device)
        lazy = ((name, held) for name, held in mine.items() if not isinstance(held, Tensor))
        self.memory.lent = {(held, tensors[name].dtype, self.rounded): tensors[name] for name, held in lazy}
        return tensors

    def _there(self, key: str) -> Tensor | None:
        """The tensor, where one that holds the same is in the memory."""
        held = self.state[key]
        other, start = self.same.get(held, (None, 0))
        there = self.memory.lent.get((other, self.dtype_of(key), self.rounded))
        shape = torch.Size(held.shape)
        return None if there is None else there.flatten()[start : start + shape.numel()].view(shape)

    def _direct(self, held: Any, dtype: torch.dtype) -> bool:
        return not isinstance(held, Tensor) and self.rounded is None and getattr(torch, held.dtype.name) == dtype

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


class HeldWeights(Weights):
    """Weights that are in memory in the dtype, and on the device, that they are wanted in: they are lent themselves."""

    def scratch(self, prefix: str) -> dict[str, Tensor]:
        return self.under(prefix)
