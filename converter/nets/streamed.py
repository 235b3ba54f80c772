"""A stock module run as a net in stages, its parameters read when a part of it runs and let go afterwards.

The forward is the library's own, whole and untouched. A stage by itself is that forward too: the modules before it
return the given values without running, and the forward ends once the stage has its output. All
parameters are on the meta device; those of a part are loaded only while it runs: a net of gigabytes runs in the
memory of its largest part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .net import Probe, Stage, Values, Weights, no_probe


@dataclass(frozen=True)
class StockStage:
    """Where a stage is in the stock module."""

    name: str  # with `{}` there is a stage for each number that `path` matches
    path: str  # of the sub-module, "" for the whole. With `{}` and none in `name`, one stage of many modules
    values: tuple[str, ...]  # what its output is called; several names where it is a tuple
    batched: bool = field(default=False, repr=False)  # of several names: they are parts of the batch of one tensor
    block: str = field(default="", repr=False)  # path inside, ending in a dot, of the block that the probes are in


class _StageDone(Exception):
    """Ends a forward once the stage has its output."""


@dataclass(frozen=True)
class _Module:
    """A module that makes (some of) a stage."""

    module: nn.Module
    names: tuple[str, ...]  # what its output is called
    label: str  # what a probe is told that it is
    probes: Mapping[str, tuple[str, str]]  # what a probe is told of it inside
    batched: bool = False  # whether they are parts of the batch of one tensor

    def values(self, output: Any) -> Values:
        if self.batched:
            output = output.chunk(len(self.names))
        return dict(zip(self.names, output if len(self.names) > 1 else (output,), strict=True))

    def output(self, values: Values) -> Any:
        output = tuple(values[name] for name in self.names)
        if self.batched:
            return torch.cat(output)
        return output if len(output) > 1 else output[0]


class Streamed:
    """A stock module as a `Net`, run on streamed weights.

    Args:
        model: parameters on the meta device; `weights`: the state dict, by the module's own keys.
        stages: where they are in it, the whole as the last; `probes` inside those with a number in their name.
        call: (model, inputs) -> the output of its forward.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Weights,
        stages: Sequence[StockStage],
        call: Callable[[Any, Values], Tensor],
        *,
        probes: Mapping[str, tuple[str, str]],
    ) -> None:
        self.model, self.call = model.eval().requires_grad_(False), call
        self._parts = {name: parts for line in stages for name, parts in _place(model, line, probes)}
        owned = {part.module for parts in self._parts.values() for part in parts} - {model}
        streamed = self.streamed(owned)
        for prefix, module in streamed.items():
            self._stream(module, prefix)
        # What is in none of them (as a rule single parameters at the top) is little, and stays.
        self._staying = [name for name, _ in model.named_parameters() if not name.startswith(tuple(streamed))]
        for name, buffer in model.named_buffers():
            put_buffer(model, name, buffer.to(weights.device))
        self.stages = [Stage(name, partial(self._alone, i)) for i, name in enumerate(self._parts)]
        self.on(weights)

    def streamed(self, owned: set[nn.Module]) -> dict[str, nn.Module]:
        """The modules whose parameters come and go, by prefix; `owned`: those that make a stage."""
        return dict(_streamable(self.model, "", owned))

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
            if "forward" in vars(module):  # replaced: it does not run, and its weights are not read
                return
            lent = self.weights.scratch(prefix)
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
        """The library's own forward; `watch` gets each stage's output, of several modules that of the first."""
        *inner, (whole, (top,)) = self._parts.items()

        def tell(name: str, part: _Module, *hooked: Any) -> None:  # (module, arguments, output)
            if watch:
                watch(name, part.values(hooked[-1]))

        with ExitStack() as undo, torch.inference_mode():
            for name, parts in inner if watch else ():
                hook = parts[0].module.register_forward_hook(partial(tell, name, parts[0]))
                undo.callback(hook.remove)
            output = self.call(self.model, inputs)
        tell(whole, top, output)
        return output

    def _alone(self, index: int, values: Values, probe: Probe) -> Values:
        """One stage by itself: the library's forward, from the values before the stage to its own."""
        *stages, _ = self._parts.values()
        parts, answers = [*self._parts.values()][index], dict[str, Tensor]()
        wanted, whole = {part.module for part in parts}, parts[0].module is self.model

        def answer(part: _Module, module: nn.Module, arguments: Any, output: Any) -> None:
            answers.update(part.values(output))
            if len(parts) > 1:
                probe(part.label, output)
            raise _StageDone

        def until_answered(part: _Module, forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            """The forward of a module around some that are wanted: left as soon as one of them has answered."""
            try:
                return forward(*arguments, **named)
            except _StageDone:
                if all(name in answers for one in parts for name in one.names):
                    raise
                return part.output(values)

        with ExitStack() as undo:

            def compute(module: nn.Module, forward: Callable[..., Any]) -> None:
                """Let a module compute something else."""
                vars(module)["forward"] = forward
                undo.callback(vars(module).pop, "forward")

            for part in chain(*stages[:index]):
                if values.keys() >= set(part.names):
                    given = part.output(values)
                    compute(part.module, lambda *_, given=given, **__: given)
            for part in chain(*stages[index + 1 :]):
                if wanted & set(part.module.modules()):
                    compute(part.module, partial(until_answered, part, part.module.forward))
            for part in parts:
                hooks = list(_probe_hooks(part, probe))
                if not whole:
                    hooks.append(part.module.register_forward_hook(partial(answer, part)))
                for hook in hooks:
                    undo.callback(hook.remove)
            try:
                output = self.call(self.model, values)
            except _StageDone:
                return answers
        if not whole:
            raise ValueError(f"the library's forward does not use the modules of the stage {self.stages[index].name!r}")
        return parts[0].values(output)


def _place(
    model: nn.Module, line: StockStage, probes: Mapping[str, tuple[str, str]]
) -> Iterator[tuple[str, list[_Module]]]:
    """The stages of a line of the table in one model; none where it has no such module, as a config may say."""
    over, numbered, _ = line.path.partition(".{}")
    try:
        count = sum(1 for _ in model.get_submodule(over).children()) if numbered else 1
        modules = [model.get_submodule(line.path.replace("{}", str(i))) for i in range(count)]
    except AttributeError:
        return
    inside = {name: (line.block + path, side) for name, (path, side) in probes.items()} if "{}" in line.name else {}
    parts = [
        _Module(module, tuple(name.format(i) for name in line.values), f"block {i}", inside, line.batched)
        for i, module in enumerate(modules)
    ]
    if "{}" in line.name:
        yield from ((line.name.format(i), [part]) for i, part in enumerate(parts))
    elif parts:
        yield line.name, parts


def _streamable(module: nn.Module, prefix: str, owned: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose parameters come and go together, by prefix: as large as they can be with no stage inside."""
    for name, child in module.named_children():
        path = f"{prefix}{name}."
        if owned & (set(child.modules()) - {child}):
            yield from _streamable(child, path, owned)
        elif next(child.parameters(), None) is not None:
            yield path, child


def put_buffer(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, own = name.rpartition(".")
    model.get_submodule(path)._buffers[own] = tensor


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in a parameter's place, whatever its dtype or device."""
    path, _, own = name.rpartition(".")
    module.get_submodule(path)._parameters[own] = nn.Parameter(tensor, requires_grad=False)


def _probe_hooks(part: _Module, probe: Probe) -> Iterator[Any]:
    """Hooks that tell `probe` of what sub-modules take ('input') or give ('output'); none where nobody listens."""
    for name, (path, side) in part.probes.items() if probe is not no_probe else ():
        module = part.module.get_submodule(path)
        if side == "input":
            yield module.register_forward_pre_hook(lambda _, taken, name=name: probe(name, taken[0]))
        else:
            yield module.register_forward_hook(lambda _, __, given, name=name: probe(name, given))
