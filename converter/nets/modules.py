"""A module of anybody's as a net in stages: its own forward, cut where sub-modules give their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .net import Values, Weights
from .streamed import StockStage, Streamed, put_buffer


class ModuleNet(Streamed):
    """A module on the weights of a state dict, in their dtype; buffers that the state dict lacks stay the module's own.

    Args:
        model: the module. Its parameters are replaced: those of a stage are in memory only while it runs.
        weights: the state dict, by the module's own keys.
        call: (model, inputs by name) -> the output of its forward.
        stages: what a stage is called -> (the path of its sub-module, what its output is called), in the order of the
            computation. `{}` in both stands for every number. The last stage, "output", is the rest.

    Raises: ValueError for a stage that is not in the module, or has the name of another.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> weights = Weights(model.state_dict(), torch.float64)
        >>> net = ModuleNet(model, weights, lambda model, values: model(values["x"]), {"first": ("0", "h")})
        >>> [stage.name for stage in net.stages], net.forward({"x": torch.ones(1, 4, dtype=torch.float64)}).shape
        (['first', 'output'], torch.Size([1, 2]))
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Weights,
        call: Callable[[Any, Values], Tensor],
        stages: Mapping[str, tuple[str, str]],
    ) -> None:
        self._buffers = dict(model.named_buffers())
        names = ["output", *(each for name, (path, _) in stages.items() for each in _names(model, name, path))]
        if twice := [name for name in names if names.count(name) > 1]:
            rest = ": that is the last one, the rest of the forward" if twice[0] == "output" else ""
            raise ValueError(f"several stages are called {twice[0]!r}{rest}")
        table = [StockStage(name, path, (value,)) for name, (path, value) in stages.items()]
        super().__init__(model, weights, [*table, StockStage("output", "", ("output",))], call, probes={})

    def streamed(self, owned: set[nn.Module]) -> dict[str, nn.Module]:
        """The stages alone: of others nobody knows whether they are called, or only hold what is."""
        return {f"{name}.": module for name, module in self.model.named_modules() if module in owned}

    def on(self, weights: Weights) -> ModuleNet:
        super().on(weights)
        for name, own in self._buffers.items():
            kept = own.to(weights.device, weights.dtype if own.is_floating_point() else own.dtype)
            put_buffer(self.model, name, weights.get(name, kept))
        return self


def _names(model: nn.Module, name: str, path: str) -> list[str]:
    """What a line of the table calls its stages.

    Raises: ValueError for one that is not in the module.
    """
    over, numbered, _ = path.partition(".{}")
    count = len([*_module(model, name, over).children()]) if numbered else 1
    if not count:
        raise ValueError(f"the stage {name!r}: {type(model).__name__}.{over} is empty")
    for i in range(count):
        _module(model, name, path.replace("{}", str(i)) if numbered else path)
    return [name.format(i) for i in range(count)] if "{}" in name else [name]


def _module(model: nn.Module, name: str, path: str) -> nn.Module:
    """The module at a path, by the names of its parts."""
    module, where = model, type(model).__name__
    for part in path.split("."):
        inner = getattr(module, part, None)
        if not isinstance(inner, nn.Module):
            there = ", ".join(child for child, _ in module.named_children()) or "no parts"
            raise ValueError(f"the stage {name!r}: there is no {part} in {where}, which has {there}")
        module, where = inner, f"{where}.{part}"
    return module
