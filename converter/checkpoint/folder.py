"""Folders: a diffusers model or pipeline, sharded or not, and the folders that only look like one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..errors import InputError, printable
from .file import InputFile
from .safetensors_reader import parse_json

JSON_LIMIT = 25_000_000
# What diffusers calls the two files of a model.
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
INDEX = f"{WEIGHTS}.index.json"
_STEMS = (
    WEIGHTS,
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)


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


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder, {} where there is none."""
    if not os.path.lexists(folder / CONFIG):
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


def variants(folder: Path) -> list[str]:
    """The variants that diffusers-named weights in a folder are of, such as 'fp16'."""
    found = set()
    for name in _STEMS:
        for whole in (name, f"{name}.index.json"):
            stem, _, suffix = whole.rpartition(".")
            form = re.compile(rf"{re.escape(stem)}\.([\w-]+?)\.{suffix}")
            found |= {match[1] for path in folder.iterdir() if (match := form.fullmatch(path.name))}
    return sorted(v for v in found if not re.search(r"-\d{5}-of-\d{5}$", v))


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None, list[str]]:
    """(files, key to file name where an index says so, weights of other names passed over) of a model folder.

    As in diffusers, safetensors come first. A variant is read where it is all there is.
    """
    there = {name: found for name in _STEMS if (found := _there(folder, name, ""))}
    if not there and len(kinds := variants(folder)) > 1:
        rule = f"holds several variants ({', '.join(map(printable, kinds))}) and no weights without one"
        raise InputError.at(folder, "", f"{rule}: copy the one that is meant, with {CONFIG}, to a folder of its own")
    elif not there and kinds:
        there = {name: found for name in _STEMS if (found := _there(folder, name, kinds[0]))}
    if not there:
        raise InputError.at(folder, "", f"holds no weights: looked for {', '.join(_STEMS)} and their .index.json")
    (single, index), *later = there.values()
    passed_over = [path.name for pair in later for path in pair if path]
    if index is None:
        assert single
        return [single], None, passed_over
    if single:
        raise InputError.at(folder, "", f"holds both {single.name} and an index of shards: one of them is stale")
    return *_shards(index), passed_over


def _there(folder: Path, name: str, variant: str) -> tuple[Path | None, Path | None] | None:
    """(the file of weights, the index of its shards), as far as they are there; None where neither is."""
    single, index = (folder / with_variant(each, variant) for each in (name, f"{name}.index.json"))
    found = single if single.exists() else None, index if index.exists() else None
    return found if any(found) else None


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


def beside(folder: Path, config: dict[str, Any]) -> dict[str, bytes]:
    """The files of a model folder that were believed beside its weights, by name: config.json and the index."""
    kinds = ["", *variants(folder)]
    names = [with_variant(f"{stem}.index.json", kind) for kind in kinds for stem in _STEMS]
    index = next((name for name in names if (folder / name).exists()), "")
    found = {}
    for name in filter(None, [CONFIG if config or os.path.lexists(folder / CONFIG) else "", index]):
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
