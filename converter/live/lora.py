"""`load_lora`: an adapter in any spelling in a live model of diffusers, in PEFT's layers."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..conversion.to_diffusers import named
from ..errors import InputError, UsageError, plural, printable, require, shortened
from ..lora.changes import is_number
from ..lora.merge import open_adapters, place_on
from ..lora.pairs import Pair, Pairs
from ..mapping import fold
from .state_dict import analysed, unwrapped_model

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
State = dict[str, "torch.Tensor"]


def load_lora(
    pipeline_or_model: Any,
    path: str | os.PathLike[str],
    adapter_name: str = "default",
    weight: float = 1.0,
    *,
    lora_alpha: float | None = None,
    allow_partial: bool = False,
) -> None:
    """Put an adapter into a live model, beside those that are active in it.

    The model, and the pipeline, then have the methods of diffusers' own: `set_adapters`, `fuse_lora`, `unfuse_lora`,
    `disable_lora`, `enable_lora`, `delete_adapters`, and `unload_lora` (of a pipeline, `unload_lora_weights`), which
    gives the model back as it was. The adapter is in the model's dtype and on its device. All is checked before the
    model is touched.

    What PEFT's layers do not hold, which is whole differences and modules, and DoRA per input or of some modules only,
    becomes a pair of matrices that make the same, as large as the module. Of DoRA, these are for `weight`; another
    weight that is set later only scales the difference. PEFT's DoRA scales what active adapters before it add as well,
    and is put first for that. What is noted is logged as a warning (`logging`, "converter").

    Args:
        pipeline_or_model: a model of diffusers, or a pipeline that has one as `transformer`.
        path: a file, a folder or a hub id, as of `merge_lora`.
        adapter_name: what `set_adapters` and the other methods know it by.
        weight: multiplies its scale, as `set_adapters` does.
        lora_alpha: where the adapter does not say it.
        allow_partial: leave out what does not fit, and log it.

    Raises: `InputError` for an adapter that is refused, `UsageError` for a call that is, or without PEFT. Nothing is
        changed then.

    Example:
        >>> from converter import load
        >>> model = load("fixtures/golden/sigma-ms.pth", hyper_parameters={"num_attention_heads": 4})
        >>> load_lora(model, "fixtures/lora/d-ot-kohya.safetensors", "style", 0.8)
        >>> model.active_adapters()
        ['style']
        >>> model.set_adapters("style", 0.5)
        >>> model.unload_lora()
    """
    require("an adapter in a live model", "peft", extra="lora")
    from diffusers import DiffusionPipeline

    pipeline = pipeline_or_model if isinstance(pipeline_or_model, DiffusionPipeline) else None
    inner = getattr(pipeline, "transformer", None) if pipeline else pipeline_or_model
    model = unwrapped_model(inner, "pipeline_or_model")
    _check_call(model, adapter_name, weight)
    _, analysis = analysed(model)
    with ExitStack() as stack:
        known: dict[str, Any] = {"lora_alpha": lora_alpha, "allow_partial": allow_partial}
        opened = open_adapters(stack, [(path, weight)], analysis.require(), **known)
        ((adapter, _),) = opened
        adapter.check_finite()
        placed = place_on(analysis, opened, allow_partial=allow_partial)
        pairs = Pairs.of(placed, named(analysis.checkpoint), weight)
        state, ranks = _state(model, pairs, adapter.path)
    notes = [*adapter.notes, *(f"left out: {words}" for words in adapter.skipped)]
    if computed := pairs.computed:
        notes.append(
            f"DoRA of {plural(len(computed), 'module')} is not of a kind that PEFT has: their whole differences at the "
            f"weight {weight:g} are used, which another weight only scales ({shortened(fold(computed), 3)})"
        )
    if pairs.dora and any(config.use_dora for config in getattr(model, "peft_config", {}).values()):
        notes.append("a second adapter of DoRA: in PEFT each scales what those before it add, and their sum is another")
    for note in notes:
        logger.warning("%s: %s", printable(path), note)
    _inject(model, adapter_name, weight, state, ranks, {"use_dora": pairs.dora, "lora_bias": pairs.biased})
    if pipeline:
        from .peft_classes import PipelineMethods, give_methods

        give_methods(pipeline, PipelineMethods)


def _check_call(model: Any, adapter_name: str, weight: float) -> None:
    from torch import nn

    if not is_number(weight):
        raise UsageError(f"`weight` {printable(repr(weight)[:60], 40)} is no number, or too large")
    if not isinstance(adapter_name, str) or "." in (adapter_name or ".") or hasattr(nn.ModuleDict(), adapter_name):
        rule = "a name without a dot, and none that PyTorch's ModuleDict has for itself, is needed"
        raise UsageError(f"`adapter_name` {printable(repr(adapter_name), 60)}: {rule}")
    if adapter_name in getattr(model, "peft_config", {}):
        raise UsageError(f"`adapter_name` {printable(adapter_name, 60)}: the model has an adapter of this name already")
    if fused := {name for module in model.modules() for name in getattr(module, "merged_adapters", ())}:
        raise UsageError(
            f"{printable(', '.join(sorted(fused)))} fused into the model, beside which PEFT computes no other adapter: "
            "call unfuse_lora() first, or unload_lora(), which keeps what is fused"
        )


def _state(model: Any, pairs: Pairs, path: str) -> tuple[State, dict[str, int]]:
    """(the tensors of an adapter, under PEFT's keys, as the model's own are; the ranks of its modules)."""
    import torch

    state: State = {}
    ranks = {}
    for module, pair in pairs:
        layer = model.get_submodule(module)
        layer = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
        if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) or getattr(layer, "groups", 1) > 1:
            kind = f"a grouped {type(layer).__name__}" if hasattr(layer, "groups") else f"a {type(layer).__name__}"
            raise InputError.at(
                path, module, f"{kind}, which PEFT has no adapter for that can be fused: merge it instead"
            )
        ranks[module] = len(pair.down)
        for name, array in _arrays(pair).items():
            tensor = torch.tensor(array, dtype=layer.weight.dtype, device=layer.weight.device)
            if not tensor.isfinite().all():
                raise InputError.at(path, module, f"is not finite in {tensor.dtype}, which the model is in")
            state[f"{module}.{name}"] = tensor
    return state, ranks


def _arrays(pair: Pair) -> dict[str, Any]:
    arrays = {
        "lora_A.weight": pair.down,
        "lora_B.weight": pair.up,
        "lora_B.bias": pair.bias,
        "lora_magnitude_vector": pair.magnitude,
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _inject(
    model: Any, adapter_name: str, weight: float, state: State, ranks: Mapping[str, int], kind: Mapping[str, Any]
) -> None:
    """PEFT's layers with these tensors, at `weight`; without them, and the model as it was, where that fails."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    from .peft_classes import ModelMethods, give_methods

    names = {module: re.escape(module) for module in ranks}
    ((usual, _),) = Counter(ranks.values()).most_common(1)
    others: dict[str, Any] = {f"^{names[module]}": rank for module, rank in ranks.items() if rank != usual}
    config = LoraConfig(
        r=usual,
        lora_alpha=usual,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules="|".join(names.values()),
        **kind,
    )
    there = [*getattr(model, "peft_config", {})]
    layers = {module for module in model.modules() if isinstance(module, BaseTunerLayer)}
    active = [name for name in there if any(name in layer.active_adapters for layer in layers)]
    give_methods(model, ModelMethods)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*`peft_config`|.*was active which is now deleted")  # there may be several
        try:
            inject_adapter_in_model(config, model, adapter_name, low_cpu_mem_usage=True)
            set_peft_model_state_dict(model, state, adapter_name, low_cpu_mem_usage=True)
        except BaseException:
            _take_out(model, adapter_name, layers)
            if there:
                model.set_adapter(active)
            raise
    model._hf_peft_config_loaded = True
    model.enable_lora()
    # DoRA scales what was added before it, so it goes first.
    model.set_adapter(
        sorted([*active, adapter_name], key=lambda name: not getattr(model.peft_config[name], "use_dora", 0))
    )
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale(adapter_name, weight)


def _take_out(model: Any, adapter_name: str, layers: Collection[Any]) -> None:
    """An adapter that is perhaps not in all its layers, and those that are not among `layers`, which were there."""
    for name, module in [each for each in model.named_modules() if hasattr(each[1], "get_base_layer")]:
        if module in layers:
            module.delete_adapter(adapter_name)
        else:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    if configs := getattr(model, "peft_config", {}):
        configs.pop(adapter_name, None)
        if not configs:
            del model.peft_config
