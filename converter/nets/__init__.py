"""What models are described with: nets in stages, blocks, the stock module, inputs, deliberate faults. Knows no model.

Everything is imported where it is first used: what only describes a model loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .net import Memory, Net, Probe, Stage, Staged, Values, Weights, no_probe

__all__ = ["Memory", "Net", "Probe", "Stage", "Staged", "Values", "Weights", "no_probe"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(".net", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
