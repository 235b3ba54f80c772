"""`extract_lora`: the difference of two models as an adapter, the way round from merging."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checkpoint import LazyTensor
from ..checkpoint.cast import float64
from ..checkpoint.file import reading
from ..checkpoint.write.transfer import Progress
from ..comparison.elements import measure
from ..comparison.sides import parameters_of
from ..conversion.analysis import Analysis
from ..conversion.model_files import open_model
from ..conversion.options import stated
from ..conversion.sidecar import analyse_with_record
from ..errors import InputError, UsageError, printable, shortened
from ..mapping import Move, fold
from ..mapping.rows import MODULE
from ..nets.device import checked_device
from ..remote import fetched
from .adapter import Adapter
from .changes import Array, Change, Held, LowRank
from .convert import LoraTarget, write_adapter
from .extraction import Extraction, LeftOut, Module
from .low_rank import LowRankFit, nearest
from .merge import moves_of, tensors_in
from .placed import keys_of
from .reading import open_adapter
from .spelling import BY_NAME, Spelling

if TYPE_CHECKING:
    import torch

AnyPath = str | os.PathLike[str]
TOOL = "pixart extract-lora"


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
    spelling has names for, the nearest product of a low rank. One module is in memory at a time, and the factors.

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
    for move in moves_of(base):
        keys = keys_of(move, layout)
        # Copies of one tensor have one change, which is computed once.
        for alike in [keys] if move.operation.must_agree else [(key,) for key in keys]:
            key = alike[0]
            numbers = measure(ours[key], theirs[key])
            if numbers.nonfinite_a or numbers.nonfinite_b:
                place = base if numbers.nonfinite_a else tuned
                raise InputError.at(place.checkpoint.path, key, "holds numbers that are not finite")
            if not _is_module(move, key, ours[key]):
                result.left_out += [LeftOut(key, numbers)] if numbers.difference else []
            elif not numbers.difference:
                result.unchanged += alike
            else:
                change, fit = _nearest(ours[key], theirs[key], choice, device)
                adapter.changes.update(dict.fromkeys(alike, change))
                result.modules += [Module(one, ours[key].shape, fit.rank, fit.norm, fit.error) for one in alike]
            step(sum(ours[one].nbytes + theirs[one].nbytes for one in alike))
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


def _is_module(move: Move, key: str, weight: LazyTensor) -> bool:
    """Whether a tensor is the weight of a module that adapters change. A norm's is a vector; a convolution of each
    channel by itself has no sum over inputs, which is what two factors are for, and PEFT makes none for it."""
    mixes = len(weight.shape) == 2 or (len(weight.shape) > 2 and weight.shape[1] > 1)
    return move.row.suffixes == MODULE and key.endswith(".weight") and mixes


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


def extract_lora(
    base: AnyPath,
    tuned: AnyPath,
    dump_path: AnyPath,
    *,
    rank: int | None = None,
    energy: float | None = None,
    to: str = "diffusers",
    weights_base: str | None = None,
    weights_tuned: str | None = None,
    state_dict_key_base: str | None = None,
    state_dict_key_tuned: str | None = None,
    family: str | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    overwrite: bool = False,
    measuring: Callable[[Analysis, Analysis, Adapter], Any] | None = None,
    progress: Callable[[int], Progress] | None = None,
) -> Extraction:
    """Write what was trained into a model as an adapter of its own: LoRA of the nearest low rank for each module.

    Args:
        base, tuned: models of one family and shape, each of any accepted kind and in either layout.
        dump_path: the file, or of `to` peft the folder.
        rank: at most this, for every module.
        energy: the share of each module's squared singular values, such as 0.99, that the smallest rank that does so
            keeps. With `rank`, whichever is less.
        to: the spelling. Those with the original's names have one adapter for q, k and v together.
        weights_base, weights_tuned: 'raw' (default) or 'ema', where a file holds both.
        state_dict_key_base, state_dict_key_tuned: where the weights lie, where a file holds several state dicts.
        family: of both, required instead of recognised.
        hyper_parameters: of both, by name.
        device: where the products are computed. Default: the CPU.
        overwrite: replace what is there.
        measuring: asked last what the adapter does, by the two models and the adapter; its answer is `effect`.
        progress: called with the number of bytes to come, of both models; returns what is called with each count done.

    Returns: an `Extraction`, with the error of every module, and what an adapter cannot hold.

    Raises: `InputError` (exit code 3) for models that are refused, are not of one shape, or do not differ; `UsageError`
        (2) for a call that is.

    Example:
        >>> from converter.lora.merge import merge_lora
        >>> base, lora, tuned = "fixtures/golden/sigma-ms.pth", "fixtures/lora/d-ot-kohya.safetensors", tmp / "tuned.pth"
        >>> done = merge_lora(base, lora, tuned, to="original", hyper_parameters={"num_attention_heads": 4})
        >>> found = extract_lora(base, tuned, tmp / "lora.safetensors", rank=8, to="kohya")
        >>> found.words  # the merged LoRA is of rank 4
        'LoRA of rank 4 for 28 modules: 1 of the energy of the difference, relative error 8.7e-08'
    """
    choice, place, target = Choice(rank, energy), checked_device(device), LoraTarget.of(dump_path, to)
    for side in (base, tuned):
        target.check(side, overwrite=overwrite)
    with ExitStack() as stack:
        how: dict[str, Any] = {
            "family": family,
            "hyper_parameters": stated(hyper_parameters),
            "quiet": progress is None,
        }
        ours = _opened(stack, base, "base", weights_base, state_dict_key_base, **how)
        theirs = _opened(stack, tuned, "tuned", weights_tuned, state_dict_key_tuned, **how)
        done = extract(ours, theirs, BY_NAME[to], choice, device=place, progress=progress)
        written = write_adapter(done.adapter, target, overwrite=overwrite)
        done.path, done.files, done.notes = written.path, written.files, [*done.notes, *written.notes]
        if measuring:
            with open_adapter(written.path, family=done.adapter.family) as adapter:
                done.effect = measuring(ours, theirs, adapter)
        return done


def _opened(
    stack: ExitStack,
    path: AnyPath,
    side: str,
    weights: str | None,
    state_dict_key: str | None,
    *,
    family: str | None,
    hyper_parameters: Mapping[str, Any],
    quiet: bool,
) -> Analysis:
    place = stack.enter_context(fetched(path, hub=True, quiet=quiet))
    with reading(place), parameters_of(side):
        checkpoint = stack.enter_context(open_model(place, weights, state_dict_key, family))
        return analyse_with_record(checkpoint, hyper_parameters, family)
