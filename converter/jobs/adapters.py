"""A source that may be a model or an adapter (LoRA): converted, or looked at, as what it is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..conversion.inspection import inspect as inspect_model
from ..conversion.options import ConversionOptions
from ..conversion.output import LAYOUTS
from ..errors import AdapterError, InputError, UsageError, printable
from ..families import ADAPTER

if TYPE_CHECKING:
    from ..conversion.convert import Conversion

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class AdapterOptions:
    """What may be chosen of adapters, as of `converter.convert_lora`."""

    base: str | None = None
    lora_alpha: float | None = None
    allow_partial: bool = False


@dataclass(frozen=True)
class Merging:
    """Adapters to be merged into what is converted, as `converter.merge_lora` takes them."""

    adapters: Sequence[tuple[str, float]]
    lora_alpha: float | None = None
    allow_partial: bool = False

    def convert(self, path: AnyPath, dump_path: AnyPath, options: ConversionOptions, **more: Any) -> Conversion:
        """Convert a model with the adapters in it; `more` as of `convert`."""
        from ..lora.merge import merge_lora

        own: dict[str, Any] = {"lora_alpha": self.lora_alpha, "allow_partial": self.allow_partial}
        return merge_lora(path, self.adapters, dump_path, options, **own, **more)


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
    from ..conversion.convert import convert

    stated = [name for name, value in vars(adapters).items() if value]
    if options.to in LAYOUTS and not stated:
        try:
            return convert(path, dump_path, options, hyper_parameters=hyper_parameters, **more)
        except AdapterError:
            pass
        except UsageError:  # of a target that an adapter may have, such as a file for diffusers
            if not (os.path.exists(path) and _is_adapter(path)):  # nothing is fetched for that
                raise
    elif not _is_adapter(path):
        what = f"`{stated[0]}`" if stated else f"`to` {options.to}"
        raise UsageError(f"{what} is for adapters (LoRA), and {printable(path)} is none")
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


def inspect(
    path: AnyPath,
    *,
    weights: str | None = None,
    state_dict_key: str | None = None,
    family: str | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
    deep: bool = False,
    lora_alpha: float | None = None,
) -> dict[str, Any]:
    """What a checkpoint is, as a JSON-ready dict. Reads its index and a few elements of the positional table, which is
    read whole where these do not explain it; no other tensor, unless told to. Of an adapter (LoRA), what
    `inspect_lora` says, under `adapter`.

    Args:
        path: any accepted file or folder.
        weights: 'raw' or 'ema' where the file holds both (default: raw).
        state_dict_key: where in the file the weights lie, where it holds several state dicts.
        family: require a model family, by its name or its file (NAME.py), instead of recognising it.
        hyper_parameters: what the user states, by name.
        deep: read every byte too: checksums, NaN and infinity, zeros that no training leaves, and changes since
            a converted model's record; the results are under `deep`.
        lora_alpha: of an adapter that does not say it.

    Raises: `InputError` for a malformed or unsafe file; a file that is sound but cannot be used is described,
    with the reasons under `problems`; what a conversion would ask for first is under `needs`, '' if nothing, and
    what else could be given under `unknown`.

    Example:
        >>> inspect("fixtures/golden/alpha-ms.pth")["hyper_parameters"]["hidden_size"]["value"]
        48
        >>> inspect("fixtures/lora/d-rslora")["adapter"]["kinds"]
        {'LoRA': 19}
    """
    report: dict[str, Any] = {}
    try:
        report = inspect_model(
            path,
            weights=weights,
            state_dict_key=state_dict_key,
            family=family,
            hyper_parameters=hyper_parameters,
            deep=deep,
        )
        if f"this is {ADAPTER}" not in report["problems"]:
            return report
    except InputError:  # a folder of nothing but an adapter is none of a model
        if not _is_adapter(path):
            raise
    from ..lora.inspection import inspect_lora

    try:
        return inspect_lora(path, family=family, lora_alpha=lora_alpha, deep=deep)
    except InputError as error:  # of a model that is not known: what was found is told all the same
        if not report:
            raise
        report["notes"].append(str(error))
        return report


def _is_adapter(path: AnyPath) -> bool:
    """Whether it is an adapter, be it one with problems."""
    from ..lora.reading import open_adapter

    try:
        with open_adapter(path, describe=True):
            return True
    except AdapterError:
        return True  # it says why not
    except (InputError, UsageError):
        return False
