"""`open_checkpoint`: any accepted file or folder as a read-only mapping of lazy tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..errors import UsageError, printable
from ..parts import joined
from . import state_dicts
from .file import InputFile, reading
from .folder import (
    CONFIG,
    averaged_sibling,
    cached_snapshot,
    is_averaged,
    kind_by_place,
    model_folder,
    read_config,
    unread,
    weight_files,
)
from .key_names import Tables
from .recognition import container_of
from .state_dicts import Candidate
from .tensor import LazyTensor
from .torch_file.reader import TorchFile
from .weights_kind import EMA, RAW

UNGUARDED = (
    "carries no checksums (every CRC-32 in it is 0, as torch writes with compute_crc32 = False): nothing would show a "
    "damaged byte; to add them, load and save it with torch.utils.serialization.config.save.compute_crc32 = True"
)


@dataclass(eq=False, repr=False)
class Checkpoint(Mapping[str, LazyTensor]):
    """The state dict of a checkpoint, keys without prefix, tensors unread; close it, or use it in a `with`.

    Attributes: `path`; `requested_weights` and `requested_key`, the weights and the state dict asked for, or None;
    `container`, in words; `candidates`, the state dicts in the file; `others`, what else it holds;
    `unnamed_weights`, weights that have no names; `recorded_integers`, whole numbers in it by their place, which may be
    a model's settings; `foreign_globals`, globals that are not torch's, and whether they are known to be dangerous;
    `folder`, the model folder or pipeline that it is or lies in, None for a file by itself; `config`, that of the
    weights in use; `companions`, config and index as they were read; `notes`, what the user should know of how it was
    read; `size` in bytes; of the state dict in use, `prefix`, which all its keys had,
    `left_out`, keys that are no part of the model, and `mixed`, in words, where only some of them carry a prefix, which
    they kept.
    """

    path: str
    requested_weights: str | None = None
    requested_key: str | None = None
    tables: InitVar[Tables | None] = None
    folders: InitVar[Sequence[str]] = ()
    files: list[InputFile] = field(default_factory=list, init=False)
    container: str = field(default="", init=False)
    candidates: list[Candidate] = field(default_factory=list, init=False)
    others: list[str] = field(default_factory=list, init=False)
    unnamed_weights: list[str] = field(default_factory=list, init=False)
    recorded_integers: dict[str, int] = field(default_factory=dict, init=False)
    foreign_globals: list[tuple[str, bool]] = field(default_factory=list, init=False)
    folder: Path | None = field(default=None, init=False)
    config: dict[str, Any] = field(default_factory=dict, init=False)
    companions: dict[Path, bytes] = field(default_factory=dict, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self, tables: Tables | None, folders: Sequence[str]) -> None:
        self.path = os.fspath(self.path)
        try:
            with reading(self.path):
                self._open_folders(folders, tables) if folders else self._open(tables)
        except BaseException:
            self.close()
            raise

    def _open(self, tables: Tables | None) -> None:
        if os.path.isdir(self.path):
            self._open_folder(Path(self.path), tables)
            return
        self.container, self.candidates = self._open_file(self.path, tables)
        for candidate in self.candidates:
            # Of a file that holds nothing but weights, its name tells whether they are averaged, or its folder's.
            if candidate.where in (state_dicts.FILE, state_dicts.TOP) and candidate.weights == RAW:
                candidate.weights, candidate.why = kind_by_place(Path(os.path.abspath(self.path)))

    def _open_file(self, path: str | os.PathLike[str], tables: Tables | None) -> tuple[str, list[Candidate]]:
        file = InputFile(path)
        self.files.append(file)
        if container_of(file) == "zip":
            torch_file = TorchFile(file)
            if not torch_file.archive.checksummed:
                self.notes.append(f"{printable(os.path.basename(file.path))} {UNGUARDED}")
            candidates, others, contents = state_dicts.find_candidates(torch_file, tables)
            # Shards add up: what one of them asks to import is reported even if the next is clean.
            self.others += others
            self.unnamed_weights += contents.hints
            self.recorded_integers |= contents.integers
            self.foreign_globals = sorted({*self.foreign_globals, *torch_file.foreign()})
            places = [candidate.where for candidate in candidates]
            names = places + [other.partition(":")[0] for other in others]
            wrapped = "{" + ", ".join(names[:8] + ["..."] * (len(names) > 8)) + "}"
            return f"torch archive, {'bare state dict' if places == [state_dicts.TOP] else wrapped}", candidates
        candidates, integers = state_dicts.of_safetensors(file, tables)
        self.recorded_integers |= integers
        return "safetensors", candidates

    def _open_folder(self, folder: Path, tables: Tables | None) -> None:
        place = model_folder(folder)
        averaged = averaged_sibling(place)
        if averaged and (self.requested_weights == EMA or self.requested_key == averaged.name):
            place, averaged = averaged, place
        self.folder, self.config = folder, read_config(place, self.companions)
        paths, index, passed_over = weight_files(place, self.companions)
        self.others += unread(place, paths, passed_over)
        if index is None:
            words, self.candidates = self._open_file(paths[0], tables)
            self.container = f"folder of {words}"
        else:
            opened = [(path.name, *self._open_file(path, None)) for path in paths]
            self.container = f"folder of {opened[0][1]}, {len(paths)} shards"
            shards = [(name, state_dicts.choose(parts, None)) for name, _, parts in opened]
            entries = partial(state_dicts.merged_shards, place, shards, index)
            whole = Candidate("", state_dicts.SHARDS, self.files[0], entries)
            self.candidates = state_dicts.split(whole, (), [*index.weight_map, *index.copies], tables)
        if is_averaged(place) or averaged:
            for candidate in self.candidates:
                inner = "" if candidate.where in state_dicts.WHOLE else f".{candidate.where}"
                candidate.weights, candidate.where = (EMA if is_averaged(place) else RAW), place.name + inner
        if averaged:  # opened only where it is asked for
            kind = EMA if is_averaged(averaged) else RAW
            self.candidates.append(Candidate(kind, averaged.name, self.files[0]))
        self.config = joined({self.candidates[0].keys.part: self.config})

    def _open_folders(self, folders: Sequence[str], tables: Tables | None) -> None:
        """Model folders beside each other as one model: keys, and the fields of the configs, begin with their names."""
        self.folder, parts = Path(self.path), dict[str, Checkpoint]()
        for name in folders:
            inner = parts[f"{name}."] = Checkpoint(os.fspath(cached_snapshot(self.folder) / name))
            self.files += inner.files
            self.companions |= inner.companions
            self.others += inner.others
            self.notes += inner.notes
            if averaged := averaged_sibling(self.folder / name):
                self.notes.append(f"{averaged.name}: other weights beside {name}, not read")
        self.container = ", ".join(f"{name}: {parts[f'{name}.'].container}" for name in folders)
        self.config = joined({part: checkpoint.config for part, checkpoint in parts.items()})
        tensors = joined(parts)
        whole = Candidate("", state_dicts.FOLDERS, self.files[0], lambda: [*tensors.items()])
        self.candidates = state_dicts.split(whole, (), [*tensors], tables)

    def use_config_next_to_it(self) -> None:
        """For a file in a model folder, use the config.json next to it, as if the folder were given.

        To be called once the keys are known to be diffusers': next to an original checkpoint it may be anyone's.

        Raises: `InputError` where it cannot be read.
        """
        folder = Path(os.path.abspath(self.path)).parent
        kept: dict[Path, bytes] = {}
        if self.folder is None and isinstance((config := read_config(folder, kept)).get("_class_name"), str):
            self.folder, self.companions = folder, kept
            self.config = joined({self.selected.keys.part: config})
            self.notes.append(f"{CONFIG} beside it was read too, as if the folder were given")

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @cached_property
    def selected(self) -> Candidate:
        """The state dict in use: the one that `weights` asked for."""
        return state_dicts.choose(self.candidates, self.requested_weights, self.requested_key, self.unnamed_weights)

    @property
    def plausible(self) -> list[Candidate]:
        """The state dicts that may be meant: those that a kind of model fits, if one does."""
        return state_dicts.plausible(self.candidates)

    @property
    def prefix(self) -> str:
        return self.selected.keys.prefix

    @property
    def mixed(self) -> str:
        return self.selected.keys.mixed

    @property
    def left_out(self) -> tuple[str, ...]:
        return self.selected.keys.left_out

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

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(
    path: str | os.PathLike[str],
    weights: str | None = None,
    state_dict_key: str | None = None,
    tables: Tables | None = None,
    folders: Sequence[str] = (),
) -> Checkpoint:
    """Open a checkpoint (`.pth`, `.pt`, `.bin`, `.safetensors`, or a diffusers folder) without reading its tensors.

    Args:
        path: the file or folder, recognised by its bytes, not its suffix.
        weights: 'raw' or 'ema' where a file holds both (default: raw).
        state_dict_key: where in the file the weights lie, such as 'state_dict_ema' or 'app.model', where it holds
            several.
        tables: the names that kinds of models have, by which the weights are found after any prefix.
        folders: the names of model folders in `path` that are one model together.

    Returns: a read-only mapping from keys (a prefix such as `module.` that all have is removed) to `LazyTensor`.

    Raises: `InputError` for a file that breaks a rule, `UsageError` for weights that it does not hold.

    Example:
        >>> with open_checkpoint("fixtures/golden/sigma-ms.pth") as checkpoint:
        ...     checkpoint["x_embedder.proj.weight"].shape
        (48, 4, 2, 2)
    """
    if weights not in (None, RAW, EMA):
        raise UsageError(f"`weights` {printable(weights)}: one of {RAW}, {EMA}")
    if weights and state_dict_key:
        raise UsageError("`weights`, `state_dict_key`: both select the weights; give one")
    return Checkpoint(os.fspath(path), weights, state_dict_key, tables, folders)
