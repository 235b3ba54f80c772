"""A stock module, made of a `config.json`, whose parameters are read when a part of it runs and let go afterwards.

The forward is the library's own, whole and untouched. All parameters stand on the meta device; hooks put those of a
part in its place before it runs, strictly, and take them out after: a net of gigabytes runs in the memory of its
largest part.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..reference import Probe, Stage, Values, Weights, unheard
from . import provenance

# What the reference tells of the inside of a block -> where a stock block has it, of any family.
SELF_ATTENTION = {
    "norm1 modulated": ("attn1.to_q", "input"),
    "attn1 q": ("attn1.to_q", "output"),
    "attn1 k": ("attn1.to_k", "output"),
    "attn1 v": ("attn1.to_v", "output"),
    "attn1 out": ("attn1.to_out.0", "output"),
}
FEED_FORWARD = {
    "norm2 modulated": ("ff.net.0.proj", "input"),
    "ff hidden": ("ff.net.0.proj", "output"),
    "ff out": ("ff.net.2", "output"),
}


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


def unpatchified(patches: Tensor, latent: Tensor, patch: int, channels: int) -> Tensor:
    """(B, N, patch^2 * channels) -> (B, channels, H, W), as the stock forwards do it after their last layer."""
    height, width = (side // patch for side in latent.shape[-2:])
    image = patches.reshape(-1, height, width, patch, patch, channels)
    return torch.einsum("nhwpqc->nchpwq", image).reshape(-1, channels, height * patch, width * patch)


def _hears_input(probe: Probe, name: str) -> Callable[[Any, Any], None]:
    return lambda module, arguments: probe(name, arguments[0])


def _hears_output(probe: Probe, name: str) -> Callable[[Any, Any, Any], None]:
    return lambda module, arguments, output: probe(name, output)


def written_out(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model class of diffusers is given of a config: its own defaults, and over them what the config says."""
    arguments = inspect.signature(kind.__init__).parameters
    made = {name: argument.default for name, argument in arguments.items() if name != "self"}
    unused = config.get("_use_default_values")  # what diffusers' own loader passes over
    if isinstance(unused, list):
        config = {name: value for name, value in config.items() if name not in unused}
    return made | {name: value for name, value in config.items() if name in made or name.startswith("_")}


def skeleton(kind: Any, config: Mapping[str, Any], little: Mapping[str, Any]) -> Any:
    """A model class of diffusers with all parameters on the meta device, and with the one buffer that it computes for
    itself, its `pos_embed`.

    Args:
        little: fields of a config that cost parameters, as small as they can be for the buffer's sake.
    """
    with _quiet():
        with torch.device("meta"):
            model = kind.from_config(dict(config))
        with torch.random.fork_rng(devices=[]):  # making parameters draws numbers, which are the caller's
            shell = kind.from_config(dict(config) | {"num_layers": 0} | dict(little))
    model.pos_embed = shell.pos_embed
    return model


def from_folder(kind: Any, folder: Path) -> Any:
    """What `from_pretrained` makes of a folder, whole in memory, in float32.

    A variant, or shards of the older kind, are asked for where there is nothing else.
    """
    told, _ = provenance.loading(folder)
    with _quiet():
        return kind.from_pretrained(folder, low_cpu_mem_usage=False, local_files_only=True, **told).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars, and without what diffusers logs of a config that it does not understand: all of it, be it
    megabytes. The config is audited, and the report tells of it."""
    from diffusers.utils import logging as bars

    logger = logging.getLogger("diffusers")
    before, shown = logger.level, bars.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if shown:
            bars.enable_progress_bar()
