"""Classes that travel with the weights: where the target's library has none for a model, a module of this package lies
beside `config.json`, which names it, so that the library loads it without this package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CLASS, AUTO_MAP = "_class_name", "auto_map"  # of a `config.json`
Entry = tuple[str, str]  # of `model_index.json`: a library, or a module in the component's folder, and a class of it


@dataclass(frozen=True, slots=True)
class ShippedClass:
    """A class of a library or, if it has a `module`, one that travels: a copy of that file lies in the folder of what
    it is for, where diffusers finds it by the entry (`pipelines/pipeline_loading_utils.py`,
    `get_class_obj_and_candidates`)."""

    library: str  # or the name of the module
    name: str
    module: Path | None = None

    @property
    def entry(self) -> Entry:
        """Of a component in `model_index.json`."""
        return self.library, self.name

    @property
    def pipeline_name(self) -> str | list[str]:
        """The `_class_name` of a pipeline in `model_index.json`."""
        return [*self.entry] if self.module else self.name

    @property
    def auto_map(self) -> dict[str, str]:
        """Of a `config.json`, by which `diffusers.AutoModel` finds it; {} for a class of a library."""
        return {"AutoModel": f"{self.library}.{self.name}"} if self.module else {}

    @property
    def text(self) -> dict[str, str]:
        """The file that travels, by its name; {} where there is none."""
        return {self.module.name: self.module.read_text(encoding="utf-8")} if self.module else {}

    def difference(self, folder: Path) -> str:
        """How the copy in a folder is not what it has to be: 'missing' or 'modified', '' where it is."""
        if self.module is None:
            return ""
        copy = folder / self.module.name
        if not copy.is_file():
            return "missing"
        wanted = self.module.read_bytes()
        return "" if copy.stat().st_size == len(wanted) and copy.read_bytes() == wanted else "modified"


def shipped_class(reference: str) -> ShippedClass:
    """A class by its reference, "package.module:Class", or "library:Class" for one that need not travel.

    >>> shipped = shipped_class("converter.models.pixart.pixart_schedulers:PixArtDMDScheduler")
    >>> shipped.entry, shipped.module.name
    (('pixart_schedulers', 'PixArtDMDScheduler'), 'pixart_schedulers.py')
    >>> shipped_class("diffusers:DDPMScheduler").module is None
    True
    """
    module, _, name = reference.partition(":")
    package, _, stem = module.rpartition(".")
    if not package:
        return ShippedClass(module, name)
    spec = find_spec(module)  # found, and not run
    assert spec
    assert spec.origin
    return ShippedClass(stem, name, Path(spec.origin))


def imported_class(reference: str) -> Any:
    """The class itself.

    >>> imported_class("fractions:Fraction")
    <class 'fractions.Fraction'>
    """
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def class_of(classes: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """The one of these references that a `config.json` names; None where it names none.

    >>> class_of(("converter.models.dit.dit_transformer:DiTExactTransformer2DModel",), {"_class_name": "Other"})
    """
    return next((reference for reference in classes if reference.partition(":")[2] == config.get(CLASS)), None)


def class_in(classes: Iterable[str], config: Mapping[str, Any]) -> ShippedClass:
    """The class of a `config.json`: the one of these that it names, else diffusers' own.

    >>> classes = ("converter.models.dit.dit_transformer:DiTExactTransformer2DModel",)
    >>> class_in(classes, {"_class_name": "DiTExactTransformer2DModel"}).auto_map
    {'AutoModel': 'dit_transformer.DiTExactTransformer2DModel'}
    >>> class_in(classes, {"_class_name": "DiTTransformer2DModel"}).entry
    ('diffusers', 'DiTTransformer2DModel')
    """
    reference = class_of(classes, config)
    return shipped_class(reference) if reference else ShippedClass("diffusers", str(config.get(CLASS)))
