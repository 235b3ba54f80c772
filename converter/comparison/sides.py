"""Both sides of a comparison: opened, recognised, and under one spelling of their keys. No tensor is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, DType, LazyTensor, open_checkpoint
from ..conversion import EXTRAS
from ..errors import InputError, UsageError, printable
from ..inspection import report
from ..mapping import fold
from ..survey import Survey, survey


@dataclass(frozen=True, slots=True)
class Joined:
    """A tensor of the common spelling: one of the file, or several alike put together on axis 0, unread."""

    parts: tuple[LazyTensor, ...]

    @property
    def dtype(self) -> DType:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        return (len(self.parts) * first[0], *first[1:]) if len(self.parts) > 1 else first

    @property
    def numel(self) -> int:
        return sum(part.numel for part in self.parts)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def chunks(self) -> Iterator[memoryview]:
        """Its bytes in row-major order; each chunk is valid until the next is taken."""
        for part in self.parts:
            for _, chunk in part.chunks():
                yield chunk


Tensors = dict[str, Joined]


@dataclass
class Side:
    """One set of weights: what it is, and what was found beside it. `letter` is A or B."""

    letter: str
    looked: Survey
    sidecar: Checkpoint | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        return self.looked.checkpoint

    @property
    def path(self) -> str:
        return printable(self.checkpoint.path)

    @property
    def weights(self) -> str:
        return self.checkpoint.selected.weights

    @cached_property
    def about(self) -> dict[str, Any]:
        """What it is, as `inspect` says it."""
        made = report(self.looked)
        return {name: made[name] for name in ("source", "family", "layout", "parameters", "dtypes")}

    @cached_property
    def buffers(self) -> Tensors:
        """What diffusers' layout has no home for, by the original's keys: from the file, and from a sidecar.

        Of a tensor that is in both, the sidecar's is believed, as on the way back.
        """
        plan = self.looked.plan
        names = dict(zip(plan.computed, plan.computed, strict=True)) | plan.extras
        held = {name: self.checkpoint[key] for key, name in names.items()} | dict(self.sidecar or {})
        return {name: Joined((tensor,)) for name, tensor in held.items()}

    def tensors(self, original: bool) -> tuple[Tensors, list[str]]:
        """(all others by their keys, of diffusers' layout put together under the original's if that is asked for;
        in words, what could not be).

        What has no place in the table, or cannot be put together, stays under its own key.
        """
        plan, checkpoint = self.looked.plan, self.checkpoint
        made: Tensors = {}
        taken, apart = {*plan.computed, *plan.extras}, []
        if original and self.looked.diffusers and self.looked.family:
            for move in self.looked.family.keys.survey_back(checkpoint).moves:
                parts = tuple(checkpoint[name] for name in move.sources if name in checkpoint)
                if len(parts) == len(move.sources) and (len(parts) == 1 or _alike(parts)):
                    made[move.targets[0]] = Joined(parts)
                    taken.update(move.sources)
                else:
                    apart.append(move.targets[0])
        for key, tensor in checkpoint.items():
            if key in taken:
                continue
            if key in made:
                raise InputError.at(checkpoint.path, key, "the same tensor is there under diffusers' keys too")
            made[key] = Joined((tensor,))
        return made, [
            f"{self.letter}: {key} cannot be put together: its parts are not all there, or unlike"
            for key in fold(apart)
        ]


def _alike(parts: tuple[LazyTensor, ...]) -> bool:
    return len({(part.dtype, part.shape) for part in parts}) == 1 and bool(parts[0].shape)


def open_side(stack: ExitStack, letter: str, path: str | os.PathLike[str], weights: str | None) -> list[Side]:
    """One side: the weights asked for, else every set of weights that the file holds, raw ones first.

    Raises: `InputError` for a file that is refused, `UsageError` for weights that it does not hold.
    """
    opened = stack.enter_context(open_checkpoint(path, weights))
    kinds = sorted({candidate.weights for candidate in opened.candidates}, reverse=True)
    if weights and weights not in kinds:
        raise UsageError(
            f"--weights_{letter.lower()} {weights}: {printable(path)} holds only {', '.join(kinds)} weights"
        )
    found = [opened]
    if not weights and len(kinds) > 1:
        found = [stack.enter_context(open_checkpoint(path, kind)) for kind in kinds]
    looks = [survey(checkpoint) for checkpoint in found]
    sidecar = _sidecar(looks[0])
    kept = stack.enter_context(open_checkpoint(sidecar)) if sidecar else None
    return [Side(letter, looked, kept) for looked in looks]


def _sidecar(looked: Survey) -> Path | None:
    """Where a conversion kept what its model has no place for: in the folder, or above it if it is the model's."""
    path = Path(looked.checkpoint.path)
    if not (looked.diffusers and looked.family and path.is_dir()):
        return None
    above = [path.absolute().parent] if path.absolute().name == looked.family.subfolder else []
    return next((folder / EXTRAS for folder in (path, *above) if (folder / EXTRAS).is_file()), None)


def check_comparable(a: Side, b: Side) -> None:
    """Raises `InputError` where there is nothing to compare: two families, or one and none, or no common key."""
    titles = {side.letter: side.looked.family.title if side.looked.family else "" for side in (a, b)}
    if all(titles.values()):
        if titles["A"] != titles["B"]:
            raise InputError(f"{b.path}: this is a {titles['B']}, and {a.path} is a {titles['A']}")
    elif any(titles.values()):
        known, unknown = (a, b) if titles["A"] else (b, a)
        raise InputError(f"{unknown.path}: {unknown.looked.problem}; {known.path} is a {titles[known.letter]}")
    elif not any(key in b.checkpoint for key in a.checkpoint):
        raise InputError(f"{b.path}: {b.looked.problem}; and it has no key in common with {a.path}")
