"""`inspect --deep`: every byte read, for what no index shows: damage, NaN, zeros, and what a record promised."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from .arrangement import named
from .beside import look_beside
from .checkpoint import LazyTensor
from .checkpoint.cast import count_nonfinite
from .checkpoint.tensor import CHUNK
from .errors import InputError
from .record import LIKE, UNLIKE
from .survey import Survey
from .writing import counted
from .zeros import ALLOWED, listed, look


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


def read_through(looked: Survey) -> Deep:
    """Read every tensor of the chosen weights, and of a sidecar beside them, to its end, one piece in memory at a time.

    Damage to single tensors is a problem among others, and the rest is read all the same.
    """
    made, sound, buffer = Deep(), dict[str, LazyTensor](), bytearray(CHUNK)
    with ExitStack() as stack:
        try:
            beside = look_beside(stack, looked, None) if looked.family and not looked.plan.problems else None
        except InputError as error:
            beside = None
            made.problems.append(str(error))
        digests = beside.record.digests if beside else {}
        damaged, held = set[int](), 0
        tensors = named(looked.checkpoint) | (beside.kept if beside else {})
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
            held += key in digests
            if digests.get(key, digest.hexdigest()) != digest.hexdigest():
                made.changed.append(key)
        zeros = look(looked.plan, sound)
    if made.nonfinite:
        said = counted(made.nonfinite, "NaN or infinite")
        made.problems.append(f"{said}; --allow_nonfinite converts them as they are")
    if zeros.refused:
        made.problems.append(f"{zeros.refused}; {ALLOWED}")
    made.notes += zeros.notes
    if made.changed:
        made.notes.append(f"{len(made.changed)} of {held} tensors {UNLIKE}: {listed(made.changed)}")
    elif held:
        made.notes.append(f"all {held} tensors {LIKE}")
    return made
