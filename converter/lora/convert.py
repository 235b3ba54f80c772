"""`convert_lora`: an adapter in another spelling, exactly or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.weight_names import ADAPTER_CONFIG
from ..checkpoint.write.layout import TensorEntry, lay_out_safetensors
from ..checkpoint.write.publish import FilePublication, Publication
from ..checkpoint.write.target import check_target
from ..checkpoint.write.transfer import Progress
from ..conversion.convert import Conversion
from ..conversion.model_files import open_model
from ..conversion.options import stated
from ..conversion.sidecar import analyse_with_record
from ..conversion.write import TensorFile, TensorWrite, write_files
from ..errors import InputError, UsageError, printable
from ..families import Family
from ..remote import fetched
from .adapter import Adapter
from .inspection import report
from .layouts import Base
from .merge import place_on, tensors_in
from .products import Array
from .reading import open_adapter
from .spelling import BY_NAME, WRITTEN
from .writing import DIFFUSERS_WEIGHTS, PEFT_WEIGHTS, Spelled, spelled

AnyPath = str | os.PathLike[str]
FOLDER_WEIGHTS = {"peft": PEFT_WEIGHTS, "diffusers": DIFFUSERS_WEIGHTS}


def convert_lora(
    path: AnyPath,
    dump_path: AnyPath,
    to: str = "diffusers",
    *,
    base: AnyPath | None = None,
    lora_alpha: float | None = None,
    family: str | None = None,
    allow_partial: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    hyper_parameters: Mapping[str, Any] | None = None,
    progress: Callable[[int], Progress] | None = None,
) -> Conversion:
    """Write an adapter in another spelling, such that it does to a model's tensors what it did before.

    Args:
        path: as of `open_adapter`, like `lora_alpha`, `family` and `allow_partial`.
        dump_path: for `peft` a folder, for `diffusers` a folder or a `.safetensors`, for all others a `.safetensors`.
        to: 'diffusers', 'peft', 'comfyui', 'kohya', 'onetrainer', 'original', 'omi', 'lycoris' or 'kohya-diffusers'.
        base: the model that it is for, any file or folder: some changes can be said exactly only with its weights.
        overwrite: replace what is there.
        dry_run: write nothing.
        hyper_parameters: of the base, what its file cannot show.
        progress: as of `convert`.

    Returns: a `Conversion`, whose record is what `inspect_lora` reports, and `to` and `tensors`, those written.

    Raises: `InputError` for an adapter that is refused, or that the spelling cannot hold exactly; `UsageError` for a
        call that is.

    Example:
        >>> done = convert_lora("fixtures/lora/d-ot-kohya.safetensors", tmp / "lora", "peft")
        >>> sorted(done.files)
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    target = LoraTarget.of(dump_path, to)
    target.check(path, overwrite=overwrite or dry_run)
    with ExitStack() as stack:
        known: dict[str, Any] = {"lora_alpha": lora_alpha, "family": family, "allow_partial": allow_partial}
        adapter = stack.enter_context(open_adapter(path, quiet=progress is None, **known))
        target.check(adapter.path, overwrite=overwrite or dry_run)
        adapter.check_finite()
        weights = None if base is None else _weights_of(stack, base, adapter, stated(hyper_parameters))
        if base is None:
            _check_family(adapter, to, lora_alpha)
        return write_adapter(adapter, target, weights, overwrite=overwrite, dry_run=dry_run, progress=progress)


def _check_family(adapter: Adapter, to: str, lora_alpha: float | None) -> None:
    """Raises: `UsageError` where its names are those of several families, and are not the same in the spelling."""

    def names(family: Family) -> set[str] | None:
        """As the adapter of that family; None where it is none: not all of its tensors are in the model."""
        with ExitStack() as stack:
            try:
                known: dict[str, Any] = {"family": family.name, "lora_alpha": lora_alpha}
                read = stack.enter_context(open_adapter(adapter.path, quiet=True, **known))
            except InputError:
                return None
            try:
                return {*spelled(read, BY_NAME[to]).tensors}
            except InputError:  # it cannot be said at all
                return set()

    own = names(adapter.family) if adapter.others else None
    if differing := [family for family in adapter.others if names(family) not in (own, None)]:
        every = [adapter.family, *differing]
        titles, words = (" and of a ".join(f.title for f in every), " or ".join(f.name for f in every))
        raise UsageError(f"`family` is needed: its names are those of a {titles}, and not the same in {to}: {words}")


