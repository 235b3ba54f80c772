"""Convert PixArt checkpoints between the original layout and diffusers', with nothing lost.

    import converter

    converter.convert("PixArt.pth", "out")
    converter.inspect("PixArt.pth")["hyper_parameters"]
    with converter.open_checkpoint("PixArt.pth") as checkpoint:
        checkpoint["x_embedder.proj.weight"].torch()

Everything is imported where it is first used: `import converter` itself costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, LazyTensor, open_checkpoint
    from .comparison import Diff, diff
    from .conversion.convert import Conversion, convert
    from .conversion.inspection import inspect
    from .conversion.options import ConversionOptions
    from .errors import ConverterError, InputError, UsageError
    from .families import Family, Finding, Findings, Flag, register
    from .mapping import (
        Computed,
        Copies,
        Extra,
        KeyMapping,
        MappingError,
        Parameter,
        Refused,
        Reorder,
        Sparse,
        ZeroInit,
    )

_HOMES = {
    "checkpoint": ("Checkpoint", "LazyTensor", "open_checkpoint"),
    "comparison": ("Diff", "diff"),
    "conversion.convert": ("Conversion", "convert"),
    "errors": ("ConverterError", "InputError", "UsageError"),
    "families": ("Family", "Finding", "Findings", "Flag", "register"),
    "conversion.inspection": ("inspect",),
    "conversion.options": ("ConversionOptions",),
    "mapping": (
        "Computed", "Copies", "Extra", "KeyMapping", "MappingError", "Parameter", "Refused", "Reorder", "Sparse",
        "ZeroInit",
    ),
}  # fmt: skip

__all__ = [
    "Checkpoint", "Computed", "Conversion", "ConversionOptions", "ConverterError", "Copies", "Diff", "Extra",
    "Family", "Finding", "Findings", "Flag", "InputError", "KeyMapping", "LazyTensor", "MappingError", "Parameter",
    "Refused", "Reorder", "Sparse", "UsageError", "ZeroInit", "__version__", "convert", "diff", "inspect",
    "open_checkpoint", "register",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
