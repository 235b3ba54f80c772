"""A model without weights: a class made from its config, with nothing where its parameters will be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# With these, parameters are made. What is not computed from the config is to come out of the checkpoint.
_WITHOUT_VALUES = (torch.empty, torch.rand, torch.randn)


class _OnMeta(TorchFunctionMode):
    """What is not computed takes no memory and no random number. It holds in this thread only: what
    `accelerate.init_empty_weights` and `torch.set_default_dtype` change is changed for all threads."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        words = dict(kwargs or {})
        if func in _WITHOUT_VALUES and words.get("device") is None:
            words["device"] = "meta"
        return func(*args, **words)


def empty_model(kind: Any, config: Mapping[str, Any]) -> Any:
    """A model of this class of diffusers, on the device `meta` except for the buffers that the class has computed.

    Example:
        >>> from diffusers import PixArtTransformer2DModel
        >>> model = empty_model(PixArtTransformer2DModel, {"num_layers": 1})
        >>> model.proj_out.weight.device.type, model.pos_embed.pos_embed.device.type
        ('meta', 'cpu')
    """
    with _OnMeta():
        return kind.from_config(dict(config))
