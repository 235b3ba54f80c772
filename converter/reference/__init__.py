"""The original nets in plain torch, out of a state dict in the original layout. Knows no diffusers and no files."""

from .compression import Compression
from .controlnet import controlnet
from .net import Memory, Net, Probe, Stage, Staged, Values, Weights, unheard
from .pixart import PixArtShape, pixart

__all__ = [
    "Compression",
    "Memory",
    "Net",
    "PixArtShape",
    "Probe",
    "Stage",
    "Staged",
    "Values",
    "Weights",
    "controlnet",
    "pixart",
    "unheard",
]
