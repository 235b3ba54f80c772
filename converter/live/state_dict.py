"""`state_dict`: the weights of a model in memory, in the layout of the training code or in ComfyUI's."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import LazyTensor
from ..checkpoint.key_names import unwrapped
from ..conversion.analysis import Analysis, analyse
from ..conversion.options import ConversionOptions
from ..conversion.output import DIFFUSERS, LAYOUTS, ORIGINAL, Destination
from ..conversion.plan import plan_tensors
from ..conversion.sidecar import Sidecar, given_caption, open_sidecar
from ..conversion.write import TensorWrite
from ..errors import UsageError, printable
from ..families import find, tables
from ..parts import joined
from .memory import ModelCheckpoint, TensorsFile, without_adapters

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
CAPTION = "null_caption"
_WRAPPERS = ("_orig_mod", "module")  # of torch.compile and of DistributedDataParallel: where they keep the model


def state_dict(
    model: torch.nn.Module | Mapping[str, torch.nn.Module],
    layout: str = ORIGINAL,
    *,
    null_caption: torch.Tensor | str | os.PathLike[str] | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
    family: str | None = None,
) -> dict[str, torch.Tensor]:
    """The weights of a model of diffusers as its training code has them, whatever they were trained to since.

    Tensors that only change their name are the model's own, as in its `state_dict()`; those that are joined, such as q,
    k and v, are new. Buffers that diffusers computes for itself are computed from the model's config. What is noted is
    logged as a warning (`logging`, "converter").

    Args:
        model: on any device, in any dtype; by itself, or wrapped by `torch.compile` or `DistributedDataParallel`. Of a
            model of several folders, those by name, as `load` returns them, or a module that has them by these names.
        layout: 'original', 'comfyui', or 'diffusers': the model's own keys, without the names of wrappers; those of
            several models begin with the names of their folders.
        null_caption: (L, C), or a file that holds it, such as the checkpoint that the model was loaded from: diffusers
            has no place for it, and without it, it is left out.
        hyper_parameters: by name, what neither the config nor the weights show.
        family: require a model family, by name or file (NAME.py), instead of recognising it.

    Raises: `UsageError` for what is no such model, `InputError` for weights that are not its family's.

    Example:
        >>> from converter import load
        >>> model = load("fixtures/golden/sigma-ms.pth", hyper_parameters={"num_attention_heads": 4})
        >>> weights = state_dict(model, null_caption="fixtures/golden/sigma-ms.pth")
        >>> weights["blocks.0.attn.qkv.weight"].shape, weights["y_embedder.y_embedding"].shape
        (torch.Size([144, 48]), torch.Size([20, 32]))
        >>> torch.save({"state_dict": weights}, tmp / "trained.pth")
    """
    if layout not in LAYOUTS:
        raise UsageError(f"`layout` {printable(repr(layout), 60)}: one of {', '.join(LAYOUTS)}")
    file, analysis = analysed(model, hyper_parameters, family)
    if layout == DIFFUSERS:
        return {unwrapped(key): tensor for key, tensor in file.tensors.items()}
    own = {key: file.tensors[tensor.key] for key, tensor in analysis.checkpoint.items()}
    device = next(iter(own.values())).device
    with ExitStack() as stack:
        sidecar = _sidecar(stack, analysis, null_caption)
        writes, notes = plan_tensors(analysis, sidecar, layout, None, ConversionOptions(to=layout))
        for note in notes:
            logger.warning("%s: %s", file.path, note)
        parts = Destination(Path(), to=layout).with_prefix(writes.model)
        return {part.keys[0]: _joined(part, own, device) for part in parts}


def analysed(
    model: Any, hyper_parameters: Mapping[str, Any] | None = None, family: str | None = None
) -> tuple[TensorsFile, Analysis]:
    """The weights of a model in memory, without PEFT's adapters, and what they are.

    Raises: `UsageError` for what is no such model, `InputError` for weights that are not its family's.
    """
    file, config = _opened(model)
    checkpoint = ModelCheckpoint(file, config, tables(None if family is None else find(family)))
    analysis = analyse(checkpoint, hyper_parameters, family)
    analysis.require()
    if not analysis.diffusers:
        raise UsageError(f"{file.path}: its weights are in the original layout already")
    return file, analysis


def _opened(model: Any) -> tuple[TensorsFile, dict[str, Any]]:
    """The weights and the config; of several models, under names that begin with those of their folders."""
    models = _models(model)
    parts = {f"{folder}." if len(models) > 1 else "": one for folder, one in models.items()}
    with ExitStack() as stack:
        for one in parts.values():
            stack.enter_context(without_adapters(one))
        weights = joined({part: one.state_dict() for part, one in parts.items()})
    config = joined({part: json.loads(one.to_json_string()) for part, one in parts.items()})
    return TensorsFile(", ".join(type(one).__name__ for one in models.values()), weights), config


def _models(model: Any) -> dict[str, Any]:
    """The models of diffusers, by name where there are several: given so, or as the parts of a module."""
    models = dict(model) if isinstance(model, Mapping) else {"": model}
    if len(models) < 2:
        whole = unwrapped_model(next(iter(models.values()), None))
        parts = dict(whole.named_children())
        several = len(parts) > 1 and all(hasattr(part, "to_json_string") for part in parts.values())
        models = parts if several else {"": whole}
    return {name: unwrapped_model(one) for name, one in models.items()}


def unwrapped_model(model: Any, parameter: str = "model") -> Any:
    """The model of diffusers itself. Raises: `UsageError` for anything else, which names the parameter."""
    import torch

    while isinstance(model, torch.nn.Module) and (inner := _inner(model)) is not None:
        model = inner
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "to_json_string"):
        kind = type(model).__name__
        raise UsageError(
            f"`{parameter}`: a model of diffusers is needed, such as a pipeline's transformer, not a {kind}"
        )
    return model


def _inner(model: torch.nn.Module) -> torch.nn.Module | None:
    children = dict(model.named_children())
    return next((children[name] for name in _WRAPPERS if name in children), None)


def _sidecar(stack: ExitStack, analysis: Analysis, null_caption: Any) -> Sidecar:
    import torch

    if not isinstance(null_caption, torch.Tensor):
        return open_sidecar(stack, analysis, null_caption)
    tensors = TensorsFile(CAPTION, {CAPTION: null_caption.detach()}).lazy
    return Sidecar(given=given_caption(stack, analysis, CAPTION, tensors))


def _joined(part: TensorWrite, own: Mapping[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    import torch

    def tensor(source: LazyTensor) -> torch.Tensor:
        return own[source.key] if source.key in own else source.torch().to(device)

    sources = [tensor(source) for source in part.sources]
    if len(sources) == 1 and len(part.runs[0]) == 1:
        return sources[0]
    (entry,) = part.entries
    whole = torch.empty(entry.shape, dtype=sources[0].dtype, device=device)
    for source, outputs in zip(sources, part.outputs({entry.key: whole}), strict=True):
        for rows, output in zip(source.chunk(len(outputs)), outputs, strict=True):
            output.copy_(rows)
    return whole
