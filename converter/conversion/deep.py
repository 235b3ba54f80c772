"""`inspect --deep`: every byte read, for what no index shows: damage, NaN, zeros, and what a record promised."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint import LazyTensor
from ..checkpoint.cast import count_nonfinite
from ..checkpoint.tensor import CHUNK
from ..errors import InputError
from .analysis import Analysis
from .sidecar import Sidecar, open_sidecar
from .to_diffusers import hold_computed, named
from .verdicts import ALLOW_NONFINITE, NONFINITE, hold_to_record
from .write import counted
from .zeros import ALLOWED, find_zeros, listed


@dataclass
class Deep:
    """What was found in the tensors: the bytes read, whether the file has checksums, elements that are not finite by
    key, the keys that a record promised otherwise; `problems` and `notes` in words."""

    bytes: int = 0
    checksums: bool = True
    nonfinite: dict[str, int] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: getattr(self, name) for name in ("bytes", "checksums", "nonfinite", "changed")}


def read_through(looked: Analysis) -> Deep:
    """Read every tensor of the chosen weights, and of a sidecar beside them, to its end, one piece in memory at a time.

    Damage to single tensors is a problem among others, and the rest is read all the same.
    """
    made, sound, buffer = Deep(), dict[str, LazyTensor](), bytearray(CHUNK)
    with ExitStack() as stack:
        beside = Sidecar()
        try:
            if looked.family and not looked.plan.problems:
                beside = open_sidecar(stack, looked, None)
                if not looked.needs:
                    hold_computed(looked, beside)
        except InputError as error:
            made.problems.append(str(error))
        must_match, recorded = beside.must_match, beside.recorded
        digests = must_match | recorded
        damaged, read = set[int](), dict[str, str]()
        tensors = named(looked.checkpoint) | beside.kept
        for key, tensor in tensors.items():
            if id(tensor.storage) in damaged:
                continue
            digest = hashlib.sha256()
            try:
                made.checksums &= tensor.storage.crc is not None
                for _, piece in tensor.chunks(buffer):
                    if count := count_nonfinite(piece, tensor.dtype):
                        made.nonfinite[key] = made.nonfinite.get(key, 0) + count
                    if key in digests:
                        digest.update(piece)
                    made.bytes += len(piece)
            except InputError as error:
                damaged.add(id(tensor.storage))  # others may lie in it, and are as bad
                made.problems.append(str(error))
                continue
            sound[key] = tensor
            if key in digests:
                read[key] = digest.hexdigest()
        zeros = find_zeros(looked.plan, sound)
    if made.nonfinite:
        made.problems.append(f"{counted(made.nonfinite, NONFINITE)}; {ALLOW_NONFINITE}")
    if zeros.refused:
        made.problems.append(f"{zeros.refused}; {ALLOWED}")
    made.notes += zeros.notes
    held = hold_to_record(looked, must_match, recorded, read)
    made.changed = [key for key in read if key in held.broken or key in held.changed]
    made.problems += map(str, held.broken.values())
    if held.words:
        made.notes.append(held.words + (f": {listed(held.changed)}" if held.changed else ""))
    return made
