"""Convert PixArt, SANA and DiT checkpoints between the original layout and diffusers', with nothing lost.

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
    from .conversion.batch import Outcome, convert_all
    from .conversion.convert import Conversion, convert
    from .conversion.options import ConversionOptions
    from .conversion.pairs import Pair
    from .errors import ConverterError, InputError, UsageError
    from .families import Family, Finding, Findings, Flag, register
    from .fleet import Workers
    from .jobs.adapters import inspect
    from .live.load import load
    from .live.lora import load_lora
    from .live.pipeline import load_pipeline
    from .live.state_dict import state_dict
    from .lora.convert import convert_lora
    from .lora.extract import extract_lora
    from .lora.extraction import Extraction
    from .lora.inspection import inspect_lora
    from .lora.merge import merge_lora
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
    "conversion.batch": ("Outcome", "convert_all"),
    "conversion.convert": ("Conversion", "convert"),
    "errors": ("ConverterError", "InputError", "UsageError"),
    "families": ("Family", "Finding", "Findings", "Flag", "register"),
    "conversion.options": ("ConversionOptions",),
    "conversion.pairs": ("Pair",),
    "fleet": ("Workers",),
    "live.load": ("load",),
    "live.lora": ("load_lora",),
    "live.pipeline": ("load_pipeline",),
    "live.state_dict": ("state_dict",),
    "jobs.adapters": ("inspect",),
    "lora.convert": ("convert_lora",),
    "lora.extract": ("extract_lora",),
    "lora.extraction": ("Extraction",),
    "lora.inspection": ("inspect_lora",),
    "lora.merge": ("merge_lora",),
    "mapping": (
        "Computed", "Copies", "Extra", "KeyMapping", "MappingError", "Parameter", "Refused", "Reorder", "Sparse",
        "ZeroInit",
    ),
}  # fmt: skip

__all__ = [
    "Checkpoint", "Computed", "Conversion", "ConversionOptions", "ConverterError", "Copies", "Diff", "Extra",
    "Extraction", "Family", "Finding", "Findings", "Flag", "InputError", "KeyMapping", "LazyTensor", "MappingError",
    "Outcome", "Pair", "Parameter", "Refused", "Reorder", "Sparse", "UsageError", "Workers", "ZeroInit",
    "__version__", "convert", "convert_all", "convert_lora", "diff", "extract_lora", "inspect", "inspect_lora",
    "load", "load_lora", "load_pipeline", "merge_lora", "open_checkpoint", "register", "state_dict",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
