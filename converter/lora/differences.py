"""The difference of two models, module by module, each as the nearest product of a low rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..checkpoint import LazyTensor
from ..checkpoint.cast import float64
from ..checkpoint.write.transfer import Progress
from ..comparison.elements import Numbers, measure
from ..conversion.analysis import Analysis
from ..errors import InputError, UsageError, printable, shortened
from ..mapping import Move, fold
from .adapter import Adapter
from .changes import Change
from .extraction import Extraction, LeftOut, Module
from .low_rank import LowRankFit, nearest
from .merge import moves_of, tensors_in
from .placed import keys_of
from .products import Array, Held, LowRank
from .spelling import Spelling

if TYPE_CHECKING:
    import torch

TOOL = "pixart extract-lora"
MOST_WORKERS = 8  # each has a module in memory, at most 0.3 GB at full size


@dataclass(frozen=True)
class Choice:
    """How much of the difference is kept: at most a `rank`, the smallest rank that keeps a share of the `energy` (the
    squared singular values of a module's difference), or whichever of both is less.

    Raises: `UsageError` for neither, and for what is no rank or no share.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if self.rank is None and self.energy is None:
            raise UsageError("`rank` or `energy` is needed: how much of the difference the adapter is to hold")
        if self.rank is not None and (type(self.rank) is not int or self.rank < 1):
            raise UsageError(f"`rank` {printable(repr(self.rank), 40)}: a whole number of at least 1 is needed")
        energy = self.energy
        number = isinstance(energy, int | float) and not isinstance(energy, bool)
        if energy is not None and not (number and 0 < energy <= 1):
            raise UsageError(f"`energy` {printable(repr(energy), 40)}: a share is needed, above 0 and at most 1")


def extract(
    base: Analysis,
    tuned: Analysis,
    spelling: Spelling,
    choice: Choice,
    *,
    device: torch.device | None = None,
    progress: Callable[[int], Progress] | None = None,
) -> Extraction:
    """The adapter that makes `tuned` of `base`, as nearly as the choice allows: for each module of the layout that the
    spelling has names for, the nearest product of a low rank. One module for each worker is in memory, and the factors.

    Raises: `InputError` where the models are not of one family and shape, where no module differs, and for numbers that
        are not finite.
    """
    family, layout = base.require(), spelling.names(base.require()).layout
    if tuned.require() is not family:
        title = f"this is a {tuned.require().title}, and {printable(base.checkpoint.path)} is a {family.title}"
        raise InputError.at(tuned.checkpoint.path, "", title)
    if family.several:
        raise InputError.at(tuned.checkpoint.path, "", f"a {family.title}: no tool has names for adapters of one")
    ours, theirs = _model(base, layout), _model(tuned, layout)
    _check_alike(base, tuned, ours, theirs)
    total = sum(ours[key].nbytes + theirs[key].nbytes for key in ours)
    step = progress(total) if progress else lambda count: None
    adapter = Adapter(os.fspath(tuned.checkpoint.path), spelling, family, layout, {}, tool=TOOL)
    result = Extraction(adapter, notes=_notes(ours, theirs))

    def compare(group: Group) -> tuple[Numbers, Change | None, LowRankFit | None]:
        pair = ours[group.key], theirs[group.key]
        numbers = measure(*pair)
        if numbers.nonfinite_a or numbers.nonfinite_b:
            place = base if numbers.nonfinite_a else tuned
            raise InputError.at(place.checkpoint.path, group.key, "holds numbers that are not finite")
        found = _nearest(*pair, choice, device) if group.module and numbers.difference else (None, None)
        step(sum(ours[key].nbytes + theirs[key].nbytes for key in group.keys))
        return numbers, *found

    groups = [*_groups(moves_of(base), layout, ours)]
    with _workers() as pool:
        outcomes = list(pool.map(compare, groups))
    for group, (numbers, change, fit) in zip(groups, outcomes, strict=True):
        if change and fit:
            adapter.changes.update(dict.fromkeys(group.keys, change))
            shape = ours[group.key].shape
            result.modules += [Module(key, shape, fit.rank, fit.norm, fit.error) for key in group.keys]
        elif group.module:
            result.unchanged += group.keys
        elif numbers.difference:
            result.left_out.append(LeftOut(group.key, numbers))
    result.left_out += _buffers(base, tuned)
    if not result.modules:
        rest = f"; what does is nothing that a LoRA holds: {result.left_out_words}" if result.left_out else ""
        rule = f"no module differs from {printable(base.checkpoint.path)}{rest}"
        raise InputError.at(tuned.checkpoint.path, "", rule)
    return result


def _model(analysis: Analysis, layout: str) -> dict[str, LazyTensor]:
    """The tensors of a model that both layouts have, by the keys of one, unread."""
    tensors = tensors_in(analysis, layout)
    return {key: tensors[key] for move in moves_of(analysis) for key in keys_of(move, layout)}


@dataclass(frozen=True)
class Group:
    """The keys of one tensor: several where diffusers has copies of it, which have one change. `module`: whether it is
    the weight of a module that adapters change."""

    keys: tuple[str, ...]
    module: bool

    @property
    def key(self) -> str:
        return self.keys[0]


def _groups(moves: Sequence[Move], layout: str, tensors: Mapping[str, LazyTensor]) -> Iterator[Group]:
    """Every tensor of a model."""
    for move in moves:
        keys = keys_of(move, layout)
        for alike in [keys] if move.operation.must_agree else [(key,) for key in keys]:
            shape = tensors[alike[0]].shape
            # A norm's weight is a vector. A convolution of each channel by itself has no sum over inputs, which is what
            # two factors are for, and PEFT makes none for it.
            mixes = len(shape) == 2 or (len(shape) > 2 and shape[1] > 1)
            yield Group(alike, alike[0].endswith(".weight") and not move.row.parameter and mixes)


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch would use for one product, each with products of its own: the threads of one
    decomposition mostly wait for each other, busily, which takes five times the processor's time on a machine that does
    something else too."""
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(count, MOST_WORKERS)) as pool:
            yield pool
    finally:
        torch.set_num_threads(count)


def _check_alike(
    base: Analysis, tuned: Analysis, ours: Mapping[str, LazyTensor], theirs: Mapping[str, LazyTensor]
) -> None:
    """Raises: `InputError` where one has what the other lacks, or in another shape."""
    whose = f"{printable(base.checkpoint.path)}"
    odd = {
        f"{whose} has no": [key for key in theirs if key not in ours],
        f"lacks what {whose} has:": [key for key in ours if key not in theirs],
        f"not of the shape that {whose} has:": [k for k in ours if k in theirs and ours[k].shape != theirs[k].shape],
    }
    if words := [f"{what} {shortened(fold(keys), 4)}" for what, keys in odd.items() if keys]:
        raise InputError.at(tuned.checkpoint.path, "", f"another model: {'; '.join(words)}")


def _nearest(
    ours: LazyTensor, theirs: LazyTensor, choice: Choice, device: torch.device | None
) -> tuple[Change, LowRankFit]:
    """The change of a module's weight, and how near it comes."""
    difference = _wide(theirs) - _wide(ours)
    fit = nearest(difference.reshape(len(difference), -1), choice.rank, choice.energy, device)
    ones = (1,) * (difference.ndim - 2)  # of a convolution, the up factor is one of 1 x 1
    down, up = fit.down.reshape(fit.rank, *difference.shape[1:]), fit.up.reshape(*fit.up.shape, *ones)
    return Change(LowRank(Held(down), Held(up))), fit


def _wide(tensor: LazyTensor) -> Array:
    return float64(tensor.read(), tensor.dtype).reshape(tensor.shape)


def _buffers(base: Analysis, tuned: Analysis) -> list[LeftOut]:
    """The tensors that only the original's layout has, where both are in it, and that differ."""
    if base.diffusers or tuned.diffusers:
        return []
    ours, theirs = ({*side.plan.computed, *side.plan.extras} for side in (base, tuned))
    found = []
    for key in sorted(ours & theirs):
        pair = base.checkpoint[key], tuned.checkpoint[key]
        numbers = measure(*pair) if pair[0].shape == pair[1].shape else None
        if numbers is None or numbers.differing:
            found.append(LeftOut(key, numbers))
    return found


def _notes(ours: Mapping[str, LazyTensor], theirs: Mapping[str, LazyTensor]) -> list[str]:
    """What the difference of two dtypes is."""
    kinds = {(ours[key].dtype, theirs[key].dtype) for key in ours}
    mixed = sorted(f"{a.name} and {b.name}" for a, b in kinds if a != b)
    return [f"base and tuned are {' or '.join(mixed)}: what was rounded is part of the difference"] if mixed else []
