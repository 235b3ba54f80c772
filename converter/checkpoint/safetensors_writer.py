"""Where each tensor of a safetensors file will lie, decided before a byte is written.

The same order, alignment and spelling as `safetensors.torch.save_file`: by dtype rank from high to low, then by
name; compact JSON padded with spaces to 8 bytes. Format: huggingface/safetensors, `safetensors/src/tensor.rs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from .dtypes import RANK, DType


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be written: its key, dtype and shape."""

    key: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """A safetensors file before its data: the bytes of its header, length and padding included, and its total size."""

    header: bytes
    size: int


def lay_out_file(entries: Iterable[Entry], metadata: dict[str, str] | None = None) -> Layout:
    """The layout of a file that holds these tensors.

    >>> from converter.checkpoint.dtypes import F32
    >>> lay_out_file([Entry("b", F32, (2,)), Entry("a", F32, ())]).size
    132
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for entry in sorted(entries, key=lambda e: (-RANK[e.dtype], e.key)):
        header[entry.key] = {
            "dtype": entry.dtype.code,
            "shape": list(entry.shape),
            "data_offsets": [position, position + entry.nbytes],
        }
        position += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return Layout(len(text).to_bytes(8, "little") + text, 8 + len(text) + position)
