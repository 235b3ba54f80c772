"""Folders: a diffusers model or pipeline, sharded or not, and the folders that only look like one."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AdapterError, InputError, printable
from ..filenames import RECORD
from .file import InputFile, dangling_link, present, reading, reads
from .json_file import read_json
from .safetensors_reader import copies_named
from .weight_names import ADAPTER_CONFIG, ADAPTERS, STEMS, SUFFIXES, pairs_among, variants, weights_among
from .weights_kind import EMA, RAW, kind_by_name

CONFIG = "config.json"  # of a model in diffusers' layout
# How folders of averaged weights are called: as diffusers' training scripts do it, and the other way round.
_AVERAGED = ("{}_ema", "ema_{}")


def cached_snapshot(folder: Path) -> Path:
    """Of a repository in a hub's cache (`models--OWNER--NAME`) the snapshot in use: that of `refs/main`, or the only
    one; any other folder as it is."""
    snapshots, main = folder / "snapshots", folder / "refs" / "main"
    if not (snapshots.is_dir() and ((folder / "refs").is_dir() or (folder / "blobs").is_dir())):
        return folder
    names = sorted(path.name for path in snapshots.iterdir() if path.is_dir())
    wanted = ""
    if os.path.lexists(main):
        with InputFile(main) as file:
            wanted = file.read(0, min(file.size, 200)).decode(errors="replace").strip()
    if wanted in names or (len(names) == 1 and not wanted):
        return snapshots / (wanted or names[0])
    which = f"its refs/main is {printable(wanted, 60)}" if wanted else "no refs/main selects one"
    there = ", ".join(printable(name, 60) for name in names[:4]) + (" ..." if len(names) > 4 else "")
    rule = f"a cached repository with the snapshots {there}; {which}: give the folder of the one you mean"
    if not names:
        rule = "a cached repository without a snapshot: fetch it again"
    raise InputError.at(folder, "snapshots", rule)


@reads
def model_folder(folder: Path) -> Path:
    """The folder that holds the weights: of a cached repository the snapshot that is in use, of a pipeline its
    `transformer/`, or else its only subfolder that is named like weights.

    Raises: `InputError` for what only looks like a model, and where a cache does not tell which snapshot is meant.
    """
    folder = cached_snapshot(folder)
    if (folder / ".metadata").exists() or any(folder.glob("__*_*.distcp")):
        merge = "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE`"
        raise InputError.at(folder, "", f"a torch distributed checkpoint: merge it first with {merge}")
    if (folder / ADAPTER_CONFIG).exists():
        raise AdapterError.at(folder, "", "a PEFT adapter (LoRA), not a whole transformer")
    inner = folder / _recorded_subfolder(folder)
    if os.path.islink(inner) and (nowhere := dangling_link(inner)):
        raise InputError.at(folder, inner.name, nowhere)
    place = inner if inner.is_dir() else folder
    names = names_in(place)
    if pairs_among(names, "") or variants(names):
        return place
    names_of = ("model", *(form.format(name) for name in ("transformer", "model") for form in _AVERAGED))
    for name in names_of if place == folder else ():
        if _holds_weights(folder / name):
            return folder / name
    others = any(name.endswith(SUFFIXES) for name in names)  # a folder of checkpoints is about those
    inside = [] if others else sorted(path for path in place.iterdir() if path.is_dir())
    for where in (place, *inside):  # as browsers and file managers leave what they take for a zip
        # `os.path`, since a folder that cannot be read is none of these, and no error.
        isfile, isdir = os.path.isfile, os.path.isdir
        if isfile(where / "data.pkl") and (isdir(where / "data") or isfile(where / "version")):
            rule = "an unpacked torch file (data.pkl, data/0 ... lie loose): fetch it again without unpacking it"
            raise InputError.at(where, "data.pkl", rule)
    folders = _folders_named_like_weights(place)
    return place / folders[0] if len(folders) == 1 and CONFIG not in names and not others else place


def _recorded_subfolder(folder: Path) -> str:
    """Where in a folder the model lies: of a conversion, where its record says; else where a pipeline has it."""
    with suppress(InputError, TypeError, KeyError, AttributeError):
        if not (folder / "transformer").exists() and present(folder / RECORD):
            for name, about in read_json(folder / RECORD)["written"].items():
                subfolder, _, _ = name.rpartition("/")
                weights = "header_sha256" in about  # of a component, which was copied, nothing but the whole is hashed
                if weights and re.fullmatch(r"\w[\w.-]*", subfolder) and (folder / subfolder).is_dir():
                    return str(subfolder)
    return "transformer"


def is_averaged(place: Path) -> bool:
    """Whether a model folder is called one of averaged weights."""
    name = place.absolute().name
    return kind_by_name(name)[0] == EMA and (name.endswith("_ema") or name in ("ema_transformer", "ema_model"))


def kind_by_place(path: Path) -> tuple[str, str]:
    """(kind, why) of the weights in a file of nothing else: as its name says, or that of its folder."""
    names = [path.stem, *([path.parent.name] if is_averaged(path.parent) else [])]
    kinds = [kind_by_name(name) for name in names]
    return next((kind for kind in kinds if kind[0] != RAW), kinds[0])


def averaged_sibling(place: Path) -> Path | None:
    """The folder of the averaged weights next to a model folder, None where there is none."""
    place = place.absolute()
    siblings = (place.with_name(form.format(place.name)) for form in _AVERAGED)
    return next(filter(_holds_weights, siblings), None) if place.name else None


def _holds_weights(place: Path) -> bool:
    try:
        return bool(pairs_among(names := names_in(place), "") or variants(names))
    except InputError:
        return False


def names_in(folder: Path) -> set[str]:
    """The names in a folder of what may be files of a model: no dangling links, and no folders, even ones named like
    weights."""
    with reading(folder):
        return {path.name for path in folder.iterdir() if path.exists() and not path.is_dir()}


def dangling_weights(folder: Path) -> list[str]:
    """The names of weights, and of indices of shards, in a folder that are links to nothing; what would be read first
    comes first."""
    gone = {path.name for path in folder.iterdir() if path.is_symlink() and not path.exists()}
    first = [name for pair in pairs_among(gone, "") for name in pair if name]
    return [*first, *sorted(n for n in gone - {*first} if n.endswith(SUFFIXES) or ".index" in n)]


def _folders_named_like_weights(folder: Path) -> list[str]:
    """The folders in a folder that are named as weights are, as DeepSpeed's `zero_to_fp32` makes them."""
    return [stem for stem in STEMS if (folder / stem).is_dir()]


