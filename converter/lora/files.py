"""The files of an adapter: its tensors by their keys, the header's metadata, and the config beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..checkpoint import LazyTensor, open_checkpoint
from ..checkpoint.file import InputFile, present
from ..checkpoint.folder import cached_snapshot, names_in
from ..checkpoint.json_file import parse_json, read_json
from ..checkpoint.recognition import container_of
from ..checkpoint.safetensors_reader import read_header
from ..checkpoint.weight_names import ADAPTER_CONFIG, ADAPTERS
from ..errors import InputError, printable, shortened
from ..parts import below
from .peft_config import PeftConfig
from .spelling import Spelling

HEADER = "lora_adapter_metadata"  # of diffusers: the config of PEFT, as JSON, its fields after the model's name
_FOLDERS = ("", "transformer_lora", "transformer")  # where in the folder of a run or a pipeline they lie
_WHOLE = re.compile(r"\.modules_to_save\.\w+(?=\.)")  # PEFT's copy of a module that is trained whole


@dataclass
class AdapterFile:
    """An open file of an adapter. `container` is what it is, in words."""

    path: str
    tensors: dict[str, LazyTensor]
    metadata: Mapping[str, str]
    container: str
    size: int
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tensors = self._renamed()

    def _renamed(self) -> dict[str, LazyTensor]:
        """Of a module that was trained whole, the plain name counts, and the copy in PEFT's wrapper where there is
        none."""
        plain = {_WHOLE.sub("", key): tensor for key, tensor in self.tensors.items() if _WHOLE.search(key)}
        return plain | {key: tensor for key, tensor in self.tensors.items() if not _WHOLE.search(key)}

    @cached_property
    def of_a_model(self) -> bool:
        """Whether it is the state dict of a whole model with adapters in it, such as a trainer saves."""
        return any(key.endswith(".base_layer.weight") for key in self.tensors)

    def ignored(self, key: str) -> bool:
        """Whether a key is none of the adapter's: PEFT's copy of what a module was before, or the model itself."""
        if ".original_module." in key or key.endswith((".modules_to_save.bias", ".modules_to_save.weight")):
            return True
        return self.of_a_model and self._whole(key)

    def _whole(self, key: str) -> bool:
        if re.search(r"\.(lora_|hada_|lokr_)", key):
            return False
        return not _WHOLE.search(self.tensors[key].key)

    def config(self, spelling: Spelling) -> PeftConfig | None:
        """What says the scales, if something does beside the tensors."""
        if text := self.metadata.get(HEADER) if spelling.alpha == "header" else None:
            with InputFile(self.path) as file:
                content = parse_json(file, HEADER, text.encode())
            own = below(content, spelling.prefix) if isinstance(content, dict) else {}
            if not own:
                raise InputError.at(self.path, HEADER, f"has no fields that begin with {spelling.prefix}")
            return PeftConfig(f"{self.path}: {HEADER}", own)
        folder = Path(os.path.abspath(self.path)).parent
        places = {"peft": [folder], "scripts": [folder, folder.parent], "bare": [folder]}
        for place in places.get(spelling.name, []):
            if present(place / ADAPTER_CONFIG):
                content = read_json(place / ADAPTER_CONFIG)
                if not isinstance(content, dict):
                    raise InputError.at(place / ADAPTER_CONFIG, "", "not a JSON object")
                if spelling.name == "scripts":
                    self.notes.append(f"alpha is that of {printable(place / ADAPTER_CONFIG)}, of the same run")
                return PeftConfig(str(place / ADAPTER_CONFIG), content)
        return None

    def tool(self, config: PeftConfig | None) -> str:
        """What wrote it, as far as it says."""
        if "ot_branch" in self.metadata:
            return "OneTrainer"
        if "lycoris_config" in self.metadata:
            return "LyCORIS"
        if any(name.startswith("ss_") for name in self.metadata):
            return "kohya's scripts"
        version = config.content.get("peft_version") if config else None
        by = "diffusers with PEFT" if config and HEADER in config.place else "PEFT"
        return f"{by} {printable(version, 20)}" if version else by if config else ""


def open_file(stack: ExitStack, path: Path) -> AdapterFile:
    """The file of an adapter, or the one in a folder; `stack` closes it.

    Raises: `InputError` for a folder that holds none or several, and for what the readers refuse.
    """
    place = _in_folder(path) if os.path.isdir(path) else path
    file = stack.enter_context(InputFile(place))
    if container_of(file) == "safetensors":
        tensors, metadata = read_header(file)
        if not tensors:
            raise InputError.at(place, "header", "holds no tensors")
        return AdapterFile(os.fspath(place), tensors, metadata, "safetensors", file.size)
    checkpoint = stack.enter_context(open_checkpoint(place))
    keys = checkpoint.selected.keys
    tensors = {key: checkpoint[name] for name, key in keys.in_file.items()}
    return AdapterFile(os.fspath(place), tensors, {}, checkpoint.container, file.size, [*checkpoint.notes])


def _in_folder(folder: Path) -> Path:
    place = cached_snapshot(folder)
    for inner in (place / name for name in _FOLDERS if (place / name).is_dir()):
        names = names_in(inner)
        if found := next((name for name in ADAPTERS if name in names), None):
            return inner / found
    others = sorted(name for name in names_in(place) if name.endswith(".safetensors"))
    if len(others) == 1:
        return place / others[0]
    which = f": give one of {shortened(list(map(printable, others)), 4)}" if others else ""
    rule = f"holds no adapter: looked for {', '.join(ADAPTERS)}{which}"
    raise InputError.at(folder, "", rule)
