"""Where each tensor of a new file will lie, decided before a byte of a tensor is written; that of a safetensors file.

The same order, alignment and spelling as `safetensors.torch.save_file`: by dtype rank from high to low, then by
name; compact JSON padded with spaces to 8 bytes. Format: huggingface/safetensors, `safetensors/src/tensor.rs`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from ..dtypes import RANK, DType


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor to be written: its key, dtype and shape."""

    key: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileLayout:
    """A file before its data.

    `frame(crcs)` gives all of it that is no tensor, as (offset, bytes): the same offsets and lengths whatever the
    CRC-32 of the tensors' bytes (by key; what is not known yet counts as 0); `size` is that of the whole file.
    """

    entries: tuple[TensorEntry, ...]
    size: int
    frame: Callable[[Mapping[str, int]], list[tuple[int, bytes]]]


def lay_out_safetensors(entries: Iterable[TensorEntry], metadata: dict[str, str] | None = None) -> FileLayout:
    """The layout of a file that holds these tensors. It has no checksums.

    >>> from converter.checkpoint.dtypes import F32
    >>> lay_out_safetensors([TensorEntry("b", F32, (2,)), TensorEntry("a", F32, ())]).size
    132
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position, ordered = 0, tuple(sorted(entries, key=lambda e: (-RANK[e.dtype], e.key)))
    for entry in ordered:
        header[entry.key] = {
            "dtype": entry.dtype.code,
            "shape": list(entry.shape),
            "data_offsets": [position, position + entry.nbytes],
        }
        position += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return FileLayout(ordered, len(head) + position, lambda crcs: [(0, head)])
