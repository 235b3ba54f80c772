"""A safetensors file before its data.

The same order, alignment and spelling as `safetensors.torch.save_file`: by dtype rank from high to low, then by
name; compact JSON padded with spaces to 8 bytes. Format: huggingface/safetensors, `safetensors/src/tensor.rs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from ..dtypes import RANK
from .layout import FileLayout, TensorEntry


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
