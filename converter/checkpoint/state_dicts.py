"""The state dicts of a file: each with where it lies; one of them is chosen."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError, printable, shortened
from .file import InputFile
from .folder import Index
from .key_names import ModelKeys, Tables, find_models
from .safetensors_reader import read_header
from .tensor import LazyTensor
from .torch_file.reader import TorchFile
from .torch_file.tree import Contents, describe, is_tensor, of_optimizer, pairs_of, search
from .weights_kind import EMA, RAW, kind_of_weights

# Where weights lie that no wrapper holds: in a torch archive, in a format without wrappers, in shards, in folders.
TOP, FILE, SHARDS, FOLDERS = WHOLE = "the top level", "the file", "the shards", "the folders"
KEY_LIMIT = 1024  # characters
MOST_SHOWN = 12
# A view may be shared by many keys; more than this many times the file is an expansion, not sharing.
EXPANSION_LIMIT = 4

# Keys as the file has them, of any type, each with what its tensor is made from; nothing is checked yet.
Entries = list[tuple[Any, Any]]


def as_stored(key: str, entry: LazyTensor | InputError) -> LazyTensor:
    """The tensor of an entry that is one already; an entry that cannot be read is an error once it is asked for."""
    if isinstance(entry, InputError):
        raise entry
    return entry


@dataclass
class Candidate:
    """One model's weights in a file: their kind ('raw', 'ema' or 'unknown'), where they lie, `why` they are of that
    kind, if not by the place, and their tensors, read lazily. In a file that is not opened, it has none."""

    weights: str
    where: str
    file: InputFile
    entries: Callable[[], Entries] = field(default=list, repr=False)
    keys: ModelKeys = field(default_factory=lambda: ModelKeys("", {}), repr=False)
    why: str = ""
    make_tensor: Callable[[str, Any], LazyTensor] = field(default=as_stored, repr=False)

    @cached_property
    def tensors(self) -> dict[str, LazyTensor]:
        """The tensors by the model's names. Every key and tensor is checked here, and only here."""
        entries: dict[str, Any] = {}
        for key, entry in self.entries():
            if not isinstance(key, str) or not key or len(key) > KEY_LIMIT or not key.isprintable():
                raise self.file.error(self.where, f"a key that is not plain text: {display_key(key, repr)}")
            if key in entries:
                raise self.file.error(self.where, f"two entries have the key {printable(key)}")
            entries[key] = entry
        if self.keys.clash:
            raise self.file.error(self.where, self.keys.clash)
        tensors = {name: self.make_tensor(key, entries[key]) for name, key in self.keys.in_file.items()}
        # What has to be read for a view counts, not only what it shows.
        total = sum(max(t.nbytes, t.span[1] - t.span[0]) for t in tensors.values())
        size = sum({t.storage.file.path: t.storage.file.size for t in tensors.values()}.values())
        if total > EXPANSION_LIMIT * size:
            rule = f"its tensors add up to {total} bytes, of {size} in all: shared storages are expanded"
            raise self.file.error(self.where, rule)
        return tensors

    @cached_property
    def extents(self) -> frozenset[Any]:
        """Where its tensors lie: the very same ones under a second name, not merely equal ones, lie there too."""
        return frozenset((n, id(t.storage), t.offset, t.shape, t.strides) for n, t in self.tensors.items())

    def __str__(self) -> str:
        return f"{self.where} ({self.weights}{f': {self.why}' if self.why else ''})"


def split(
    whole: Candidate,
    path: Sequence[str],
    keys: Sequence[Any],
    tables: Tables | None,
    top_level: Mapping[str, Any] | None = None,
) -> list[Candidate]:
    """The candidates in one state dict: as a rule one; several where models lie in it under prefixes of their own.

    Args:
        whole: the state dict, whose weights and models are still unknown.
        path: the keys that lead to it.
        keys: those of the state dict, of any type.
        top_level: the entries at the top level of the file, by which some writers are known.
    """
    plain = list(dict.fromkeys(key for key in keys if isinstance(key, str) and len(key) <= KEY_LIMIT))
    models = find_models(plain, tables)
    candidates = []
    for model in models:
        inner = model.prefix.rstrip(".")
        place = [*path, *inner.split(".")] if len(models) > 1 and inner else path
        weights, why = kind_of_weights(place, model.prefix, top_level or {})
        where = ".".join(place) or whole.where
        candidates.append(replace(whole, weights=weights, where=where, keys=model, why=why))
    return candidates


