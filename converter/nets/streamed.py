"""A stock module run as a net in stages, its parameters read when a part of it runs and let go afterwards.

The forward is the library's own, whole and untouched. A stage by itself is that forward too: what comes before the
stage answers with the values that it is given, without running, and the forward ends once the stage has answered. All
parameters stand on the meta device; those of a part are there, strictly, while it runs: a net of gigabytes runs in the
memory of its largest part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .net import Probe, Stage, Values, Weights, no_probe

if TYPE_CHECKING:
    from .stock import Stock, StockStage


class _Answered(Exception):
    """Ends a forward once all that is wanted of it is there."""


@dataclass(frozen=True)
class _Part:
    """A module that makes (some of) a stage: what its output is called, and what a probe is told that it is."""

    module: nn.Module
    names: tuple[str, ...]
    label: str

    def values(self, output: Any) -> Values:
        return dict(zip(self.names, output if len(self.names) > 1 else (output,), strict=True))

    def output(self, values: Values) -> Any:
        made = tuple(values[name] for name in self.names)
        return made if len(made) > 1 else made[0]


@dataclass(frozen=True)
class _Placed:
    """A stage in one model."""

    name: str
    parts: Sequence[_Part]
    probes: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class Streamed:
    """A stock module as a `Net`, run on streamed weights.

    Args:
        stock: the table; `model`: a module of its class, parameters on the meta device.
        weights: the state dict, by the module's own keys.
    """

    def __init__(self, stock: Stock, model: nn.Module, weights: Weights) -> None:
        self.stock, self.model, self.weights = stock, model.eval().requires_grad_(False), weights
        self._answering: set[nn.Module] = set()  # they do not run, but answer with what they are given
        self._placed = [placed for line in stock.stages for placed in _place(model, line, stock.probes)]
        owned = {part.module for placed in self._placed for part in placed.parts} - {model}
        streamed = dict(_streamable(model, "", owned))
        for prefix, module in streamed.items():
            self._stream(module, prefix)
        # What is in none of them (single parameters at the top) is little, and stays.
        self._staying = [name for name, _ in model.named_parameters() if not name.startswith(tuple(streamed))]
        for name, buffer in model.named_buffers():
            owner(model, name)._buffers[name.rpartition(".")[2]] = buffer.to(weights.device)
        self.stages = [Stage(placed.name, self._runner(index)) for index, placed in enumerate(self._placed)]
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
            if module in self._answering:
                return
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
        """The library's own forward; `watch` is told what comes of each stage, of many modules of the first of them."""
        *inner, whole = self._placed

        def told(name: str, part: _Part) -> Callable[..., None]:
            return lambda module, arguments, output: watch(name, part.values(output)) if watch else None

        with ExitStack() as undo, torch.inference_mode():
            for placed in inner if watch else ():
                first = placed.parts[0]
                undo.callback(first.module.register_forward_hook(told(placed.name, first)).remove)
            output = self.stock.call(self.model, inputs)
        if watch:
            watch(whole.name, whole.parts[0].values(output))
        return output

    def _runner(self, index: int) -> Callable[[Values, Probe], Values]:
        """What runs one stage alone, by the library's forward on the values of the stages before it."""
        before, placed, after = self._placed[:index], self._placed[index], self._placed[index + 1 : -1]
        wanted = {part.module for part in placed.parts}
        around = [part for later in after for part in later.parts if wanted & set(part.module.modules())]

        def run(values: Values, probe: Probe) -> Values:
            made: Values = {}

            def answered(part: _Part) -> Callable[..., None]:
                def hook(module: nn.Module, arguments: Any, output: Any) -> None:
                    made.update(part.values(output))
                    if len(placed.parts) > 1:
                        probe(part.label, output)
                    raise _Answered

                return hook

            def left(part: _Part, forward: Callable[..., Any]) -> Callable[..., Any]:
                """Of a module around some that are wanted: it is left as soon as they have answered."""

                def run_until(*arguments: Any, **named: Any) -> Any:
                    try:
                        return forward(*arguments, **named)
                    except _Answered:
                        if len(made) == sum(len(one.names) for one in placed.parts):
                            raise
                        return part.output(values)

                return run_until

            with ExitStack() as undo:
                for part in [part for earlier in before for part in earlier.parts]:
                    if values.keys() >= set(part.names):
                        _replace(undo, part.module, _answer(part.output(values)))
                        self._answering.add(part.module)
                        undo.callback(self._answering.discard, part.module)
                for part in around:
                    _replace(undo, part.module, left(part, part.module.forward))
                for part in placed.parts:
                    for hook in probe_hooks(part.module, placed.probes, probe):
                        undo.callback(hook.remove)
                    if part.module is not self.model:
                        undo.callback(part.module.register_forward_hook(answered(part)).remove)
                try:
                    return placed.parts[0].values(self.stock.call(self.model, values))
                except _Answered:
                    return made

        return run


def _place(model: nn.Module, line: StockStage, probes: Mapping[str, tuple[str, str]]) -> Iterator[_Placed]:
    """A line of the table in one model; nothing where the model has no such module, as a config may say."""
    over, numbered, _ = line.path.partition(".{}")
    try:
        count = sum(1 for _ in model.get_submodule(over).children()) if numbered else 1
        modules = [model.get_submodule(line.path.replace("{}", str(i))) for i in range(count)]
    except AttributeError:
        return
    parts = [_Part(module, tuple(n.format(i) for n in line.values), f"block {i}") for i, module in enumerate(modules)]
    if "{}" in line.name:
        yield from (_Placed(line.name.format(i), [part], probes) for i, part in enumerate(parts))
    elif parts:
        yield _Placed(line.name, parts)


def _streamable(module: nn.Module, prefix: str, owned: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose parameters come and go together, by prefix: as large as they can be with no stage inside."""
    for name, child in module.named_children():
        path = f"{prefix}{name}."
        if owned & (set(child.modules()) - {child}):
            yield from _streamable(child, path, owned)
        elif next(child.parameters(), None) is not None:
            yield path, child


def _replace(undo: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let a module compute something else until `undo` is left."""
    vars(module)["forward"] = forward
    undo.callback(vars(module).pop, "forward")


def _answer(output: Any) -> Callable[..., Any]:
    return lambda *_, **__: output


def owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in a parameter's place, whatever its dtype or device."""
    owner(module, name)._parameters[name.rpartition(".")[2]] = nn.Parameter(tensor, requires_grad=False)


def probe_hooks(module: nn.Module, inside: Mapping[str, tuple[str, str]], probe: Probe) -> list[Any]:
    """Hooks that tell `probe` of what sub-modules take ('input') or give ('output'), by the names of `inside`.

    The caller removes them; none are made where nobody listens.
    """
    if probe is no_probe:
        return []

    def takes(name: str) -> Callable[..., None]:
        return lambda part, arguments: probe(name, arguments[0])

    def gives(name: str) -> Callable[..., None]:
        return lambda part, arguments, output: probe(name, output)

    hooks: list[Any] = []
    for name, (path, side) in inside.items():
        part = module.get_submodule(path)
        if side == "input":
            hooks.append(part.register_forward_pre_hook(takes(name)))
        else:
            hooks.append(part.register_forward_hook(gives(name)))
    return hooks
