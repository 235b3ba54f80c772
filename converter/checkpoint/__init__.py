"""Reading and writing checkpoints as named extents of bytes; knows no model family."""

from .dtypes import DType
from .opener import Checkpoint, open_checkpoint
from .tensor import LazyTensor

__all__ = ["Checkpoint", "DType", "LazyTensor", "open_checkpoint"]
