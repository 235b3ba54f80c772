"""Both sides of a comparison: opened, recognised, and under the keys of one layout. No weight is read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..checkpoint import Checkpoint, LazyTensor, open_checkpoint
from ..checkpoint.file import reads
from ..checkpoint.weights_kind import EMA, RAW
from ..conversion.analysis import Analysis, analyse
from ..conversion.buffers import joined
from ..conversion.inspection import report
from ..conversion.model_files import open_model
from ..conversion.record import find_record, find_sidecar
from ..errors import ConverterError, InputError, printable
from ..mapping import fold

Tensors = dict[str, LazyTensor]


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

    def by_key(self, original: bool) -> tuple[Tensors, dict[str, str], list[str]]:
        """All other tensors, by their own keys, or by the original's if that is asked for; the original's key of the
        whole tensor by each copy of it; and what the user should know.

        What has no row in the table, or cannot be joined, stays under its own key.
        """
        plan, checkpoint = self.analysis.plan, self.checkpoint
        tensors, copies, done = Tensors(), dict[str, str](), {*plan.computed, *plan.extras}
        moves, unjoined = [], []
        if original and self.analysis.diffusers and self.analysis.family:
            moves = self.analysis.family.keys.survey_back(checkpoint).moves
        for move in moves:
            parts = {key: checkpoint[key] for key in move.parts if key in checkpoint}
            if move.operation.must_agree:
                copies |= dict.fromkeys(move.parts, move.origin)
            elif len(parts) < len(move.parts) or any(move.operation.unlike(move.origin, parts, len(parts))):
                unjoined.append(move.origin)
            else:
                tensors[move.origin] = move.operation.inverse(list(parts.values()), joined)
                done.update(parts)
        for key, tensor in checkpoint.items():
            if key in tensors:
                raise InputError.at(checkpoint.path, key, "the same tensor is there under diffusers' keys too")
            if key not in done:
                tensors[key] = tensor
        problem = "cannot be joined: its parts are incomplete, or differ in shape or dtype"
        return tensors, copies, [f"{self.letter}: {key} {problem}" for key in fold(unjoined)]


class TensorPair(NamedTuple):
    """A tensor on either side, None where it is not. `buffer`: diffusers' layout has no place for it."""

    key: str
    buffer: bool
    a: LazyTensor | None
    b: LazyTensor | None

    @property
    def nbytes(self) -> int:
        """What there is to read."""
        return self.a.nbytes + self.b.nbytes if self.a and self.b else 0


def pairs(a: Side, b: Side) -> tuple[list[TensorPair], list[str]]:
    """Every tensor under the keys of one layout, in A's order, and notes; no weight is read.

    A tensor of one side meets every copy that the other has of it.
    """
    original = a.analysis.diffusers != b.analysis.diffusers
    (ours, our_copies, notes), (theirs, their_copies, more) = a.by_key(original), b.by_key(original)
    for tensors, copies in ((ours, their_copies), (theirs, our_copies)):
        copied = {copy: tensors[key] for copy, key in copies.items() if key in tensors}
        for key in {copies[copy] for copy in copied}:
            del tensors[key]
        tensors.update(copied)
    sides = ((False, ours, theirs), (True, a.buffers, b.buffers))
    return [TensorPair(key, buffer, x.get(key), y.get(key)) for buffer, x, y in sides for key in x | y], notes + more


@contextmanager
def parameters_of(side: str) -> Iterator[None]:
    """Errors in here name the parameters of one side, which are called after it, such as `weights_a`."""
    try:
        yield
    except ConverterError as error:
        raise type(error)(re.sub(r"`(weights|state_dict_key)`", rf"`\1_{side}`", str(error))) from error


@reads
def open_side(
    path: str | os.PathLike[str],
    letter: str,
    stack: ExitStack,
    *,
    weights: str | None,
    state_dict_key: str | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
) -> list[Side]:
    """One side: the weights asked for, else every set of weights that the file holds, raw ones first.

    Raises: `InputError` for a file that is refused, `UsageError` for weights that it does not hold.
    """
    opened = stack.enter_context(open_model(path, weights, state_dict_key))
    with parameters_of(letter.lower()):
        _ = opened.selected
    kinds = sorted({candidate.weights for candidate in opened.plausible}, reverse=True)
    checkpoints = [opened]
    if not weights and not state_dict_key and kinds == [RAW, EMA]:
        checkpoints = [stack.enter_context(open_model(path, kind)) for kind in kinds]
    analyses = [analyse(checkpoint, hyper_parameters) for checkpoint in checkpoints]
    first = analyses[0]
    folder = first.checkpoint.folder if first.diffusers else None
    place = find_sidecar(folder, find_record(folder)) if folder else None
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
