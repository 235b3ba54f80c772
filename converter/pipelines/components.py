"""The components of a pipeline beside its transformer: where they lie, which class they are of, and their files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..checkpoint.file import InputFile, dangling_link, present, reading, reads
from ..checkpoint.folder import CONFIG, cached_snapshot, weight_files
from ..checkpoint.json_file import read_json
from ..checkpoint.weight_names import variants
from ..errors import InputError, printable
from ..hub import local_component
from ..hub.selection import component_files

VAE, TEXT_ENCODER, TOKENIZER, SCHEDULER = PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
SCHEDULER_CONFIG, TOKENIZER_CONFIG = "scheduler_config.json", "tokenizer_config.json"
TOKENIZER_MODELS = ("spiece.model", "tokenizer.json")  # the words of a tokenizer: it has one of these
_CONFIGS = {TOKENIZER: TOKENIZER_CONFIG, SCHEDULER: SCHEDULER_CONFIG, VAE: CONFIG, TEXT_ENCODER: CONFIG}
# What in a config tells the kind of component, and the form that it has.
_NAMING = {
    VAE: ("_class_name", r"Autoencoder\w+"),
    TEXT_ENCODER: ("model_type", "t5"),
    TOKENIZER: ("tokenizer_class", r"T5Tokenizer(Fast)?"),  # the published ones do not all say it
    SCHEDULER: ("_class_name", r"[A-Z]\w+"),
}
Entry = tuple[str, str]  # of `model_index.json`: a library, or a module in the component's folder, and a class of it


@dataclass(frozen=True)
class Component:
    """A component that is there.

    Attributes:
        part: its name, one of `PARTS`.
        folder: where it lies.
        entry: its class, for `model_index.json`.
        files: those that belong to it by name, with the real path of each.
    """

    part: str
    folder: Path
    entry: Entry
    files: Mapping[str, Path]

    @property
    def size(self) -> int:
        with reading(self.folder):
            return sum(map(os.path.getsize, self.files.values()))


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
        inner = place / part
        folder = inner if present(inner) else place
        if not folder.is_dir():
            rule = dangling_link(folder) or ("not a folder" if present(folder) else "no such folder")
            raise InputError.at(folder, "", f"{rule}; a folder with the {part} is needed")
        names = {path.name for path in folder.iterdir() if not path.is_dir()}
    entry = _entry(part, folder)
    files = {name: folder / name for name in _names(part, folder, names, entry)}
    return Component(part, folder, entry, {name: _real(path) for name, path in files.items()})


def shipped_class(reference: str, folder: str) -> tuple[dict[str, str], Entry]:
    """What a pipeline needs so that a component is of a certain class.

    A class of this package travels with the weights: the source of its module is written into the component's folder,
    where diffusers finds it by the entry (`pipelines/pipeline_loading_utils.py`, `get_class_obj_and_candidates`).

    Args:
        reference: "package.module:Class". folder: the component's, such as "scheduler".

    Returns: (contents of files by name in the pipeline, the entry of `model_index.json`).

    >>> files, entry = shipped_class("converter.models.pixart.pixart_schedulers:PixArtDMDScheduler", "scheduler")
    >>> [*files], entry
    (['scheduler/pixart_schedulers.py'], ('pixart_schedulers', 'PixArtDMDScheduler'))
    >>> shipped_class("diffusers:DDPMScheduler", "scheduler")
    ({}, ('diffusers', 'DDPMScheduler'))
    """
    module, _, name = reference.partition(":")
    package, _, stem = module.rpartition(".")
    if not package:
        return {}, (module, name)
    spec = find_spec(module)  # found, and not run
    assert spec
    assert spec.origin
    return {f"{folder}/{stem}.py": Path(spec.origin).read_bytes().decode()}, (stem, name)


@reads
def _names(part: str, folder: Path, names: set[str], entry: Entry) -> list[str]:
    """The files of the component among the `names` in its folder."""
    try:
        chosen, _ = component_files(names, part)
    except ValueError as error:
        raise InputError.at(folder, "", str(error)) from None
    if part == SCHEDULER:
        return [SCHEDULER_CONFIG, *([f"{entry[0]}.py"] if f"{entry[0]}.py" in names else [])]
    if part == TOKENIZER:
        return chosen
    if kinds := variants(chosen):
        rule = f"the only weights are the variant {kinds[0]}, which a pipeline does not load by itself"
        raise InputError.at(folder, chosen[-1], f"{rule}: take '.{kinds[0]}' out of the names")
    files, _, _ = weight_files(folder)
    return [*dict.fromkeys([*chosen, *(path.name for path in files)])]


def _entry(part: str, folder: Path) -> Entry:
    """The class of a component, by its config. Raises: `InputError` where it is no such component."""
    name = _CONFIGS[part]
    if not present(folder / name):
        raise InputError.at(folder, "", f"holds no {name}: not a {part}")
    config = read_json(folder / name, infinite=part == SCHEDULER)
    if not isinstance(config, dict):
        raise InputError.at(folder / name, "", "not a JSON object")
    naming, form = _NAMING[part]
    kind = config.get(naming, "T5Tokenizer" if part == TOKENIZER else None)
    if not isinstance(kind, str) or not re.fullmatch(form, kind):
        raise InputError.at(folder / name, "", f"not a {part} but {_what(config)}")
    if part == TEXT_ENCODER:
        return "transformers", "T5EncoderModel"  # of a whole T5, its encoder
    if part == TOKENIZER:
        return "transformers", kind
    for module in sorted(folder.glob("*.py")) if part == SCHEDULER else ():
        with InputFile(module) as file:
            if re.search(rb"^class %s\b" % re.escape(kind).encode(), file.read(0, file.size), re.MULTILINE):
                return module.stem, kind
    return "diffusers", kind


def _what(config: Mapping[str, Any]) -> str:
    """What a config is of, in words."""
    names, naming = config.get("architectures"), ("_class_name", "tokenizer_class", "model_type")
    kind = names[0] if isinstance(names, list) and names else next(filter(None, map(config.get, naming)), None)
    return f"a {printable(kind, 80)}" if kind else "something whose config names no class"


def _real(path: Path) -> Path:
    """The path of a file that can be read, absolute and without links."""
    with InputFile(path):
        real = Path(os.path.realpath(path))
    try:
        str(real).encode()
    except UnicodeEncodeError:
        raise InputError.at(real, "", "a path that is not in UTF-8, which a record cannot name") from None
    return real
