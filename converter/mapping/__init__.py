"""Tables of keys and the engine that proves them complete and reversible; knows no file, no family, no torch."""

from .fold import MappingError, fold
from .keymapping import KeyMapping, Move, Plan
from .rows import Computed, Extra, Parameter, Refused, Sparse

__all__ = ["Computed", "Extra", "KeyMapping", "MappingError", "Move", "Parameter", "Plan", "Refused", "Sparse", "fold"]
