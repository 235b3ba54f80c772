"""A stock module whose parameters are read when a part of it runs and let go afterwards.

The forward is the library's own, whole and untouched. All parameters stand on the meta device; hooks put those of a
part in its place before it runs, strictly, and take them out after: a net of gigabytes runs in the memory of its
largest part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..reference import Probe, Stage, Values, Weights, unheard


class Streamed:
    """A stock module cut into stages, run on streamed weights.

    Args:
        model: the module, parameters on the meta device.
        parts: paths of the sub-modules whose parameters come and go together.
        weights: the state dict, by the module's own keys.
        call: (model, inputs) -> output: the library's own forward.
        stages: the same work in stages, for running one of them alone.
        watched: stage name -> (path of the sub-module, its output -> the values that came of it).
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Sequence[str],
        weights: Weights,
        call: Callable[[Any, Values], Tensor],
        stages: Sequence[Stage],
        watched: Mapping[str, tuple[str, Callable[[Any], Values]]],
    ) -> None:
        self.model, self.weights, self.stages = model.eval().requires_grad_(False), weights, stages
        self._call, self._watched = call, watched
        for path in parts:
            self._stream(model.get_submodule(path), f"{path}.")
        # What belongs to no part (single parameters at the top) is little, and stays.
        streamed = tuple(f"{path}." for path in parts)
        self._staying = [name for name, _ in model.named_parameters() if not name.startswith(streamed)]
        self.on(weights)

    def on(self, weights: Weights) -> Streamed:
        """The same net on other weights: building the modules of a large one anew takes longer than running a block."""
        self.weights = weights
        for name in self._staying:
            _put(self.model, name, weights[name])
        return self

    def _stream(self, module: nn.Module, prefix: str) -> None:
        """Let a module's parameters be there only while it runs."""
        absent = {name: parameter.to("meta") for name, parameter in module.named_parameters()}

        def bring(*_: Any) -> None:
            lent = self.weights.lend(prefix)
            for name, parameter in absent.items():
                if lent[name].shape != parameter.shape:
                    shapes = f"{list(lent[name].shape)}, not {list(parameter.shape)}"
                    raise ValueError(f"{prefix}{name} has shape {shapes}")
                _put(module, name, lent[name])

        def let_go(*_: Any) -> None:
            for name, parameter in absent.items():
                _put(module, name, parameter)

        let_go()
        module.register_forward_pre_hook(bring)
        module.register_forward_hook(let_go, always_call=True)

    def forward(self, inputs: Values, watch: Callable[[str, Values], None] | None = None) -> Tensor:
        """The library's own forward; `watch` is told what comes of each stage."""
        hooks = []
        if watch:
            for stage, (path, values) in self._watched.items():
                hooks.append(self.model.get_submodule(path).register_forward_hook(_teller(watch, stage, values)))
        try:
            with torch.inference_mode():
                output = self._call(self.model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        if watch:
            watch(self.stages[-1].name, {"output": output})
        return output


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in a parameter's place, whatever its dtype or device."""
    owner, _, last = name.rpartition(".")
    module.get_submodule(owner)._parameters[last] = nn.Parameter(tensor, requires_grad=False)


def _teller(
    watch: Callable[[str, Values], None], stage: str, values: Callable[[Any], Values]
) -> Callable[[Any, Any, Any], None]:
    return lambda module, arguments, output: watch(stage, values(output))


def listening(module: nn.Module, inside: Mapping[str, tuple[str, str]], probe: Probe) -> list[Any]:
    """Hooks that tell `probe` of what sub-modules take ('input') or give ('output'), by the names of `inside`.

    The caller removes them; none are made where nobody listens.
    """
    if probe is unheard:
        return []
    hooks: list[Any] = []
    for name, (path, side) in inside.items():
        part = module.get_submodule(path)
        if side == "input":
            hooks.append(part.register_forward_pre_hook(_hears_input(probe, name)))
        else:
            hooks.append(part.register_forward_hook(_hears_output(probe, name)))
    return hooks


def _hears_input(probe: Probe, name: str) -> Callable[[Any, Any], None]:
    return lambda module, arguments: probe(name, arguments[0])


def _hears_output(probe: Probe, name: str) -> Callable[[Any, Any, Any], None]:
    return lambda module, arguments, output: probe(name, output)