def find_candidates(torch_file: TorchFile, tables: Tables | None = None) -> tuple[list[Candidate], list[str], Contents]:
    """(state dicts, other top-level entries in words, all that lies in it) of a torch file."""
    file, contents = torch_file.file, search(torch_file.root)
    top_level = {key: node for key, node in contents.pairs if isinstance(key, str)}
    candidates: list[Candidate] = []
    in_optimizers: list[Candidate] = []  # or so it seems by their place
    for path, node, entries in contents.dicts:
        shown = tuple(printable(part, 80) for part in path)
        where = ".".join(shown) or TOP
        if any(path[:count] in contents.duplicates for count in range(1, len(path) + 1)):
            raise file.error("data.pkl", f"two entries have the same wrapper key ({where})")
        checked = partial(torch_file.check_dict, node, entries, where)
        whole = Candidate("", TOP, file, checked, make_tensor=torch_file.tensor)
        models = split(whole, shown, [key for key, _ in entries], tables, top_level=top_level)
        (in_optimizers if of_optimizer(path) else candidates).extend(models)
    if not any(candidate.keys.fits for candidate in candidates):
        candidates = [candidate for candidate in in_optimizers if candidate.keys.fits] or candidates
    if not candidates:
        raise file.error("data.pkl", _no_weights(torch_file.root, contents))
    wrappers = {path[0] for path, _, _ in contents.dicts if path and not of_optimizer(path)}
    weights = {id(node) for path, _, entries in contents.dicts if not path for _, node in entries}
    others = [
        f"{display_key(key)}: {describe(node)}"
        for key, node in contents.pairs
        if not (isinstance(key, str | int) and str(key) in wrappers) and id(node) not in weights
    ]
    return candidates, others, contents


def of_safetensors(file: InputFile, tables: Tables | None = None) -> tuple[list[Candidate], dict[str, int]]:
    """(state dicts, whole numbers in the metadata by their names) of a safetensors file."""
    odd: dict[str, InputError] = {}
    tensors, metadata = read_header(file, odd)
    if not tensors:
        raise next(iter(odd.values()), file.error("header", "holds no tensors"))
    whole = Candidate("", FILE, file, lambda: [*tensors.items(), *odd.items()])
    integers = {key: int(text) for key, text in metadata.items() if re.fullmatch(r"[1-9][0-9]{0,5}", text)}
    return split(whole, (), [*tensors, *odd], tables), integers


def merged_shards(folder: Path, shards: list[tuple[str, Candidate]], index: Index) -> Entries:
    """The entries of all shards, which must be exactly those of the index, each in the shard that it names, and the
    copies of them that it names."""
    tensors: dict[str, LazyTensor] = {}
    for name, candidate in shards:
        for key, entry in candidate.entries():
            if not isinstance(key, str):
                raise InputError.at(folder, name, f"a key that is not plain text: {display_key(key)}")
            tensor, named_here = candidate.make_tensor(key, entry), index.weight_map.get(key) == name
            if tensor.key != key and not named_here:
                continue  # a copy that the header names (tied weights): of shards, the index says which there are
            if key in tensors:
                raise InputError.at(folder, name, f"the key {printable(key)} is in two shards")
            if not named_here:
                raise InputError.at(folder, name, f"holds {printable(key)}, which the index does not place there")
            tensors[key] = tensor
    if absent := next((key for key in index.weight_map if key not in tensors), None):
        rule = f"places {printable(absent)} in {printable(index.weight_map[absent])}, which does not hold it"
        raise InputError.at(folder, "index", rule)
    return list((tensors | {name: tensors[kept] for name, kept in index.copies.items()}).items())