@reads
def read_config(folder: Path, kept: dict[Path, bytes] | None = None) -> dict[str, Any]:
    """`config.json` of a model folder, {} where there is none; its bytes are `kept`, by its path."""
    if not present(folder / CONFIG):
        return {}
    config = read_json(folder / CONFIG, kept)
    if not isinstance(config, dict):
        raise InputError.at(folder / CONFIG, "", "not a JSON object")
    return config


@reads
def unread(folder: Path, files: Collection[Path], passed_over: Collection[str]) -> list[str]:
    """What else in a folder looks like weights, in words: `passed_over`, variants of the `files`, links to nothing."""
    names = names_in(folder)
    others = variants(names - {path.name for path in files}) if pairs_among(names, "") else []
    return [
        *(f"{name}: other weights in this folder, not read" for name in passed_over),
        *(f"{name}: a variant of the weights, not read" for name in others),
        *(f"{printable(name)}: a dangling link, not read" for name in dangling_weights(folder)),
    ]


@dataclass
class Index:
    """What an index of shards says: key to file name, and {left out: kept} of tied weights, which it names where a
    single file's header would (huggingface_hub's `save_torch_state_dict`)."""

    weight_map: dict[str, str]
    copies: dict[str, str]


@reads
def weight_files(folder: Path, kept: dict[Path, bytes] | None = None) -> tuple[list[Path], Index | None, list[str]]:
    """(files, what an index says where there is one, weights of other names passed over) of a model folder, by the
    rules of `weights_among`; the bytes of the index are `kept`, by its path."""
    try:
        pairs = weights_among(names_in(folder))
    except ValueError as error:
        raise InputError.at(folder, "", str(error)) from None
    if not pairs:
        raise _without_weights(folder)
    (single, index), *later = pairs
    passed_over = [name for pair in later for name in pair if name]
    return (*_shards(folder / index, kept), passed_over) if index else ([folder / single], None, passed_over)


def _without_weights(folder: Path) -> InputError:
    """The error for a folder that holds no readable weights."""
    if gone := dangling_weights(folder):
        return InputError.at(folder, gone[0], dangling_link(folder / gone[0]) or "a dangling link")
    if any((folder / name).exists() for name in ADAPTERS):
        return AdapterError.at(folder, "", "an adapter (LoRA), not a whole transformer")
    if folders := _folders_named_like_weights(folder):
        which = f"in the folder {folders[0]} in it: give that one" + ("" if len(folders) == 1 else ", or another")
        rule = f"holds no weights itself; there may be some {which}"
        return InputError.at(folder, "", f"{rule} (with {CONFIG} in it)" if (folder / CONFIG).exists() else rule)
    places = (*folder.iterdir(), *folder.glob("checkpoints/*"))
    others = sorted(str(path.relative_to(folder)) for path in places if path.suffix in SUFFIXES)
    hint = f"; there is {printable(others[0])}: name a file, or a glob" if others else ""
    return InputError.at(folder, "", f"holds no weights: looked for {', '.join(STEMS)} and their .index.json{hint}")


def _shards(index: Path, kept: dict[Path, bytes] | None) -> tuple[list[Path], Index]:
    content = read_json(index, kept)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError.at(index, "weight_map", "missing, empty, or not a map from keys to file names")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            rule = f"{printable(name)} is not a plain file name: an index may not point outside its folder"
            raise InputError.at(index, "weight_map", rule)
        if not os.path.exists(index.parent / name):  # unlike Path.exists, False for a name that is too long
            why = dangling_link(index.parent / name) if os.path.islink(index.parent / name) else ""
            raise InputError.at(index, "weight_map", f"the shard {printable(name)} is missing" + (why and f": {why}"))
    metadata = content.get("metadata")
    copies = copies_named(os.fspath(index), "metadata", weight_map, metadata) if isinstance(metadata, dict) else {}
    return [index.parent / name for name in names], Index(weight_map, copies)
