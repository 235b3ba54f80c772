"""Writing an adapter in a spelling: its keys, its alphas where they have a place, PEFT's config where that has one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from ..checkpoint import DType, LazyTensor
from ..checkpoint.cast import round_to, widen
from ..checkpoint.dtypes import F32
from ..checkpoint.weight_names import ADAPTERS
from ..conversion.buffers import computed_on_demand
from ..errors import InputError
from ..families import Family
from ..mapping.dims import Pattern
from ..mapping.fold import listed
from .adapter import Adapter
from .changes import Change
from .files import HEADER
from .layouts import Base, in_layout
from .lycoris import Hadamard, Kronecker
from .names import ORIGINAL
from .peft_config import config_for
from .products import Factor, Full, Held, LowRank, Replaced, Shape
from .spelling import Spelling, ending

PEFT_WEIGHTS, _, DIFFUSERS_WEIGHTS, _ = ADAPTERS
# What of a header says what the tensors were in the file that was read.
_OF_THE_FILE = (HEADER, "lycoris_config", "format", "modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")


@dataclass
class Spelled:
    """An adapter as it is to be written: its tensors, what goes into the header, and PEFT's config, if any."""

    tensors: dict[str, LazyTensor]
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


# What a spelling may lack, in words.
_LACKING = {
    "whole": "a module that was trained whole, nor for its difference from a base without `base`",
    "difference": "a full difference",
    "input": "DoRA per input",
    "DoRA": "DoRA",
}


def spelled(adapter: Adapter, spelling: Spelling, base: Base = None) -> Spelled:
    """An adapter in a spelling.

    Args:
        base: gives the weights that it is relative to, by the keys of the adapter's own layout.

    Raises: `InputError` for what the spelling has no exact words for.
    """
    names = spelling.names(adapter.family)
    if base is not None and "whole" not in spelling.holds:
        adapter = replace(adapter, changes={key: _as_difference(c, base, key) for key, c in adapter.changes.items()})
    changes = in_layout(adapter, names.layout, base)
    result, problems = Spelled({}, _metadata(adapter)), dict[str, list[str]]()
    own, scales = _common_dtype(adapter), dict[str, tuple[float, int]]()
    dora = any(change.magnitude for change in changes.values())
    for key, change in changes.items():
        module, _, end = key.rpartition(".")
        lacking = sorted(_needed(change, spelling) - spelling.holds)
        if lacking or (dora and spelling.alpha != "tensor" and _plain(change)):
            what = (
                f"no place for {_LACKING[lacking[0]]}" if lacking else "DoRA for all modules or for none, and not for"
            )
            problems.setdefault(f"{what}:", []).append(key)
            continue
        held, pattern = _in_words_of(spelling, change), _pattern(adapter.family, names.layout, key)
        axes = len(pattern)
        if isinstance(held.product, LowRank) and end == "weight":
            kernel = _kernel(held.product, pattern)
            if axes > 2 and not kernel and spelling.alpha != "tensor":
                what = "no form for a convolution whose kernel its factors do not show"
                problems.setdefault(f"{what}:", []).append(key)
                continue
            held = replace(held, product=_fitted(held.product, kernel))
        if held.product.word != change.product.word:
            result.notes.append(f"{change.product.word} is written as the LoRA of rank {held.product.rank} that it is")
        if held.product.rank is not None:
            scales[module] = (held.scale, held.product.rank)
        whole = isinstance(getattr(changes.get(f"{module}.weight"), "product", None), Replaced)
        for suffix, factor in _factors(spelling, held, end, axes, whole=whole):
            name = spelling.prefix + names.spelled(module) + suffix
            result.tensors[name] = _tensor(name, factor, own)
    if problems:
        words = "; ".join(listed(problems))
        rule = f"the spelling {spelling.name} has {words}, so this cannot be said exactly in it (merge it instead)"
        raise InputError.at(adapter.path, "", rule)
    if base is not None and any(c.magnitude for c in adapter.changes.values()) and names.layout != adapter.layout:
        result.notes.append(
            "DoRA in the other layout is exact at the strength 1: at others its norms would be other ones"
        )
    result.notes = list(dict.fromkeys(result.notes))
    if spelling.alpha != "tensor":
        config = config_for(changes, scales)
        if spelling.alpha == "config":
            result.config = config
        else:
            fields = {f"{spelling.prefix}{name}": value for name, value in config.items()}
            result.metadata[HEADER] = json.dumps(fields, indent=2, sort_keys=True)
    return result


def _as_difference(change: Change, base: Any, key: str) -> Change:
    """What is replaced, as its difference from the base."""
    if not isinstance(change.product, Replaced):
        return change
    weight = base(key).astype(np.float64)
    return Change(Full(Held(change.difference(weight).astype(np.float32))))


def _needed(change: Change, spelling: Spelling) -> set[str]:
    """What a spelling has to have words for."""
    if isinstance(change.product, Replaced):
        return {"whole"}
    if isinstance(change.product, Full):  # of a scaled bias, any spelling of differences has it
        return {"bias"} if change.alpha and "bias" in spelling.holds else {"difference"}
    return {"input" if change.axis else "DoRA"} if change.magnitude else set()


