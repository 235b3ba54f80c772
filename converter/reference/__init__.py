"""The original nets in plain torch, out of a state dict in the original layout. Knows no diffusers and no files."""

from .compression import Compression
from .controlnet import controlnet
from .dit import DiTShape, dit
from .net import Memory, Net, Probe, Stage, Staged, Values, Weights, unheard
from .pixart import PixArtShape, pixart

__all__ = [
    "Compression",
    "DiTShape",
    "Memory",
    "Net",
    "PixArtShape",
    "Probe",
    "Stage",
    "Staged",
    "Values",
    "Weights",
    "controlnet",
    "dit",
    "pixart",
    "unheard",
]
