"""The components of a pipeline beside its transformer: where they lie, which class they are of, and their files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.file import InputFile, dangling_link, present, reading
from ..checkpoint.folder import CONFIG, cached_snapshot, weight_files
from ..checkpoint.json_file import read_json
from ..checkpoint.weight_names import variants
from ..errors import InputError, printable
from ..families.travelling import CLASS, Entry
from ..hub import local_component
from ..hub.selection import component_files

VAE, TEXT_ENCODER, TOKENIZER, SCHEDULER = PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
CONFIGS = dict(zip(PARTS, (CONFIG, CONFIG, "tokenizer_config.json", "scheduler_config.json"), strict=True))
# What in a config tells the kind of component, and the form that it has.
_NAMING = {
    VAE: (CLASS, r"Autoencoder\w+"),
    TEXT_ENCODER: ("model_type", "t5"),
    TOKENIZER: ("tokenizer_class", r"T5Tokenizer(Fast)?"),
    SCHEDULER: (CLASS, r"[A-Z]\w+"),
}
WO = "wo"  # layers of a T5 that overflow in float16: transformers keeps them in float32, and does not quantise them
TOKENIZER_MODELS = ("spiece.model", "tokenizer.json")  # a tokenizer has one of these


@dataclass(frozen=True)
class Component:
    """A component that is there.

    Attributes:
        part: its name, one of `PARTS`.
        folder: where it lies.
        entry: its class, for `model_index.json`.
        config_file: the one that says so, with its content, the `config`.
        files: those that belong to it by name, with the real path of each.
    """

    part: str
    folder: Path
    entry: Entry
    config_file: Path
    config: Mapping[str, Any]
    files: Mapping[str, Path]


def find_component(source: str | os.PathLike[str], part: str, *, quiet: bool = True) -> Component:
    """A component in its own folder, in a pipeline's, or on the hub, whence it is fetched. Nothing of it is loaded.

    Args:
        part: one of `PARTS`.
        quiet: no progress bars while fetching.

    Raises: `InputError` where it is not there, is not whole, or is something else.

    Example:
        >>> component = find_component("fixtures/pipeline/vae", "vae")
        >>> component.entry, sorted(component.files)
        (('diffusers', 'AutoencoderKL'), ['config.json', 'diffusion_pytorch_model.safetensors'])
    """
    with reading(source):
        place = cached_snapshot(local_component(source, part, quiet=quiet))
        folder = place / part if present(place / part) else place
        if not folder.is_dir():
            rule = dangling_link(folder) or ("not a folder" if present(folder) else "no such folder")
            raise InputError.at(folder, "", f"{rule}; a folder with the {part} is needed")
        name, (naming, form) = CONFIGS[part], _NAMING[part]
        if not present(folder / name):
            raise InputError.at(folder, "", f"holds no {name}: not a {part}")
        config = read_json(folder / name, infinite=part == SCHEDULER)
        if not isinstance(config, dict):
            raise InputError.at(folder / name, "", "not a JSON object")
        # The published tokenizers do not all say it.
        kind = config.get(naming, "T5Tokenizer" if part == TOKENIZER else None)
        if not isinstance(kind, str) or not re.fullmatch(form, kind):
            architectures = config.get("architectures")
            names = [*(architectures if isinstance(architectures, list) else [])[:1]]
            names += filter(None, map(config.get, (CLASS, "tokenizer_class", "model_type")))
            what = f"a {printable(names[0], 80)}" if names else "something whose config names no class"
            raise InputError.at(folder / name, "", f"not a {part} but {what}")
        entry = ("diffusers" if part in (VAE, SCHEDULER) else "transformers", kind)
        if part == TEXT_ENCODER:
            entry = ("transformers", "T5EncoderModel")  # of a whole T5, its encoder
        if part != SCHEDULER:
            files = _files(folder, part)
        elif module := next((path for path in sorted(folder.glob("*.py")) if _defines(path, kind)), None):
            entry, files = (module.stem, kind), [name, module.name]
        else:
            files = [name]
    real = {each: _real(folder / each) for each in files}
    return Component(part=part, folder=folder, entry=entry, config_file=folder / name, config=config, files=real)


def _files(folder: Path, part: str) -> list[str]:
    """The names of a component's files."""
    weights = [] if part == TOKENIZER else [path.name for path in weight_files(folder)[0]]
    if kinds := variants(weights):
        rule = f"the only weights are the variant {kinds[0]}, which a pipeline does not load by itself"
        raise InputError.at(folder, weights[-1], f"{rule}: take '.{kinds[0]}' out of the names")
    names = {path.name for path in folder.iterdir() if not path.is_dir() and (part == TOKENIZER or path.exists())}
    others, _ = component_files(names, part)
    return [*others, *weights]


def _defines(module: Path, kind: str) -> bool:
    """Whether a file of Python has a class of that name at its top level."""
    with InputFile(module) as file:
        return bool(re.search(rb"^class %s\b" % kind.encode(), file.read(0, file.size), re.MULTILINE))


def _real(path: Path) -> Path:
    """The path of a file that can be read, absolute and without links."""
    with InputFile(path):
        real = Path(os.path.realpath(path))
    try:
        str(real).encode()
    except UnicodeEncodeError:
        raise InputError.at(real, "", "a path that is not in UTF-8, which a record cannot name") from None
    return real
