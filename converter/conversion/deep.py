"""`inspect --deep`: every byte read, for what no index shows: damage, NaN, zeros, changes since the record."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint import LazyTensor
from ..checkpoint.cast import count_nonfinite
from ..checkpoint.digest import Digest
from ..checkpoint.tensor import CHUNK
from ..errors import InputError
from .analysis import Analysis
from .sidecar import Sidecar, open_sidecar
from .to_diffusers import check_computed, named
from .verdicts import ALLOW_NONFINITE, NONFINITE, compare_with_record
from .write import counted
from .zeros import ALLOWED, find_zeros, listed


@dataclass
class DeepInspection:
    """What was found in the tensors: the bytes read, whether the file has checksums, elements that are not finite by
    key, the keys that differ from the record; `problems` and `notes` in words."""

    bytes: int = 0
    checksums: bool = True
    nonfinite: dict[str, int] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: getattr(self, name) for name in ("bytes", "checksums", "nonfinite", "changed")}


def read_through(analysis: Analysis) -> DeepInspection:
    """Read every tensor of the chosen weights, and of a sidecar beside them, to its end, one piece in memory at a time.

    Damage to single tensors is a problem among others, and the rest is read all the same.
    """
    result, sound, buffer = DeepInspection(), dict[str, LazyTensor](), bytearray(CHUNK)
    with ExitStack() as stack:
        sidecar = Sidecar()
        try:
            if analysis.family and not analysis.plan.problems:
                sidecar = open_sidecar(stack, analysis, None)
                if not analysis.needs:
                    check_computed(analysis, sidecar)
        except InputError as error:
            result.problems.append(str(error))
        must_match, recorded = sidecar.must_match, sidecar.recorded
        digests = must_match | recorded
        damaged, read = set[int](), dict[str, str]()
        tensors = named(analysis.checkpoint) | sidecar.kept
        for key, tensor in tensors.items():
            if id(tensor.storage) in damaged:
                continue
            digest = Digest(digests.get(key, ""))
            try:
                result.checksums &= tensor.storage.crc is not None
                for _, piece in tensor.chunks(buffer):
                    if count := count_nonfinite(piece, tensor.dtype):
                        result.nonfinite[key] = result.nonfinite.get(key, 0) + count
                    if key in digests:
                        digest.update(piece)
                    result.bytes += len(piece)
            except InputError as error:
                damaged.add(id(tensor.storage))  # others may lie in it, and are as bad
                result.problems.append(str(error))
                continue
            sound[key] = tensor
            if key in digests:
                read[key] = digest.text
        zeros = find_zeros(analysis.plan, sound)
    if result.nonfinite:
        result.problems.append(f"{counted(result.nonfinite, NONFINITE)}; {ALLOW_NONFINITE}")
    if zeros.refused:
        result.problems.append(f"{zeros.refused}; {ALLOWED}")
    result.notes += zeros.notes
    held = compare_with_record(analysis, must_match, recorded, read)
    result.changed = [key for key in read if key in held.broken or key in held.changed]
    result.problems += map(str, held.broken.values())
    if held.words:
        result.notes.append(held.words + (f": {listed(held.changed)}" if held.changed else ""))
    return result
