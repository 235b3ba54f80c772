"""The parity checker: does a converted model compute the original's function, and if not, where does it go wrong?

    from converter import parity

    report = parity.check("PixArt.pth", "out")
    print(report.verdict, report.reason)

Everything is imported where it is first used: torch and diffusers only once nets are run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..nets.faults import Fault
    from ..nets.inputs import Case, noise
    from ..nets.modules import ModuleNet
    from ..nets.spec import ParitySpec
    from ..reports.report import Check, Phase, Report
    from .checker import check
    from .choices import CheckOptions

_HOMES = {
    ".checker": ("check",),
    ".choices": ("CheckOptions",),
    "..nets.faults": ("Fault",),
    "..nets.inputs": ("Case", "noise"),
    "..nets.modules": ("ModuleNet",),
    "..nets.spec": ("ParitySpec",),
    "..reports.report": ("Check", "Phase", "Report"),
}

__all__ = ["Case", "Check", "CheckOptions", "Fault", "ModuleNet", "ParitySpec", "Phase", "Report", "check", "noise"]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(module, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
