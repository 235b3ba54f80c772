"""Folders: a diffusers model or pipeline, sharded or not, and the folders that only look like one."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..errors import InputError, printable
from .file import InputFile, present, reads
from .safetensors_reader import parse_json

JSON_LIMIT = 25_000_000
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")  # of files that may be checkpoints
# What diffusers calls the two files of a model.
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
INDEX = f"{WEIGHTS}.index.json"
STEMS = (
    WEIGHTS,
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)


@reads
def model_folder(folder: Path) -> Path:
    """The folder that holds the weights: of a pipeline, its `transformer/`."""
    if (folder / ".metadata").exists() or any(folder.glob("__*_*.distcp")):
        raise InputError.at(
            folder,
            "",
            "a torch distributed checkpoint: merge it first with "
            "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE`",
        )
    if (folder / "adapter_config.json").exists():
        raise InputError.at(folder, "", "a PEFT adapter (LoRA), not a whole transformer")
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


@reads
def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder, {} where there is none."""
    if not present(folder / CONFIG):
        return {}
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise InputError.at(folder / CONFIG, "", "not a JSON object")
    return config


def with_variant(name: str, variant: str) -> str:
    """A file's name with that of a variant put in, as diffusers does (`utils/hub_utils.py`, `_add_variant`).

    >>> with_variant(WEIGHTS, "fp16"), with_variant(INDEX, "fp16")[-16:]
    ('diffusion_pytorch_model.fp16.safetensors', '.index.fp16.json')
    """
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}" if variant else name


def variants(names: Collection[str]) -> list[str]:
    """The variants that weights under these names are of, such as 'fp16'."""
    found = set()
    for name in (*STEMS, *(f"{stem}.index.json" for stem in STEMS)):
        stem, _, suffix = name.rpartition(".")
        form = re.compile(rf"{re.escape(stem)}\.([\w-]+)\.{suffix}")
        found |= {match[1] for match in map(form.fullmatch, names) if match}
    return sorted(variant for variant in found if not is_shard(variant))


@reads
def unread_variants(folder: Path, read: Collection[Path]) -> list[str]:
    """The variants of weights that lie in a folder beside those without one, whose files are `read`."""
    names = {path.name for path in folder.iterdir() if path.exists()}
    return variants(names - {path.name for path in read}) if _pairs(names, "") else []


def is_shard(variant: str) -> bool:
    """Whether what looks like a variant's name is that of one of its shards, such as 'fp16-00001-of-00002'."""
    return re.search(r"-\d{5}-of-\d{5}$", variant) is not None


def weights_among(names: Collection[str]) -> list[tuple[str, str]]:
    """(file of weights, index of its shards) out of the names in a folder, best first, '' for the one that is absent.

    As in diffusers, safetensors come first. A variant is taken where it is all there is.

    Raises: ValueError for several variants, and for a file beside an index of the same name.
    """
    found = _pairs(names, "")
    if not found and len(kinds := variants(names)) > 1:
        raise ValueError(f"holds several variants ({', '.join(map(printable, kinds))}) and no weights without one")
    elif not found and kinds:
        found = _pairs(names, kinds[0])
    if found and all(found[0]):
        raise ValueError(f"holds both {found[0][0]} and an index of shards: one of them is stale")
    return found


def _pairs(names: Collection[str], variant: str) -> list[tuple[str, str]]:
    pairs = ((with_variant(stem, variant), with_variant(f"{stem}.index.json", variant)) for stem in STEMS)
    found = [(single if single in names else "", index if index in names else "") for single, index in pairs]
    return [pair for pair in found if any(pair)]


@reads
def weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None, list[str]]:
    """(files, key to file name where an index says so, weights of other names passed over) of a model folder, by the
    rules of `weights_among`."""
    try:
        found = weights_among({path.name for path in folder.iterdir() if path.exists()})
    except ValueError as error:
        raise InputError.at(folder, "", str(error)) from None
    except OSError as error:
        raise InputError.at(folder, "", error.strerror or str(error)) from error
    if not found:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
        hint = f"; there is {printable(others[0])}: name a file, or a glob" if others else ""
        raise InputError.at(folder, "", f"holds no weights: looked for {', '.join(STEMS)} and their .index.json{hint}")
    (single, index), *later = found
    passed_over = [name for pair in later for name in pair if name]
    return (*_shards(folder / index), passed_over) if index else ([folder / single], None, passed_over)


def _shards(index: Path) -> tuple[list[Path], dict[str, str]]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError.at(index, "weight_map", "missing, empty, or not a map from keys to file names")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise InputError.at(
                index,
                "weight_map",
                f"{printable(name)} is not a plain file name: an index may not point outside its folder",
            )
        if not os.path.exists(index.parent / name):  # unlike Path.exists, False for a name that is too long
            raise InputError.at(index, "weight_map", f"the shard {printable(name)} is missing")
    return [index.parent / name for name in names], weight_map


@reads
def beside(folder: Path, config: dict[str, Any]) -> dict[str, bytes]:
    """The files of a model folder that were believed beside its weights, by name: config.json and the index."""
    index = next((index for _, index in weights_among(set(os.listdir(folder)))), "")
    found = {}
    for name in filter(None, [CONFIG if config or present(folder / CONFIG) else "", index]):
        with InputFile(folder / name) as file:
            found[name] = _content(file)
            if name == CONFIG and parse_json(file, "", found[name]) != config:
                raise file.error("", "it changed while it was read")
    return found


def read_json(path: Path) -> Any:
    """What a JSON file says, read strictly: no duplicate keys, nothing without bounds."""
    with InputFile(path) as file:
        return parse_json(file, "", _content(file))


def _content(file: InputFile) -> bytes:
    if file.size > JSON_LIMIT:
        raise file.error("", f"{file.size} bytes of JSON")
    return file.read(0, file.size)