def _plain(change: Change) -> bool:
    return change.magnitude is None and not isinstance(change.product, Full)


def _in_words_of(spelling: Spelling, change: Change) -> Change:
    """The same change, as a product that the spelling has, and a difference of the scale 1 where it has no bias."""
    product = change.product
    if isinstance(product, Full):
        if change.scale == 1 or "bias" in spelling.holds:
            return change
        return replace(change, product=product.scaled(change.scale), scale=1.0)
    if spelling.alpha == "tensor" and (change.scale == 0 or (product.rank is None and change.scale != 1)):
        # There an alpha of 0 means none, and two whole factors have none: it goes into a factor.
        change = replace(change, product=(product := product.scaled(change.scale)), scale=1.0)
    tucker = isinstance(product, LowRank) and product.mid is not None
    if product.word in spelling.holds and not (tucker and "core" not in spelling.holds):
        return change
    return replace(change, product=product.low_rank())


def _pattern(family: Family, layout: str, key: str) -> Pattern:
    """The shape of a tensor of the model, by its table."""
    table = family.keys if layout == ORIGINAL else family.keys.targets
    found = table.find(key)
    assert found is not None
    return table.rows[found[0]].shape_pattern(found[2])


def _kernel(product: LowRank, pattern: Pattern) -> Shape:
    """(kh, kw) of a convolution's: as the factors have it, or as the table says, such as 1 x 1, where they have it in
    no form of their own; () where nothing shows it, and of a linear layer."""
    sizes = [dim.value({}) for dim in pattern[2:]]
    stated = tuple(size for size in sizes if size)
    fits = len(stated) == len(sizes) and product.size[1] % prod(stated) == 0
    return product.kernel or (stated if fits else ()) if sizes else ()


def _fitted(product: LowRank, kernel: Shape) -> LowRank:
    """The factors in the shapes that PEFT and kohya have: of a linear layer (r, in) and (out, r), of a convolution
    (r, in, kh, kw) and (out, r, 1, 1). Some tools write those of a linear layer as of a pointwise convolution."""
    down, up = product.down, product.up
    if not product.mid and len(down.shape) != 2 + len(kernel):
        down = Held(down.numpy().reshape(down.shape[0], -1, *kernel))
    if len(up.shape) != 2 + len(kernel):
        up = Held(up.numpy().reshape(*up.shape[:2], *(1,) * len(kernel)))
    return replace(product, down=down, up=up)


def _factors(spelling: Spelling, change: Change, end: str, axes: int, *, whole: bool) -> Iterator[tuple[str, Factor]]:
    """(what follows the module's name, the tensor).

    Args:
        axes: of the tensor. whole: the module was trained whole.
    """
    product, by_peft = change.product, spelling.alpha != "tensor"
    if isinstance(product, Replaced):  # of a layer with LoRA, PEFT has the bias in the layer that it wraps
        yield f".{end}" if whole else f".base_layer.{end}", product.diff
        return
    if isinstance(product, Full):
        kind = "up_bias" if by_peft else "diff_b" if end == "bias" else "diff"
        yield ending(spelling, kind), product.diff
        return
    prefix = {Hadamard: "hada_", Kronecker: "lokr_"}.get(type(product), "")
    for name, factor in product.factors.items():
        yield ending(spelling, prefix + name), factor
    if change.magnitude is not None:
        yield ending(spelling, "magnitude"), _magnitudes(change, by_peft, axes)
    if not by_peft and product.rank is not None:
        yield ending(spelling, "alpha"), Held(np.array(change.scale * product.rank, np.float32))


def _magnitudes(change: Change, by_peft: bool, axes: int) -> Factor:
    """DoRA's magnitudes as the tools have them: PEFT (out,), or (1, out, 1, 1); others (out, 1) or (1, in)."""
    assert change.magnitude is not None
    numbers, ones = np.asarray(change.magnitude.numpy()).reshape(-1), (1,) * (axes - 2)
    if by_peft:
        return Held(numbers.reshape(1, -1, *ones) if ones else numbers)
    return Held(numbers.reshape(*((-1, 1) if change.axis == 0 else (1, -1)), *ones))


def _common_dtype(adapter: Adapter) -> DType:
    """The dtype of most of its tensors."""
    counts = Counter(tensor.dtype for tensor in adapter.tensors.values())
    return counts.most_common(1)[0][0] if counts else F32


def _tensor(key: str, factor: Factor, own: DType) -> LazyTensor:
    """A factor as a tensor to be written: one of the file as it is; another in the adapter's dtype where that holds it
    exactly, else in float32."""
    if isinstance(factor, LazyTensor):
        return factor
    array = np.asarray(factor.numpy())
    data, dtype = round_to(array, own), own
    if own != F32 and not np.array_equal(widen(data, own), array.reshape(-1)):
        data, dtype = round_to(array, F32), F32
    return computed_on_demand(key, dtype, tuple(array.shape), lambda: iter([data]))


def _metadata(adapter: Adapter) -> dict[str, str]:
    return {"format": "pt"} | {name: text for name, text in adapter.metadata.items() if name not in _OF_THE_FILE}
