"""Classes of diffusers with the methods that it gives the models and pipelines that it has adapters for: PixArt's and
DiT's have none.

An object's class becomes one under the same name, so that its config, and the folder that is saved, are as before.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.peft import PeftAdapterMixin

from .memory import without_adapters


class ModelMethods(PeftAdapterMixin):
    """`set_adapters`, `fuse_lora`, `unload_lora` and the rest, of a model."""

    def save_pretrained(self, *args: Any, **given: Any) -> Any:
        """The model's own weights, with what is fused: keys of PEFT's layers no class would find again."""
        with without_adapters(self):
            return super().save_pretrained(*args, **given)


class PipelineMethods(LoraBaseMixin):
    """`set_adapters`, `fuse_lora`, `unload_lora_weights` and the rest, of a pipeline with a transformer."""

    _lora_loadable_modules: ClassVar[list[str]] = ["transformer"]

    def fuse_lora(self, components: Any = ("transformer",), *args: Any, **given: Any) -> None:
        """As of diffusers' own pipelines."""
        super().fuse_lora(list(components), *args, **given)

    def unfuse_lora(self, components: Any = ("transformer",), *args: Any, **given: Any) -> None:
        """As of diffusers' own pipelines."""
        super().unfuse_lora(list(components), *args, **given)


def give_methods(thing: Any, methods: type) -> None:
    """Make an object's class one that has these methods too, unless it is one of diffusers' that has them.

    Example:
        >>> from diffusers import DiTTransformer2DModel
        >>> model = DiTTransformer2DModel(num_layers=1, attention_head_dim=4, num_attention_heads=2)
        >>> give_methods(model, ModelMethods)
        >>> type(model).__name__, isinstance(model, DiTTransformer2DModel), hasattr(model, "unload_lora")
        ('DiTTransformer2DModel', True, True)
    """
    if not isinstance(thing, methods.__mro__[1]):
        kind: Any = type(thing)
        thing.__class__ = _made(kind, methods)


@cache
def _made(kind: type, methods: type) -> type:
    own = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (methods, kind), own | {"__reduce_ex__": _reduce})


def _reduce(self: Any, protocol: Any) -> Any:
    """How it is pickled: its class is found under no name."""
    methods, kind = type(self).__bases__
    _, args, *rest = super(type(self), self).__reduce_ex__(max(protocol, 2))
    return _unpickled, (kind, methods, *args[1:]), *rest


def _unpickled(kind: type, methods: type, *args: Any) -> Any:
    made = _made(kind, methods)
    return made.__new__(made, *args)
