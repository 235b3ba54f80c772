"""A source that may be a model or an adapter (LoRA): converted, or looked at, as what it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..conversion.convert import Conversion, convert
from ..conversion.inspection import inspect
from ..conversion.options import ConversionOptions
from ..conversion.output import LAYOUTS
from ..errors import AdapterError, UsageError, printable
from ..families import ADAPTER

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class AdapterOptions:
    """What may be chosen of adapters, as of `converter.convert_lora`."""

    base: str | None = None
    lora_alpha: float | None = None
    allow_partial: bool = False


def convert_any(
    path: AnyPath,
    dump_path: AnyPath,
    options: ConversionOptions,
    *,
    adapters: AdapterOptions,
    models_only: str = "",
    hyper_parameters: Mapping[str, Any] | None = None,
    **more: Any,
) -> Conversion:
    """Convert a model, or an adapter to the spelling that `to` names.

    Args:
        adapters: of adapters. models_only: the step that is to follow, which only a model can take.
        more: as of `convert`.

    Raises: as `convert` and `convert_lora` do; `UsageError` for options that do not go with what it is.
    """
    if options.to in LAYOUTS and not any(vars(adapters).values()):
        with suppress(AdapterError):
            return convert(path, dump_path, options, hyper_parameters=hyper_parameters, **more)
    from ..lora.convert import convert_lora

    own = {name: getattr(options, name) for name in ("to", "family", "overwrite", "dry_run")}
    foreign = [name for name, value in vars(ConversionOptions(**own)).items() if value != getattr(options, name)]
    foreign += [name for name in (models_only, "components" if more.get("components") else "") if name]
    if foreign:
        raise UsageError(f"`{foreign[0]}` is for models, and {printable(path)} is an adapter (LoRA)")
    return convert_lora(
        path,
        dump_path,
        options.to,
        family=options.family,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
        hyper_parameters=hyper_parameters,
        progress=more.get("progress"),
        **vars(adapters),
    )


def inspect_any(path: AnyPath, *, lora_alpha: float | None = None, **choices: Any) -> dict[str, Any]:
    """What a model or an adapter is, as `inspect` and `inspect_lora` say it."""
    from ..lora.inspection import inspect_lora

    own: dict[str, Any] = {name: choices[name] for name in ("family", "deep") if choices.get(name)}
    with suppress(AdapterError):
        report = inspect(path, **choices)
        if f"this is {ADAPTER}" not in report["problems"]:
            return report
    return inspect_lora(path, lora_alpha=lora_alpha, **own)
