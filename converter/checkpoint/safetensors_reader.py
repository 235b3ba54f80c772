"""The strict safetensors reader: the header says where every byte belongs, or the file is refused.

Format: huggingface/safetensors README ("Format"): u64 header length, JSON, data; offsets without holes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..errors import UNQUANTISED, InputError, printable
from .dtypes import BY_CODE
from .file import InputFile
from .json_file import NODE_LIMIT, parse_json
from .tensor import LazyTensor, Storage, checked, row_major

HEADER_LIMIT = 25_000_000
_FEW_BITS = ("F8_", "F6_", "F4")  # floats of 8 bits and fewer, which weights have once they are quantised
COPY_LIMIT = NODE_LIMIT // 3  # as many as there can be tensors, each of which takes three of them


def read_header(
    file: InputFile, others: dict[str, InputError] | None = None
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """(tensors by key, in the order of the header and then the copies that its metadata names; metadata).

    A copy is the tensor that was kept, under another key: its own `key` is still that of the other.

    Args:
        others: filled with tensors of unsupported dtypes, each with the reason that it cannot be read: a file may
            hold a quantised text encoder as well. Without it, the first of them is raised.
    """
    length = int.from_bytes(file.read(0, 8, "header length"), "little")
    if length > HEADER_LIMIT or 8 + length > file.size:
        rule = f"{length} bytes in a file of {file.size} (truncated, or not a safetensors file)"
        raise file.error("header length", rule)
    header = parse_json(file, "header", file.read(8, length, "header"))
    if not isinstance(header, dict):
        raise file.error("header", "not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise file.error("__metadata__", "not a map from text to text")
    base = 8 + length
    ranges, tensors = [], {}
    for key, entry in header.items():
        start, stop, tensor = _entry(file, key, entry, base)
        ranges.append((start, stop, key))
        if isinstance(tensor, LazyTensor):
            tensors[key] = tensor
        elif others is None:
            raise tensor
        else:
            others[key] = tensor
    position = 0
    for start, stop, key in sorted(ranges):
        if start != position:
            raise file.error(key, f"its data starts at {start}, where {position} was expected (a hole or an overlap)")
        position = stop
    if base + position != file.size:
        rule = f"{file.size - base} bytes, where the header describes {position} (truncated or extended)"
        raise file.error("data", rule)
    copies = copies_named(file.path, "__metadata__", tensors, metadata)
    return tensors | {name: tensors[kept] for name, kept in copies.items()}, metadata


def copies_named(path: str, place: str, keys: Collection[str], metadata: Mapping[str, Any]) -> dict[str, str]:
    """{left out: kept} of the tensors that `save_model` left out because another is the same (tied weights).

    It writes them among all other metadata, with no word of which is which. So only what cannot be anything else is
    taken for such a pair: the kept one is among the keys (and not itself left out), the other is not, and both have
    the same name in their modules (`blocks.1.mlp.fc1.weight`, `blocks.0.mlp.fc1.weight`).
    """
    pairs = sorted(
        (name, kept)
        for name, kept in metadata.items()
        if isinstance(kept, str) and kept in keys and name not in keys
        if name.rpartition(".")[2] == kept.rpartition(".")[2]
    )
    if len(pairs) > COPY_LIMIT:
        raise InputError.at(path, place, f"names more than {COPY_LIMIT} copies of tensors")
    return dict(pairs)


def _entry(file: InputFile, key: str, entry: Any, base: int) -> tuple[int, int, LazyTensor | InputError]:
    try:
        code, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = len(entry) == 3 and isinstance(shape, list) and len(shape) <= 8
        sound = sound and all(type(n) is int and 0 <= n < 1 << 62 for n in (start, stop, *shape))
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise file.error(key, "not an entry of dtype, shape and data_offsets")
    dtype = BY_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        if start > stop:
            raise file.error(key, "data_offsets that go backwards")
        few = isinstance(code, str) and code.startswith(_FEW_BITS)
        remedy = f" (quantised weights): {UNQUANTISED}" if few else ""
        return start, stop, file.error(key, f"dtype {printable(code, 40)} is not accepted{remedy}")
    storage = Storage(file, key, stop - start, start=base + start)
    tensor = LazyTensor(key, dtype, tuple(shape), storage, strides=row_major(tuple(shape)))
    if tensor.nbytes != stop - start:
        raise file.error(key, f"{stop - start} bytes, where {dtype} {list(tensor.shape)} takes {tensor.nbytes}")
    return start, stop, checked(tensor)
