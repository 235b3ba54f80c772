"""`extract_lora`: the difference of two models as an adapter, the way round from merging."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..checkpoint.file import reading
from ..checkpoint.write.transfer import Progress
from ..comparison.sides import parameters_of
from ..conversion.analysis import Analysis
from ..conversion.model_files import open_model
from ..conversion.options import stated
from ..conversion.sidecar import analyse_with_record
from ..nets.device import checked_device
from ..remote import fetched
from .adapter import Adapter
from .convert import LoraTarget, write_adapter
from .differences import Choice, extract
from .extraction import Extraction
from .reading import open_adapter
from .spelling import BY_NAME

if TYPE_CHECKING:
    import torch

AnyPath = str | os.PathLike[str]


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
        >>> from converter import merge_lora
        >>> base, tuned = "fixtures/golden/sigma-ms.pth", tmp / "tuned.pth"
        >>> done = merge_lora(base, ["fixtures/lora/d-ot-kohya.safetensors"], tuned, to="original",
        ...                   hyper_parameters={"num_attention_heads": 4})
        >>> found = extract_lora(base, tuned, tmp / "lora.safetensors", rank=8, to="kohya")
        >>> found.words  # the merged LoRA is of rank 4
        'LoRA of rank 4 for 28 modules: 100.000% of the energy of the difference, relative error 8.7e-08'
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
        done.path, done.files, done.notes = target.path, written.files, [*done.notes, *written.notes]
        if measuring:
            with open_adapter(target.path, family=done.adapter.family) as adapter:
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
