"""Where the two lists of keys come from: a checkpoint of any accepted kind, or a JSON file of keys and shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint import open_checkpoint
from ..checkpoint.file import reads
from ..checkpoint.json_file import read_json
from ..errors import InputError, printable

AXES = 8  # of a tensor, more than any net has
LARGEST = 1 << 40


@dataclass(frozen=True)
class KeyList:
    """Keys and shapes, in order; `config` of a folder; `name`, what they were read from."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    config: dict[str, Any] = field(default_factory=dict)


@reads
def read_keys(path: Path, weights: str | None = None, state_dict_key: str | None = None) -> KeyList:
    """Keys and shapes of a checkpoint, reading no tensor, or of a `.json`.

    The JSON is an object of key to shape, such as `{"proj.weight": [8, 4]}`; a shape may stand behind its dtype, as in
    `["F32", [8, 4]]`, and the object under `"tensors"` of another.

    Raises: `InputError` for what is neither.

    Example:
        >>> read_keys(Path("fixtures/inventories/sigma-256.json")).shapes["t_block.1.bias"]
        (6912,)
    """
    name = printable(path.name, 80)
    if path.suffix.lower() == ".json" and path.is_file():
        content = read_json(path)
        if isinstance(content, dict) and isinstance(content.get("tensors"), dict):
            content = content["tensors"]
        if not isinstance(content, dict) or not content:
            raise InputError.at(path, "", "no JSON object of keys and shapes")
        return KeyList(name, {key: _shape(path, key, value) for key, value in content.items()})
    with open_checkpoint(path, weights, state_dict_key) as checkpoint:
        return KeyList(name, {key: tuple(tensor.shape) for key, tensor in checkpoint.items()}, checkpoint.config)


def _shape(path: Path, key: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]
    sizes = value if isinstance(value, list) and len(value) <= AXES else [None]
    if any(type(size) is not int or not 0 <= size < LARGEST for size in sizes):
        raise InputError.at(path, key, f"{printable(value, 60)} is not a shape")
    return tuple(sizes)
