"""Both sides of a comparison: opened, recognised, and under one spelling of their keys. No weight is read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, LazyTensor, open_checkpoint
from ..checkpoint.weights_kind import EMA, RAW
from ..conversion.analysis import Analysis, analyse, open_model
from ..conversion.buffers import joined
from ..conversion.inspection import report
from ..conversion.record import record_beside, sidecar_beside
from ..errors import ConverterError, InputError, printable
from ..mapping import Move, fold

Tensors = dict[str, LazyTensor]


@dataclass
class Spelled:
    """The tensors of one side, and in words what is odd about them. `copies`: keys of diffusers' layout, each of
    which holds the whole tensor of the original's key that is given: each is compared with that."""

    tensors: Tensors = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def matched(a: Spelled, b: Spelled) -> tuple[Tensors, Tensors]:
    """Both sides' tensors, where a tensor of one side meets every copy that the other has of it."""
    sides = dict(a.tensors), dict(b.tensors)
    for copies, mine in ((b.copies, sides[0]), (a.copies, sides[1])):
        found = {copy: mine[key] for copy, key in copies.items() if key in mine}
        for key in {copies[copy] for copy in found}:
            del mine[key]
        mine.update(found)
    return sides


@dataclass
class Side:
    """One set of weights: what it is, and what was found beside it. `letter` is A or B."""

    letter: str
    looked: Analysis
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
        return {name: self.checkpoint[key] for key, name in names.items()} | dict(self.sidecar or {})

    def spelled(self, original: bool) -> Spelled:
        """All other tensors, by their own keys, or by the original's if that is asked for.

        What has no place in the table, or cannot be put together, stays under its own key.
        """
        plan, checkpoint, made = self.looked.plan, self.checkpoint, Spelled()
        taken, apart = {*plan.computed, *plan.extras}, []
        moves = []
        if original and self.looked.diffusers and self.looked.family:
            moves = self.looked.family.keys.survey_back(checkpoint).moves
        for move in moves:
            there = [checkpoint[key] for key in move.parts if key in checkpoint]
            if move.operation.must_agree:
                made.copies |= dict.fromkeys(move.parts, move.origin)
            elif len(there) == len(move.parts) and not _unlike(move, there):
                made.tensors[move.origin] = move.operation.inverse(there, joined)
                taken.update(move.parts)
            else:
                apart.append(move.origin)
        for key, tensor in checkpoint.items():
            if key in made.tensors:
                raise InputError.at(checkpoint.path, key, "the same tensor is there under diffusers' keys too")
            if key not in taken:
                made.tensors[key] = tensor
        unlike = "cannot be put together: its parts are not all there, or unlike"
        made.notes = [f"{self.letter}: {key} {unlike}" for key in fold(apart)]
        return made


def _unlike(move: Move, tensors: list[LazyTensor]) -> bool:
    """Whether they cannot be put together."""
    shapes, dtypes = [tensor.shape for tensor in tensors], [tensor.dtype.name for tensor in tensors]
    return any(move.operation.unlike(move.origin, move.parts, shapes, dtypes, len(move.parts)))


def open_side(
    stack: ExitStack,
    letter: str,
    path: str | os.PathLike[str],
    *,
    weights: str | None,
    state_dict_key: str | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
) -> list[Side]:
    """One side: the weights asked for, else every set of weights that the file holds, raw ones first.

    Raises: `InputError` for a file that is refused, `UsageError` for weights that it does not hold.
    """
    opened = stack.enter_context(open_model(path, weights, state_dict_key))
    try:
        _ = opened.selected
    except ConverterError as error:  # which names flags that are called after their side here
        raise type(error)(re.sub(r"`(weights|state_dict_key)`", rf"`\1_{letter.lower()}`", str(error))) from error
    kinds = sorted({candidate.weights for candidate in opened.likely}, reverse=True)
    found = [opened]
    if not weights and not state_dict_key and kinds == [RAW, EMA]:
        found = [stack.enter_context(open_model(path, kind)) for kind in kinds]
    looks = [analyse(checkpoint, hyper_parameters) for checkpoint in found]
    sidecar = _sidecar(looks[0])
    kept = stack.enter_context(open_checkpoint(sidecar)) if sidecar else None
    return [Side(letter, looked, kept) for looked in looks]


def _sidecar(looked: Analysis) -> Path | None:
    """Where a conversion kept what the model of a folder has no place for."""
    folder = looked.checkpoint.folder
    return sidecar_beside(folder, record_beside(folder)) if looked.diffusers and folder else None


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