@dataclass(frozen=True)
class LoraTarget:
    """Where an adapter goes, and in which spelling; `folder`: whether that is a folder."""

    path: Path
    to: str
    folder: bool

    @classmethod
    def of(cls, path: AnyPath, to: str) -> LoraTarget:
        """Raises: `UsageError` for an unknown spelling, and for a path that is none of its kind."""
        if to not in WRITTEN:
            raise UsageError(f"`to` {printable(to)}: an adapter is written as one of {', '.join(WRITTEN)}")
        target = Path(path)
        single = target.suffix.lower() == ".safetensors"
        if single and to == "peft":
            raise UsageError(f"{printable(target)}: `to` peft writes a folder, with its {ADAPTER_CONFIG}")
        if not single and to not in FOLDER_WEIGHTS:
            raise UsageError(f"{printable(target)}: `to` {to} writes a file that ends in .safetensors")
        return cls(target, to, folder=not single)

    def check(self, source: AnyPath, *, overwrite: bool) -> Path:
        """The real path to write to. Raises: `UsageError` where nothing can be written there."""
        return check_target(self.path, Path(source), overwrite=overwrite, allowed=_ours if self.folder else None)


def _ours(folder: Path) -> Mapping[str, str]:
    """What may be replaced in a folder: an adapter's files."""
    return dict.fromkeys((PEFT_WEIGHTS, DIFFUSERS_WEIGHTS, ADAPTER_CONFIG), "")


def write_adapter(
    adapter: Adapter,
    target: LoraTarget,
    base: Base = None,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Callable[[int], Progress] | None = None,
) -> Conversion:
    """Write an adapter, whole or not at all; every tensor is read back and verified.

    Args:
        base: gives the weights that it is relative to, by the keys of the adapter's own layout.
    """
    result = spelled(adapter, BY_NAME[target.to], base)
    path = target.check(adapter.path, overwrite=overwrite or dry_run)
    notes = [*adapter.notes, *(f"left out: {words}" for words in adapter.skipped), *result.notes]
    record = report(adapter) | {"to": target.to, "tensors": len(result.tensors)}
    files = {} if dry_run else _write(path, target, result, overwrite, progress)
    return Conversion(target.path, record, notes, written=not dry_run, files=files)


def _write(
    path: Path, target: LoraTarget, result: Spelled, overwrite: bool, progress: Callable[[int], Progress] | None
) -> dict[str, int]:
    parts = [TensorWrite((tensor,), (key,), tensor.dtype) for key, tensor in result.tensors.items()]
    entries = [TensorEntry(key, tensor.dtype, tensor.shape) for key, tensor in result.tensors.items()]
    name = FOLDER_WEIGHTS[target.to] if target.folder else path.name
    layout = lay_out_safetensors(entries, result.metadata)
    text = "" if result.config is None else json.dumps(result.config, indent=2, sort_keys=True) + "\n"
    step = progress(sum(part.nbytes for part in parts)) if progress else lambda count: None
    known: dict[str, Any] = {"needed_bytes": layout.size + len(text) + (1 << 16), "overwrite": overwrite}
    with Publication(path, allowed=_ours, **known) if target.folder else FilePublication(path, **known) as out:
        write_files(out, [TensorFile(name, layout)], parts, step=step, digests={})
        if text:
            out.write_text(ADAPTER_CONFIG, text)
        out.publish()
    return {name: layout.size} | ({ADAPTER_CONFIG: len(text.encode())} if text else {})


def _weights_of(stack: ExitStack, base: AnyPath, adapter: Adapter, hyper_parameters: Mapping[str, Any]) -> Base:
    """The weights of a model by the keys of the adapter's layout.

    Raises: `InputError` where it is not the model that the adapter is for.
    """
    place = stack.enter_context(fetched(base, hub=True))
    checkpoint = stack.enter_context(open_model(place))
    analysis = analyse_with_record(checkpoint, hyper_parameters, None)
    place_on(analysis, [(adapter, 1.0)])
    tensors = tensors_in(analysis, adapter.layout)

    def weight(key: str) -> Array:
        return tensors[key].numpy()

    return weight
