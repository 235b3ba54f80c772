"""Reading and writing checkpoints as named extents of bytes; knows no model family.

From the bottom up: dtypes, cast, file, json_file, recognition, weight_names; tensor; safetensors_reader, torch_file;
then write on the one hand, and weights_kind, key_names, folder, state_dicts and opener on the other.
"""

from .dtypes import DType
from .opener import Checkpoint, open_checkpoint
from .tensor import LazyTensor

__all__ = ["Checkpoint", "DType", "LazyTensor", "open_checkpoint"]
