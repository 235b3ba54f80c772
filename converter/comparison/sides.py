"""Both sides of a comparison: opened, recognised, and under the keys of one layout. No weight is read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
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
class KeyedTensors:
    """The tensors of one side by key. `copies`: keys of diffusers' layout -> the original's key of the whole tensor
    that each of them holds. `notes`: what the user should know of them."""

    tensors: Tensors = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def with_copies(a: KeyedTensors, b: KeyedTensors) -> tuple[Tensors, Tensors]:
    """Both sides' tensors, where a tensor of one side meets every copy that the other has of it."""
    sides = dict(a.tensors), dict(b.tensors)
    for copies, tensors in ((b.copies, sides[0]), (a.copies, sides[1])):
        copied = {copy: tensors[key] for copy, key in copies.items() if key in tensors}
        for key in {copies[copy] for copy in copied}:
            del tensors[key]
        tensors.update(copied)
    return sides


@dataclass
class Side:
    """One set of weights of file A or B (`letter`), and the sidecar beside it."""

    letter: str
    analysis: Analysis
    sidecar: Checkpoint | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        return self.analysis.checkpoint

    @property
    def path(self) -> str:
        return printable(self.checkpoint.path)

    @property
    def weights(self) -> str:
        return self.checkpoint.selected.weights

    @cached_property
    def buffers(self) -> Tensors:
        """Tensors that diffusers' layout has no place for, by the original's keys: from the file and the sidecar.

        Of a tensor that is in both, the sidecar's counts, as in a conversion to the original layout.
        """
        plan = self.analysis.plan
        names = dict(zip(plan.computed, plan.computed, strict=True)) | plan.extras
        return {name: self.checkpoint[key] for key, name in names.items()} | dict(self.sidecar or {})

    def by_key(self, original: bool) -> KeyedTensors:
        """All other tensors, by their own keys, or by the original's if that is asked for.

        What has no row in the table, or cannot be joined, stays under its own key.
        """
        plan, checkpoint, keyed = self.analysis.plan, self.checkpoint, KeyedTensors()
        done = {*plan.computed, *plan.extras}
        moves, unjoined = [], []
        if original and self.analysis.diffusers and self.analysis.family:
            moves = self.analysis.family.keys.survey_back(checkpoint).moves
        for move in moves:
            parts = [checkpoint[key] for key in move.parts if key in checkpoint]
            if move.operation.must_agree:
                keyed.copies |= dict.fromkeys(move.parts, move.origin)
            elif len(parts) == len(move.parts) and _joinable(move, checkpoint):
                keyed.tensors[move.origin] = move.operation.inverse(parts, joined)
                done.update(move.parts)
            else:
                unjoined.append(move.origin)
        for key, tensor in checkpoint.items():
            if key in keyed.tensors:
                raise InputError.at(checkpoint.path, key, "the same tensor is there under diffusers' keys too")
            if key not in done:
                keyed.tensors[key] = tensor
        problem = "cannot be joined: its parts are incomplete, or differ in shape or dtype"
        keyed.notes = [f"{self.letter}: {key} {problem}" for key in fold(unjoined)]
        return keyed


def _joinable(move: Move, checkpoint: Mapping[str, LazyTensor]) -> bool:
    parts = {key: checkpoint[key] for key in move.parts}
    return not any(move.operation.unlike(move.origin, parts, len(parts)))


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
    except ConverterError as error:  # which names parameters that are called after their side here
        raise type(error)(re.sub(r"`(weights|state_dict_key)`", rf"`\1_{letter.lower()}`", str(error))) from error
    kinds = sorted({candidate.weights for candidate in opened.plausible}, reverse=True)
    checkpoints = [opened]
    if not weights and not state_dict_key and kinds == [RAW, EMA]:
        checkpoints = [stack.enter_context(open_model(path, kind)) for kind in kinds]
    analyses = [analyse(checkpoint, hyper_parameters) for checkpoint in checkpoints]
    first = analyses[0]
    folder = first.checkpoint.folder if first.diffusers else None
    place = sidecar_beside(folder, record_beside(folder)) if folder else None
    sidecar = stack.enter_context(open_checkpoint(place)) if place else None
    return [Side(letter, analysis, sidecar) for analysis in analyses]


def about(sides: list[Side]) -> dict[str, Any]:
    """What a file is, as `inspect` reports it, and which weights of it are compared."""
    content = report(sides[0].analysis)
    source = {name: content["source"][name] for name in ("name", "size", "container", "prefix")}
    model = {name: content[name] for name in ("family", "layout", "parameters", "dtypes")}
    return source | {"weights": [side.weights for side in sides]} | model


def check_comparable(a: Side, b: Side) -> None:
    """Raises `InputError` where there is nothing to compare: two families, or one and none, or no common key."""
    titles = {side.letter: side.analysis.family.title if side.analysis.family else "" for side in (a, b)}
    if all(titles.values()):
        if titles["A"] != titles["B"]:
            raise InputError(f"{b.path}: this is a {titles['B']}, and {a.path} is a {titles['A']}")
    elif any(titles.values()):
        known, unknown = (a, b) if titles["A"] else (b, a)
        raise InputError(f"{unknown.path}: {unknown.analysis.problem}; {known.path} is a {titles[known.letter]}")
    elif not any(key in b.checkpoint for key in a.checkpoint):
        raise InputError(f"{b.path}: {b.analysis.problem}; and it has no key in common with {a.path}")
