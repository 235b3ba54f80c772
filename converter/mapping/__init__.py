"""Tables of keys and the engine that proves them complete and reversible; knows no file, no family, no torch."""

from .fold import MappingError, fold, summed_up
from .keymapping import KeyMapping
from .operations import Copies, Operation, Parameter, Reorder
from .plan import Move, Plan
from .rows import Computed, Extra, Refused, Sparse, ZeroInit

__all__ = [
    "Computed", "Copies", "Extra", "KeyMapping", "MappingError", "Move", "Operation", "Parameter", "Plan", "Refused",
    "Reorder", "Sparse", "ZeroInit", "fold", "summed_up",
]  # fmt: skip
