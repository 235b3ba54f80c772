"""What torch and safetensors read in a file, and whether what was written of it is that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from makers import raw_bytes
from safetensors.torch import load_file

from .confined import Outcome, confined

Held = dict[str, list[Any]]  # key -> [dtype, shape, SHA-256 of the elements]
DEEPEST = 12


def read(path: Path, place: Path) -> tuple[dict[str, Held], str]:
    """Every dict of tensors that the file's own library finds in it, by path; or why it refuses it.

    It is run in a process of its own: what it makes of a bad file may be a crash, or terabytes.
    """
    place.mkdir(exist_ok=True)
    outcome = confined(lambda: _print(path), place)
    return (json.loads(outcome.out), "") if outcome.code == 0 else ({}, _refusal(outcome))


def _refusal(outcome: Outcome) -> str:
    lines = outcome.err.strip().splitlines()
    return next((line for line in reversed(lines) if "rror" in line), f"exit code {outcome.code}")[:300]


def _print(path: Path) -> int:
    safetensors = path.suffix == ".safetensors"
    content = load_file(path) if safetensors else torch.load(path, map_location="cpu", weights_only=True)
    print(json.dumps({where: held for where, held in _dicts(content) if held}))
    return 0


def _dicts(content: Any) -> Iterator[tuple[str, Held]]:
    waiting = [("", content, 0)]
    while waiting:
        where, node, depth = waiting.pop()
        if isinstance(node, Mapping) and depth < DEEPEST:
            waiting += [(f"{where}.{key}", value, depth + 1) for key, value in node.items()]
            yield where, {key: _held(value) for key, value in node.items() if _plain(key, value)}


def _plain(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided


def _held(value: torch.Tensor) -> list[Any]:
    return [str(value.dtype), list(value.shape), hashlib.sha256(raw_bytes(value.detach())).hexdigest()]


def unlike(written: Held, read_by_library: dict[str, Held], said: str) -> str:
    """'' where what was written is one whole dict of tensors of the file: the same keys (but for a prefix that all of
    them have), the same bits. What the dict holds besides has to have been `said` to be left out."""
    nearest = "none has these keys"
    for where, held in read_by_library.items():
        some = next(iter(written), "")
        for prefix in {key.removesuffix(some) for key in held if key.endswith(some)}:
            inside = {key.removeprefix(prefix): value for key, value in held.items() if key.startswith(prefix)}
            if not written.keys() <= inside.keys():
                continue
            wrong = [key for key in written if written[key] != inside[key]]
            left = [key for key in inside if key not in written and "left out" not in said]
            if not wrong and not left:
                return ""
            nearest = f"{where or 'the file'}: other bits in {wrong[:3]}, not written {left[:3]}"
    return nearest


def strange(written: Held, read_by_library: dict[str, Held], said: str) -> str:
    """'' where the bits of every tensor that was written are those of some tensor of the file, whatever its name."""
    bits = {value[2] for held in read_by_library.values() for value in held.values()}
    wrong = [key for key, value in written.items() if value[2] not in bits]
    return f"bits that the file does not hold: {wrong[:3]}" if wrong else ""
