"""`open_checkpoint`: any accepted file or folder as a read-only mapping of lazy tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import InputError, printable
from .containers import TOP, Candidate, Items, at_hand, candidates, choose, shown
from .file import InputFile, container_of, reading
from .folder import model_folder, read_config, unread_variants, weight_files
from .safetensors_reader import read_header
from .tensor import LazyTensor
from .torchfile import TorchFile


class Checkpoint(Mapping[str, LazyTensor]):
    """The state dict of a checkpoint, keys without prefix, tensors unread; close it, or use it in a `with`.

    Attributes: `path`, `asked` (the weights asked for, or None), `container` (in words), `candidates` (the state
    dicts in the file), `others` (what else it holds), `foreign` (globals that are not torch's, and whether they are
    known to be dangerous), `config` (of a folder), `size` in bytes; of the state dict in use,
    `prefix`, which all its keys had, and `mixed`, in words, where only some of them carry one, which they kept.
    """

    def __init__(self, path: str | os.PathLike[str], weights: str | None = None) -> None:
        self.path = os.fspath(path)
        self.files: list[InputFile] = []
        self.config: dict[str, Any] = {}
        self.others: list[str] = []
        self.foreign: list[tuple[str, bool]] = []
        self.asked = weights
        try:
            with reading(self.path):
                if os.path.isdir(self.path):
                    self._open_folder(Path(self.path))
                else:
                    self.container, self.candidates = self._open_file(self.path)
        except BaseException:
            self.close()
            raise

    def _open_file(self, path: str | os.PathLike[str]) -> tuple[str, list[Candidate]]:
        file = InputFile(path)
        self.files.append(file)
        if container_of(file) == "zip":
            torch_file = TorchFile(file)
            found, others = candidates(torch_file)
            # Shards add up: what one of them asks to import is said even if the next is clean.
            self.others += others
            self.foreign = sorted({*self.foreign, *torch_file.foreign()})
            names = [c.where for c in found] + [o.partition(":")[0] for o in others]
            wrapped = "{" + ", ".join(names[:8] + ["..."] * (len(names) > 8)) + "}"
            return f"torch archive, {'bare state dict' if [c.where for c in found] == [TOP] else wrapped}", found
        tensors, _ = read_header(file)
        if not tensors:
            raise file.error("header", "holds no tensors")
        return "safetensors", [Candidate("raw", "the file", file, lambda: at_hand(tensors))]

    def _open_folder(self, folder: Path) -> None:
        place = model_folder(folder)
        self.config = read_config(place)
        paths, weight_map, passed_over = weight_files(place)
        self.others += [f"{name}: other weights in this folder, not read" for name in passed_over]
        self.others += [f"{name}: a variant of the weights, not read" for name in unread_variants(place, paths)]
        opened = [(path.name, *self._open_file(path)) for path in paths]
        self.container = f"folder of {opened[0][1]}" + (f", {len(paths)} shards" if weight_map else "")
        if weight_map is None:
            self.candidates = opened[0][2]
            return
        found = [(name, choose(parts, None)) for name, _, parts in opened]
        self.candidates = [Candidate("raw", "the shards", self.files[0], lambda: _merged(place, found, weight_map))]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @cached_property
    def selected(self) -> Candidate:
        """The state dict in use: the one that `weights` asked for."""
        return choose(self.candidates, self.asked)

    @property
    def prefix(self) -> str:
        return self.selected.prefix

    @property
    def mixed(self) -> str:
        return self.selected.mixed

    def __getitem__(self, key: str) -> LazyTensor:
        return self.selected.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.selected.tensors)

    def __len__(self) -> int:
        return len(self.selected.tensors)

    def __repr__(self) -> str:
        return f"<Checkpoint {printable(self.path)}: {self.container}>"

    def close(self) -> None:
        for file in self.files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _merged(folder: Path, shards: list[tuple[str, Candidate]], weight_map: dict[str, str]) -> Items:
    """The items of all shards, which must be exactly those of the index, each in the shard that it names."""
    items: dict[str, LazyTensor] = {}
    for name, candidate in shards:
        for key, make in candidate.items():
            if not isinstance(key, str):
                raise InputError.at(folder, name, f"a key that is not plain text: {shown(key)}")
            if key in items:
                raise InputError.at(folder, name, f"the key {printable(key)} is in two shards")
            if weight_map.get(key) != name:
                raise InputError.at(folder, name, f"holds {printable(key)}, which the index does not place there")
            items[key] = make(key)
    absent = [key for key in weight_map if key not in items]
    if absent:
        raise InputError.at(
            folder,
            "index",
            f"places {printable(absent[0])} in {printable(weight_map[absent[0]])}, which does not hold it",
        )
    return at_hand(items)


def open_checkpoint(path: str | os.PathLike[str], weights: str | None = None) -> Checkpoint:
    """Open a checkpoint (`.pth`, `.pt`, `.bin`, `.safetensors`, or a diffusers folder) without reading its tensors.

    Args:
        path: the file or folder; what it is is told by its bytes, not by its suffix.
        weights: 'raw' or 'ema' where a file holds both (default: raw).

    Returns: a read-only mapping from keys (a prefix such as `module.` that all have is removed) to `LazyTensor`.

    Raises: `InputError` for a file that breaks a rule, `UsageError` for weights that it does not hold.

    Example:
        >>> with open_checkpoint("fixtures/golden/sigma-ms.pth") as checkpoint:
        ...     checkpoint["x_embedder.proj.weight"].shape
        (48, 4, 2, 2)
    """
    if weights not in (None, "raw", "ema"):
        raise ValueError(f"weights is 'raw', 'ema' or None, not {weights!r}")
    return Checkpoint(path, weights)
