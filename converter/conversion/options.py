"""What a user may choose of a conversion, beside the hyper-parameters of the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from ..errors import UsageError, printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AnyOptions = TypeVar("AnyOptions", bound="DataclassInstance")


@dataclass(frozen=True)
class ConversionOptions:
    """The options of `convert`.

    Attributes:
        to: 'diffusers' (a folder), 'original' (a `.pth`, `.pt` or `.safetensors`) or 'comfyui' (a `.safetensors` with
            the original's keys, prefixed as ComfyUI reads them).
        dtype: round the model's weights to 'float32', 'float16' or 'bfloat16', to nearest, ties to even.
        max_shard_size: bytes, or a size such as '5GB'; larger models are written as several files and an index.
        variant: put this into the names of the weights, as in `diffusion_pytorch_model.fp16.safetensors`.
        null_caption: a file that holds the null caption, where the source does not: a checkpoint, a `.pth` or
            `.safetensors` with just one tensor of floats, or an `.npz`.
        weights: 'raw' or 'ema' where the file holds both (default: raw).
        state_dict_key: where in the file the weights lie, such as 'app.model', where it holds several state dicts.
        family: require a model family, by name or file (NAME.py), instead of recognising it.
        stock: write for diffusers' own classes, where ones of this package would travel with the weights.
        overwrite: replace a file, or a folder that holds what an earlier conversion wrote, by its record, and nothing
            else.
        dry_run: plan, and write nothing.
        allow_nonfinite: let NaN and infinity through, bit for bit where nothing is cast.
        allow_overflow: let what is beyond the range of `dtype` become infinity.
        allow_zeros: let tensors through that are zero throughout and that no training leaves so.
        require_evidence: refuse (`UsageError`) a result that rests on an assumption, and name what to state.
    """

    to: str = "diffusers"
    dtype: str | None = None
    max_shard_size: str | int | None = None
    variant: str | None = None
    null_caption: str | os.PathLike[str] | None = None
    weights: str | None = None
    state_dict_key: str | None = None
    family: str | None = None
    stock: bool = False
    overwrite: bool = False
    dry_run: bool = False
    allow_nonfinite: bool = False
    allow_overflow: bool = False
    allow_zeros: bool = False
    require_evidence: bool = False


def with_shortcuts(options: AnyOptions, shortcuts: Mapping[str, Any]) -> AnyOptions:
    """The options with fields that were given as keyword arguments of the call.

    >>> with_shortcuts(ConversionOptions(), {"dtype": "float16"}).dtype
    'float16'

    Raises: `UsageError` for a name that is no field, and for a value that is not of its field's type.
    """
    kinds_of = _kinds_of_fields(type(options))
    if unknown := sorted(shortcuts.keys() - kinds_of.keys()):
        raise UsageError(
            f"{', '.join(map(printable, unknown))}: not an option; hyper-parameters of the model go into "
            f"hyper_parameters={{{unknown[0]!r}: ...}}"
        )
    result = replace(options, **shortcuts)
    for name, kinds in kinds_of.items():
        value = getattr(result, name)
        # 'false' is true, and True is 1.
        if not any(isinstance(value, kind) for kind in kinds) or (isinstance(value, bool) and bool not in kinds):
            words = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
            raise UsageError(f"`{name}` {printable(repr(value), 60)}: must be {words}, not {type(value).__name__}")
    return result


@cache  # the annotations are text, which Python compiles at every call
def _kinds_of_fields(options: type[DataclassInstance]) -> dict[str, tuple[type, ...]]:
    """Field -> the types that its value may be of."""
    hints = get_type_hints(options).items()
    return {name: tuple(get_origin(kind) or kind for kind in get_args(hint) or (hint,)) for name, hint in hints}


def stated(hyper_parameters: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What the user states of a model. Raises: `UsageError` where it is no mapping."""
    if not isinstance(hyper_parameters, Mapping | None):
        raise UsageError(f"`hyper_parameters`: must map names to values, not be a {type(hyper_parameters).__name__}")
    return hyper_parameters or {}
