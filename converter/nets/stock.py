"""A model as diffusers has it, described by a table: which modules make a stage, and what their outputs are called."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.folder import CONFIG
from ..checkpoint.json_file import read_json
from ..families.travelling import class_of, imported_class
from ..parts import below, joined
from .depthwise import speed_up
from .net import Values, Weights
from .streamed import StockStage as StockStage  # a table is written of both
from .streamed import Streamed, put_buffer


def _attention(name: str, before: str) -> dict[str, tuple[str, str]]:
    """A probe's name -> where a stock block has it: what the blocks of diffusers have in common. `before`: of what goes
    into the attention."""
    projected = {f"{name} {part}": (f"{name}.to_{part}", "output") for part in "qkv"}
    return {before: (f"{name}.to_q", "input"), **projected, f"{name} out": (f"{name}.to_out.0", "output")}


def feed_forward(first: str, last: str) -> dict[str, tuple[str, str]]:
    """The same of a feed-forward part, by its first and its last layer."""
    return {"norm2 modulated": (first, "input"), "ff hidden": (first, "output"), "ff out": (last, "output")}


SELF_ATTENTION = _attention("attn1", "norm1 modulated")
CROSS_ATTENTION = _attention("attn2", "after self-attention")
FEED_FORWARD = feed_forward("ff.net.0.proj", "ff.net.2")


@dataclass(frozen=True)
class Stock:
    """A model class of diffusers, cut into stages.

    Example:
        >>> from converter.models.dit.parity import STOCK
        >>> STOCK.stages[3]
        StockStage(name='block {}', path='transformer_blocks.{}', values=('x',))
    """

    kind: str  # "package.module:Class"
    classes: tuple[str, ...] = field(default=(), kw_only=True)  # others like it, which a config picks by its class
    # Of its forward -> the value that it takes, or a dict of such; None is passed for what is not there.
    arguments: Mapping[str, str | Mapping[str, str]]
    stages: Sequence[StockStage]  # in the order of the computation; the last one is the whole
    # Of a stage with `{}` in its name: a probe's name -> (path inside, "input" or "output").
    probes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    # Fields of a config that cost parameters, as small as they can be: the buffers that the class computes for itself
    # are taken from such a model.
    shell: Mapping[str, Any] = field(default_factory=lambda: {"num_layers": 0})
    # Completes the fields of a config as the class does, where that takes more than its defaults.
    settle: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: fields
    post_load: Callable[[Any], Any] = lambda model: model  # what is done to the model after loading

    def model_class(self, config: Mapping[str, Any]) -> Any:
        """The class that a `config.json` is for."""
        return imported_class(class_of(self.classes, config) or self.kind)

    def resolve_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What the class takes each field of a `config.json` for: its own defaults, and over them what that says."""
        arguments = inspect.signature(self.model_class(config).__init__).parameters
        fields = {name: argument.default for name, argument in arguments.items() if name != "self"}
        unused = config.get("_use_default_values")  # what diffusers' own loader passes over
        passed = unused if isinstance(unused, list) else []
        stated = {name: config[name] for name in config if name in fields or name.startswith("_")}
        fields |= {name: value for name, value in stated.items() if name not in passed}
        if fields.get("out_channels", 0) is None:  # as all classes take it
            fields["out_channels"] = fields.get("in_channels")
        return self.settle(fields)

    def net(self, config: Mapping[str, Any], weights: Weights) -> Streamed:
        """The net of a `config.json`, in the dtype of `weights`. Raises whatever the class makes of a wrong config."""
        with _quiet():
            with torch.device("meta"):
                model = self.made(config)
            with torch.random.fork_rng(devices=[]):  # making parameters uses the caller's random state
                small = self.made(config, shell=True)
        for name, buffer in small.named_buffers():
            put_buffer(model, name, buffer)
        speed_up(model)
        return Streamed(self.post_load(model), weights, self.stages, self.call, probes=self.probes)

    def made(self, config: Mapping[str, Any], *, shell: bool = False) -> Any:
        """A new model of a `config.json`; `shell`: as small as it can be."""
        kind = self.model_class(config)
        fields = inspect.signature(kind.__init__).parameters.keys() if shell else ()
        return kind.from_config(dict(config) | {name: value for name, value in self.shell.items() if name in fields})

    def loaded(self, folder: Path, inputs: Values, options: Mapping[str, Any] | None = None) -> Tensor:
        """The output of what `from_pretrained` makes of a folder, whole in memory, in float32, and amended."""
        with _quiet():
            model = self.load(folder, options or {})
        with torch.inference_mode():
            return self.call(self.post_load(model.eval()), inputs)

    def load(self, folder: Path, options: Mapping[str, Any]) -> Any:
        """The model of a folder."""
        kind = self.model_class(read_json(folder / CONFIG))
        return kind.from_pretrained(folder, low_cpu_mem_usage=False, local_files_only=True, **options)

    def call(self, model: Any, values: Values) -> Tensor:
        """The stock forward, whole."""
        arguments = {
            argument: values.get(name) if isinstance(name, str) else {key: values.get(one) for key, one in name.items()}
            for argument, name in self.arguments.items()
        }
        output: Tensor = model(**arguments, return_dict=False)[0]
        return output


@dataclass(frozen=True, kw_only=True)
class StockFolders(Stock):
    """A model of several folders: `kind` is the class of what runs them, and takes their models by the folders' names,
    with which the fields of the config and the keys begin."""

    folders: Mapping[str, Stock]

    def by_folder(self, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What the config says of the model in each folder."""
        return {folder: below(config, f"{folder}.") for folder in self.folders}

    def resolve_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        configs = self.by_folder(config).items()
        return joined({f"{folder}.": self.folders[folder].resolve_config(own) for folder, own in configs})

    def made(self, config: Mapping[str, Any], *, shell: bool = False) -> Any:
        configs = self.by_folder(config).items()
        models = {folder: self.folders[folder].made(own, shell=shell) for folder, own in configs}
        return self.model_class({})(**models)

    def load(self, folder: Path, options: Mapping[str, Any]) -> Any:
        """The model of a folder of folders; `options`: by the names of these."""
        models = {name: stock.load(folder / name, options.get(name, {})) for name, stock in self.folders.items()}
        return self.model_class({})(**models)


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