def display_key(key: Any, form: Callable[[str], str] = str) -> str:
    """A key for a report. Anything but text is named by its kind: to hash or print a nested key may never end."""
    return printable(form(key[:41]), 40) or "''" if isinstance(key, str) else describe(key)


def _no_weights(root: Any, contents: Contents) -> str:
    """Why a torch file holds no weights that can be read."""
    if contents.hints:
        return contents.hints[0]
    if pairs_of(root) is None:
        whole = "" if is_tensor(root) else " (a whole pickled model? save model.state_dict() instead)"
        return f"holds {describe(root)}, not a dict of tensors{whole}"
    keys = [display_key(key) for key, _ in contents.pairs if isinstance(key, str)]
    if contents.optimizer:
        return "holds an optimizer's state but no weights: take the checkpoint that was saved with it"
    if any(key.startswith(("shard", "_flat_param", "flat_param")) for key in keys):
        return "an FSDP shard: gather a full state dict first (FullStateDictConfig)"
    return f"holds no state dict; its top-level keys are: {', '.join(keys[:8]) or 'none'}"


def choose(
    candidates: Sequence[Candidate], weights: str | None, state_dict_key: str | None = None, hints: Sequence[str] = ()
) -> Candidate:
    """The requested candidate; else raw weights where there is one such and all others are its EMA; else the only one.

    Args:
        hints: weights that cannot be read, in words.

    Raises: `UsageError` for what the file does not hold, `InputError` where several may be meant.
    """
    path, pool = printable(candidates[0].file.path), plausible(candidates)
    kinds = {kind: [c for c in pool if c.weights == kind] for kind in (RAW, EMA)}
    if state_dict_key is not None:
        if not (chosen := [candidate for candidate in candidates if candidate.where == state_dict_key]):
            rule = f"`state_dict_key` {printable(state_dict_key)}: there is {_listed(candidates)}"
            raise UsageError(f"{path}: {rule}")
    elif weights:
        if not (chosen := kinds[weights]):
            kind = "/".join(dict.fromkeys(c.weights for c in pool))
            there = "; ".join([f"({', '.join(c.where for c in pool[:MOST_SHOWN])})", *hints])
            raise UsageError(f"{path}: `weights` {weights}, but the file holds only {kind} weights {there}")
    else:
        chosen = kinds[RAW] if kinds[RAW] and len(kinds[RAW]) + len(kinds[EMA]) == len(pool) else pool
    # Each once, even if it is there under several names.
    chosen = list({c.extents: c for c in reversed(chosen)}.values())[::-1] if len(chosen) > 1 else chosen
    if len(chosen) == 1:
        return chosen[0]
    kind = f"{chosen[0].weights} " if {candidate.weights for candidate in chosen} in ({RAW}, {EMA}) else ""
    others = [candidate for candidate in pool if candidate not in chosen]
    also = f"; also there: {_listed(others)}" if others else ""
    which = f"choose one with `state_dict_key`, such as `state_dict_key` {shlex.quote(chosen[0].where)}"
    if state_dict_key is not None:
        which = "two have this place, and no flag tells them apart"
    raise InputError(f"{path}: several {kind}state dicts: {_listed(chosen)}{also}: {which}")


def selecting_flag(candidate: Candidate, candidates: Sequence[Candidate]) -> str:
    """The flag that selects this one of several: by its kind if that is unambiguous, else by its place."""
    alone = sum(other.weights == candidate.weights for other in candidates) == 1
    if alone and candidate.weights in (RAW, EMA):
        return f"`weights` {candidate.weights}"
    return f"`state_dict_key` {shlex.quote(candidate.where)}"


def plausible(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that a kind of model fits, or that are not opened yet; where none fits, the large ones."""
    most = max(len(candidate.keys.in_file) for candidate in candidates)
    fits = any(candidate.keys.fits for candidate in candidates)
    return [c for c in candidates if not c.keys.in_file or (c.keys.fits if fits else 2 * len(c.keys.in_file) >= most)]


def _listed(candidates: Sequence[Candidate]) -> str:
    return shortened([str(candidate) for candidate in candidates], MOST_SHOWN)
