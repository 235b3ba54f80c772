"""What a checkpoint is: its family, layout, plan and hyper-parameters with their evidence. Moves nothing."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .checkpoint import Checkpoint
from .errors import InputError, UsageError, printable
from .families import Family, Findings, families, named, recognise
from .mapping import KeyMapping, MappingError, Plan, fold

# dtype -> (struct format, the rounding of a value of about 1)
_ELEMENT = {"F64": ("<d", 2e-7), "F32": ("<f", 2e-7), "F16": ("<e", 5e-4), "BF16": ("<H", 4e-3)}


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
        if self.problem or self.plan.problems:
            error = MappingError(([self.problem] if self.problem else []) + self.plan.problems)
            error.args = (f"{printable(path)}: not a {self.family.title} that can be converted: {error}",)
            raise error
        return self.family


class _State:
    """The checkpoint as a family may see it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self._checkpoint = checkpoint

    def elements(self, key: str, *positions: int) -> tuple[tuple[float, ...], float]:
        """Single elements, read in place without the CRC's proof; what they show is checked against the whole later."""
        tensor = self._checkpoint[key]
        form, rounding = _ELEMENT[tensor.dtype.code]
        item, storage = tensor.dtype.itemsize, tensor.storage
        values = []
        for position in positions:
            raw = storage.file.read(storage.start + (tensor.offset + position) * item, item, key)
            (value,) = struct.unpack(form, raw)
            values.append(
                struct.unpack("<f", struct.pack("<I", value << 16))[0] if tensor.dtype.code == "BF16" else value
            )
        return tuple(values), rounding


def survey(checkpoint: Checkpoint, given: Mapping[str, Any] | None = None, family: str | None = None) -> Survey:
    """Look at a checkpoint: names, shapes and a few elements of the positional table; no tensor is read.

    Args:
        given: hyper-parameters in the user's words, by the family's flag names.
        family: insist on this family.

    Raises: `InputError` for a malformed state dict, `UsageError` for a word that contradicts the file.
    """
    made = Survey(checkpoint)
    made.problem = named(checkpoint)
    recognised = recognise(checkpoint)
    if family is not None:
        known = families()
        if family not in known:
            raise UsageError(f"--family {printable(family)}: unknown; there are {', '.join(sorted(known))}")
        recognised = (known[family], bool(recognised and recognised[1]))
    if recognised is None or (made.problem and family is None):
        kind = named(checkpoint)
        shown = fold(list(checkpoint)[:200])
        made.problem = (
            f"this is {kind}"
            if kind
            else f"no model family knows these keys: {', '.join(shown[:4])}" + (" ..." if len(shown) > 4 else "")
        )
        return made
    made.problem = ""
    made.family, made.diffusers = recognised
    made.plan = made.table.survey(checkpoint)
    made.plan.problems += _not_weights(checkpoint)
    made.problem = _guess(checkpoint, made) if made.plan.problems else ""
    made.found = Findings(given or {})
    unknown = set(made.found.given) - set(made.family.flags)
    if unknown:
        raise UsageError(
            f"{', '.join(f'--{name}' for name in sorted(unknown))}: not a flag of the family {made.family.name}"
        )
    made.family.describe(made.plan, _State(checkpoint), made.found)
    return made


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


def _guess(checkpoint: Checkpoint, made: Survey) -> str:
    """What a file with wrong shapes probably is; '' where nothing fits."""
    shapes = {key: checkpoint[key].shape for key in checkpoint}
    matrices = [shapes[key] for move in made.plan.moves for key in move.sources if key.endswith(".weight")]
    if matrices and all(len(shape) == 1 for shape in matrices):
        return "every weight is flat: this looks like an FSDP or ZeRO shard; gather a full state dict first"
    mlp = [shape for key, shape in shapes.items() if ".mlp.fc1.weight" in key or ".ff.net.0.proj.weight" in key]
    hidden = made.plan.dims.get("D", 0)
    if hidden and mlp and all(len(shape) == 2 and shape[0] != 4 * hidden for shape in mlp):
        return f"its feed-forward layers are {mlp[0][0] / hidden:g} times as wide as the model, and the diffusers class is fixed at 4"
    return ""
