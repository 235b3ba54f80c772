"""Tables of keys and the engine that proves them complete and reversible; knows no file, no family, no torch."""

from .fold import MappingError, fold, summed_up
from .keymapping import KeyMapping
from .plan import Move, Plan
from .rows import Computed, Copies, Extra, Parameter, Refused, Sparse, ZeroInit

__all__ = [
    "Computed",
    "Copies",
    "Extra",
    "KeyMapping",
    "MappingError",
    "Move",
    "Parameter",
    "Plan",
    "Refused",
    "Sparse",
    "ZeroInit",
    "fold",
    "summed_up",
]
