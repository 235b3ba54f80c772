"""Where a conversion goes, and in which files: a folder for diffusers, or one file in the original layout."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoint import DType
from ..checkpoint.dtypes import BF16, BY_NAME, F16, F32
from ..checkpoint.weight_names import INDEX, WEIGHTS, is_shard, with_variant
from ..checkpoint.write.layout import TensorEntry, lay_out_safetensors, lay_out_torch
from ..checkpoint.write.publish import FilePublication, Publication
from ..checkpoint.write.target import check_target
from ..errors import UsageError, printable
from ..families import Family
from .options import ConversionOptions
from .record import files_we_wrote
from .write import TensorFile, TensorWrite

DIFFUSERS, ORIGINAL, COMFYUI = LAYOUTS = ("diffusers", "original", "comfyui")
CASTS = {name: BY_NAME[name] for name in ("float32", "float16", "bfloat16")}
SUFFIXES = {ORIGINAL: (".pth", ".pt", ".safetensors"), COMFYUI: (".safetensors",)}
_PREFIX = {COMFYUI: "model.diffusion_model."}
_NAMED = {"fp16": F16, "bf16": BF16, "fp32": F32}  # variants whose name says what they hold
SWAPPED = " (were the source and the target swapped?)"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Destination:
    """Where and how to write: the path, layout, dtype (None: unchanged), shard size (0: one
    file) and variant name; `suffix` is that of the path as given, even if it is a symbolic link. `there`: of a dry run,
    what is at the path already, in words."""

    path: Path
    to: str = DIFFUSERS
    dtype: DType | None = None
    shard: int = 0
    variant: str = ""
    suffix: str = ""
    there: str = ""

    @classmethod
    def of(cls, path: str | os.PathLike[str], options: ConversionOptions) -> Destination:
        """A destination as the user describes it. Raises: `UsageError` for options that do not go together."""
        to, dtype, variant = options.to, options.dtype, options.variant
        if to not in LAYOUTS:
            raise UsageError(f"`to` {printable(to)}: one of {', '.join(LAYOUTS)}")
        if dtype is not None and dtype not in CASTS:
            raise UsageError(f"`dtype` {printable(dtype)}: one of {', '.join(CASTS)}")
        if "\0" in os.fspath(path):
            raise UsageError(f"{printable(path)}: not a path: it contains a null character")
        target, suffixes = Path(path), SUFFIXES.get(to)
        suffix = target.suffix.lower()
        if suffixes and suffix not in suffixes:
            rule = f"`to` {to} writes a file that ends in {' or '.join(suffixes)}"
            raise UsageError(f"{printable(target)}: {rule}{SWAPPED * target.is_dir()}")
        if not suffixes and suffix in SUFFIXES[ORIGINAL]:
            rule = f"`to` diffusers writes a folder; `to` original or comfyui a file{SWAPPED * target.is_file()}"
            raise UsageError(f"{printable(target)}: {rule}")
        if suffixes and (options.max_shard_size is not None or variant):
            flag = "max_shard_size" if options.max_shard_size is not None else "variant"
            raise UsageError(f"`{flag}` applies to the diffusers layout only")
        if variant and (not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", variant) or is_shard(variant)):
            raise UsageError(
                f"`variant` {printable(variant)}: use letters, digits, '_' and '-', and not a shard's number"
            )
        shard = 0 if options.max_shard_size is None else bytes_of(options.max_shard_size)
        cast = CASTS[dtype] if dtype else None
        return cls(target, to, cast, shard, variant=variant or "", suffix=suffix)

    @property
    def folder(self) -> bool:
        return self.to == DIFFUSERS

    def check(self, source: Path, *, overwrite: bool, dry_run: bool = False) -> Destination:
        """The same with the real path to write to, or a `UsageError`; called before a byte of `source` is read.

        In a dry run, what is there and can be replaced is no error, but told.
        """
        allowed = files_we_wrote if self.folder else None
        path = check_target(self.path, source, overwrite=overwrite or dry_run, allowed=allowed)
        there = ""
        if dry_run and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
            rule = "it would be replaced" if overwrite else "a conversion needs --overwrite, which replaces it"
            there = f"{printable(self.path)} exists: {rule}"
        return replace(self, path=path, there=there)

    def publication(self, size: int, *, overwrite: bool) -> Publication:
        """What makes it appear whole or not at all."""
        if self.folder:
            return Publication(self.path, needed_bytes=size, overwrite=overwrite, allowed=files_we_wrote)
        return FilePublication(self.path, needed_bytes=size, overwrite=overwrite)

    def with_prefix(self, parts: Iterable[TensorWrite]) -> list[TensorWrite]:
        """The same under keys with the prefix that all keys of this layout have."""
        prefix = _PREFIX.get(self.to, "")
        return [replace(part, keys=tuple(prefix + key for key in part.keys)) for part in parts]

    def files(self, parts: Sequence[TensorWrite], family: Family) -> tuple[list[TensorFile], dict[str, str]]:
        """(the files that the model's tensors go to, text files by name: the index of shards, if there is one)."""
        entries = [entry for part in parts for entry in part.entries]
        if not self.folder:
            safe = self.suffix == ".safetensors"
            layout = lay_out_safetensors(entries, {"format": "pt"}) if safe else lay_out_torch(entries)
            return [TensorFile(self.path.name, layout)], {}
        self._check_variant(entries)
        files, texts = list[TensorFile](), dict[str, str]()
        for folder, by_key in family.by_folder({entry.key: entry for entry in entries}).items():
            shards = self._shared_out([replace(entry, key=key) for key, entry in by_key.items()])
            for name, shard in shards.items():
                layout = lay_out_safetensors(shard, {"format": "pt"})
                files.append(TensorFile(f"{folder}/{name}", layout, family.parts[folder]))
            if len(shards) > 1:
                where = {entry.key: name for name, shard in shards.items() for entry in shard}
                index = {"metadata": {"total_size": sum(e.nbytes for e in by_key.values())}, "weight_map": where}
                text = json.dumps(index, indent=2, sort_keys=True) + "\n"
                texts[f"{folder}/{with_variant(INDEX, self.variant)}"] = text
        return files, texts

    def _shared_out(self, entries: list[TensorEntry]) -> dict[str, list[TensorEntry]]:
        """The tensors of one folder, by file."""
        name = with_variant(WEIGHTS, self.variant)
        return _shards(entries, self.shard, name) if self.shard else {name: entries}

    def _check_variant(self, entries: list[TensorEntry]) -> None:
        named = _NAMED.get(self.variant)
        other = next((entry.dtype.name for entry in entries if named not in (None, entry.dtype)), "")
        if named and other:
            raise UsageError(
                f"`variant` {self.variant}: the weights would be {other}; `dtype` {named.name} rounds them to that"
            )


def _shards(entries: list[TensorEntry], limit: int, name: str) -> dict[str, list[TensorEntry]]:
    """File name -> the tensors in it, as the hub's own tools share them out."""
    from huggingface_hub import split_state_dict_into_shards_factory

    by_key = {entry.key: entry for entry in entries}
    split = split_state_dict_into_shards_factory(
        by_key,
        get_storage_size=lambda entry: entry.nbytes,
        filename_pattern=name.replace(".safetensors", "{suffix}.safetensors"),
        max_shard_size=limit,
    )
    return {file: [by_key[key] for key in keys] for file, keys in split.filename_to_tensors.items()}


def bytes_of(size: str | int) -> int:
    """A size in bytes, or in decimal units as huggingface_hub takes them.

    >>> bytes_of("5GB")
    5000000000
    """
    match = re.fullmatch(r"(\d{1,19})(\.\d+)?\s*([KMGT]B)?", str(size).strip().upper(), re.ASCII)
    whole, fraction, unit = match.groups() if match else ("0", "", "")
    count = float(whole + fraction) if fraction else int(whole)
    nbytes = int(count * _UNITS.get(unit or "", 1))
    if nbytes < 1:
        raise UsageError(f"`max_shard_size` {printable(size)}: give a size such as 5GB, 500MB or 100000 (bytes)")
    return nbytes
