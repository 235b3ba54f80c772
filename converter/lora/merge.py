"""`merge_lora`: one or several adapters baked into a checkpoint, in the flow of its conversion."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from ..checkpoint import LazyTensor
from ..checkpoint.write.transfer import Progress
from ..conversion.additions import Adding
from ..conversion.alterations import Alteration
from ..conversion.analysis import Analysis
from ..conversion.buffers import joined
from ..conversion.convert import Conversion, convert
from ..conversion.options import ConversionOptions, with_shortcuts
from ..conversion.output import CASTS
from ..conversion.to_diffusers import dtype_of, named
from ..errors import UsageError, plural, printable
from ..families import Family
from ..mapping import Move
from .adapter import Adapter
from .changes import is_number
from .inspection import in_words, scales
from .names import DIFFUSERS, ORIGINAL
from .placed import Placed, merged_tensors, place
from .reading import open_adapter

AnyPath = str | os.PathLike[str]
Adapters = Mapping[AnyPath, float] | Sequence[AnyPath | tuple[AnyPath, float]]


def merge_lora(
    orig_ckpt_path: AnyPath,
    adapters: Adapters,
    dump_path: AnyPath,
    options: ConversionOptions | None = None,
    *,
    lora_alpha: float | None = None,
    allow_partial: bool = False,
    hyper_parameters: Mapping[str, Any] | None = None,
    components: Adding | None = None,
    progress: Callable[[int], Progress] | None = None,
    **shortcuts: Any,
) -> Conversion:
    """Convert a checkpoint with adapters baked in: W + the sum of what each adds to W.

    Products are computed in float32 at least and the sum is rounded once, a tensor at a time.

    Args:
        orig_ckpt_path: the base, of any accepted kind and layout.
        adapters: their files or folders, in any spelling, each with its strength (default 1), which multiplies its
            scale as PEFT's `set_adapters` does.
        dump_path, options, hyper_parameters, components, progress, shortcuts: as of `convert`.
        lora_alpha: of adapters that do not say it.
        allow_partial: leave out what does not fit, and note it; otherwise that is an error, and nothing is written.

    Returns: a `Conversion`, whose record has the adapters.

    Raises: as `convert` does.

    Example:
        >>> done = merge_lora(
        ...     "fixtures/golden/sigma-ms.pth", {"fixtures/lora/d-ot-kohya.safetensors": 0.8}, tmp / "merged",
        ...     hyper_parameters={"num_attention_heads": 4},
        ... )
        >>> [(one["name"], one["strength"]) for one in done.record["adapters"]]
        [('d-ot-kohya.safetensors', 0.8)]
    """
    options = with_shortcuts(options or ConversionOptions(), shortcuts)
    chosen = strengths(adapters)
    with ExitStack() as stack:

        def altering(analysis: Analysis, options: ConversionOptions) -> Alteration:
            family, notes = analysis.require(), list[str]()
            opened = open_adapters(stack, chosen, family, lora_alpha=lora_alpha, allow_partial=allow_partial)
            digests = [adapter.check_finite() for adapter, _ in opened]
            placed = place_on(analysis, opened, allow_partial=allow_partial)
            wanted = CASTS.get(options.dtype or "")
            names = {key: row.move.parts for row in placed for key in (row.move.origin, *row.move.parts)}
            tensors = merged_tensors(placed, lambda held: dtype_of(family, wanted, held, names[held.key]))
            for adapter, strength in opened:
                notes.append(f"with {adapter.name} at {strength:g}: {in_words(adapter)}")
                notes += [f"{adapter.name}: {note}" for note in adapter.notes]
                notes += [f"{adapter.name}: left out: {words}" for words in adapter.skipped]
            notes.append(f"{plural(len(tensors), 'tensor')} changed by {plural(len(opened), 'adapter')}")
            record = [about(*each, digest) for each, digest in zip(opened, digests, strict=True)]
            return Alteration(tensors, record, notes)

        known: dict[str, Any] = {"hyper_parameters": hyper_parameters, "components": components, "progress": progress}
        return convert(orig_ckpt_path, dump_path, options, altering=altering, **known)


def strengths(adapters: Adapters) -> list[tuple[AnyPath, float]]:
    """Adapters with their strengths. Raises: `UsageError` for none, and for a strength that is no number."""
    if isinstance(adapters, str | os.PathLike):
        adapters = [adapters]
    pairs: Iterable[Any] = adapters.items() if isinstance(adapters, Mapping) else adapters
    chosen = [one if isinstance(one, tuple) else (one, 1.0) for one in pairs]
    if not chosen:
        raise UsageError("`lora`: at least one adapter is needed")
    for path, strength in chosen:
        if not is_number(strength):
            rule = f"the strength {printable(repr(strength)[:60], 40)} is no number, or too large"
            raise UsageError(f"`lora` {printable(path)}: {rule}")
    return chosen


def open_adapters(
    stack: ExitStack,
    chosen: Sequence[tuple[AnyPath, float]],
    family: Family,
    *,
    lora_alpha: float | None = None,
    allow_partial: bool = False,
) -> list[tuple[Adapter, float]]:
    """Adapters for models of a family, with their strengths, open as long as `stack` is.

    Raises: `InputError` for one of another model.
    """
    opened = []
    for path, strength in chosen:
        known: dict[str, Any] = {"family": family, "allow_partial": allow_partial}
        alpha = lora_alpha
        if lora_alpha is not None and len(chosen) > 1:  # it is for those that do not say theirs
            with open_adapter(path, describe=True, **known) as adapter:
                alpha = None if adapter.states_alpha else lora_alpha
        opened.append((stack.enter_context(open_adapter(path, lora_alpha=alpha, **known)), strength))
    return opened


def place_on(
    analysis: Analysis, adapters: Sequence[tuple[Adapter, float]], *, allow_partial: bool = False
) -> list[Placed]:
    """What adapters do to a checkpoint that has been analysed. Raises: as `place` does."""
    tensors, layout = named(analysis.checkpoint), DIFFUSERS if analysis.diffusers else ORIGINAL
    return place(adapters, moves_of(analysis), tensors, layout, allow_partial=allow_partial)


def moves_of(analysis: Analysis) -> Sequence[Move]:
    """The tensors of a checkpoint in both layouts, from the original's to diffusers', whichever it has."""
    if not analysis.diffusers:
        return analysis.plan.moves
    moves = analysis.require().keys.plan_back(named(analysis.checkpoint)).moves
    return [Move(move.targets, move.sources, move.row) for move in moves]


def tensors_in(
    analysis: Analysis, layout: str, changed: Mapping[str, LazyTensor] | None = None
) -> dict[str, LazyTensor]:
    """The tensors of a checkpoint under the keys of a layout, unread; what is joined or shared out, too.

    Args:
        changed: take the place of some, by their keys in the checkpoint's own layout.
    """
    there = named(analysis.checkpoint) | dict(changed or {})
    if (layout == DIFFUSERS) == analysis.diffusers:
        return there
    tensors: dict[str, LazyTensor] = {}
    for move in moves_of(analysis):
        if layout == ORIGINAL:
            tensors[move.origin] = move.operation.inverse([there[key] for key in move.parts], joined)
        else:
            parts = move.operation.forward(there[move.origin], len(move.parts), joined)
            tensors.update(zip(move.parts, parts, strict=True))
    return tensors


def about(adapter: Adapter, strength: float, digest: str) -> dict[str, Any]:
    """What a record says of an adapter that was merged, JSON-ready.

    Args:
        digest: that of all its tensors' bytes.
    """
    return {
        "name": adapter.name,
        "strength": strength,
        "spelling": adapter.spelling.name,
        "digest": digest,
        "kinds": {kind: len(modules) for kind, modules in adapter.kinds.items()},
        "scales": scales(adapter),
        "left_out": adapter.skipped,
    }
