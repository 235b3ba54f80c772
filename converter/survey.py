"""What a checkpoint is: its family, layout, plan and hyper-parameters with their evidence. Moves nothing."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import nan
from typing import Any

from .checkpoint import Checkpoint, LazyTensor
from .checkpoint.tensor import Storage
from .errors import InputError, UsageError, printable
from .families import Family, Findings, families, named, recognise
from .mapping import KeyMapping, MappingError, Plan, fold

# dtype -> (struct format, half of the last place of a value below 1 and a little more). F64: stored, computed as F32.
_ELEMENT = {"F64": ("<d", 2e-7), "F32": ("<f", 2e-7), "F16": ("<e", 2.5e-4), "BF16": ("<H", 2e-3)}


@dataclass
class Survey:
    """The outcome of looking at a checkpoint.

    `family` is None where none knows the keys, and `problem` then says what the file is instead. `diffusers` tells
    whether the keys are diffusers' already. `plan` may hold problems: `require()` raises them.
    """

    checkpoint: Checkpoint
    family: Family | None = None
    diffusers: bool = False
    plan: Plan = field(default_factory=Plan)
    found: Findings = field(default_factory=lambda: Findings({}))
    problem: str = ""

    @property
    def table(self) -> KeyMapping:
        assert self.family is not None
        return self.family.keys.targets if self.diffusers else self.family.keys

    def require(self) -> Family:
        """The family, or an `InputError` with everything that stands against a conversion."""
        path = self.checkpoint.path
        if self.family is None:
            raise InputError(f"{printable(path)}: {self.problem}")
        if self.plan.problems:
            error = MappingError(self.plan.problems)
            error.args = (f"{printable(path)}: not a {self.family.title} that can be converted: {error}",)
            raise error
        return self.family

    @cached_property
    def state(self) -> _State:
        return _State(self.checkpoint)

    def config(self) -> dict[str, Any]:
        """`config.json` of the converted model. Raises what stands against it, as `require()` does, or `UsageError`."""
        with self.state.blaming():
            return self.require().config(self.found)


class _State:
    """The checkpoint as a family may see it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self._checkpoint = checkpoint
        self._peeked: dict[int, Storage] = {}

    def elements(self, key: str, *positions: int) -> tuple[tuple[float, ...], float]:
        """Single elements, read in place without the CRC's proof; what they show is checked against the whole later."""
        tensor = self._checkpoint[key]
        self._peeked[id(tensor.storage)] = tensor.storage
        form, rounding = _ELEMENT.get(tensor.dtype.code, ("", 0.0))
        return tuple(_element(tensor, position, form) for position in positions), rounding

    @contextmanager
    def blaming(self) -> Iterator[None]:
        """Before the call is blamed for what single elements show, the file is: they may be damaged."""
        try:
            yield
        except UsageError:
            for storage in self._peeked.values():
                for _ in storage.chunks():
                    pass  # at the end it verifies the CRC
            raise


def _element(tensor: LazyTensor, position: int, form: str) -> float:
    """One element by its row-major position; NaN outside the tensor and in one that holds no floats."""
    if not form or position >= tensor.numel:
        return nan
    place = tensor.offset
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        position, along = divmod(position, size)
        place += along * stride
    storage, item = tensor.storage, tensor.dtype.itemsize
    (value,) = struct.unpack(form, storage.file.read(storage.start + place * item, item, tensor.key))
    if tensor.dtype.code == "BF16":
        (value,) = struct.unpack("<f", struct.pack("<I", value << 16))
    return float(value)


def survey(checkpoint: Checkpoint, given: Mapping[str, Any] | None = None, family: str | None = None) -> Survey:
    """Look at a checkpoint: names, shapes and a few elements of the positional table; no tensor is read.

    Args:
        given: hyper-parameters in the user's words, by the family's flag names.
        family: insist on this family.

    Raises: `InputError` for a malformed state dict, `UsageError` for a word that contradicts the file.
    """
    made = Survey(checkpoint)
    recognised = recognise(checkpoint, _insisted(family))
    if recognised is None:
        kind = named(checkpoint)
        shown = fold(list(checkpoint)[:200])
        unknown_keys = ", ".join(shown[:4]) + (" ..." if len(shown) > 4 else "")
        made.problem = f"this is {kind}" if kind else f"no model family knows these keys: {unknown_keys}"
        return made
    made.family, made.diffusers = recognised
    made.plan = made.table.survey(checkpoint)
    made.found = Findings(given or {})
    unknown = set(made.found.given) - set(made.family.flags)
    if unknown:
        raise UsageError(
            f"{', '.join(f'--{name}' for name in sorted(unknown))}: not a flag of the family {made.family.name}"
        )
    with made.state.blaming():
        made.family.describe(made.plan, made.state, made.found)
    # What is said of the whole comes before what is said of single tensors.
    made.plan.problems[:0] = _flat(checkpoint, made.plan) + made.found.problems
    made.plan.problems += _not_weights(checkpoint)
    return made


def _insisted(name: str | None) -> Family | None:
    known = families() if name is not None else {}
    if name is not None and name not in known:
        raise UsageError(f"--family {printable(name)}: unknown; there are {', '.join(sorted(known))}")
    return known[name] if name is not None else None


def _not_weights(checkpoint: Checkpoint) -> list[str]:
    wrong: dict[str, list[str]] = {}
    for key, tensor in checkpoint.items():
        if not tensor.dtype.floating:
            wrong.setdefault(tensor.dtype.name, []).append(key)
    return [
        f"{key} is {dtype}, and weights are floating point (a quantised model?)"
        for dtype, keys in wrong.items()
        for key in fold(keys)
    ]


def _flat(checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """Whether every matrix has lost its shape."""
    matrices = [
        key for move in plan.moves for key in move.sources if len(move.row.pattern) > 1 and key.endswith(".weight")
    ]
    if not matrices or any(len(checkpoint[key].shape) != 1 for key in matrices):
        return []
    return ["every weight is flat: this looks like an FSDP or ZeRO shard; gather a full state dict first"]
