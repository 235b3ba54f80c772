"""Classes that travel: where a library finds them, and whether a copy is the module of this version."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

from converter.families import families
from converter.families.travelling import ShippedClass, class_in, class_of, imported_class, shipped_class

CLASSES = [reference for family in families(packages=False).values() for reference in family.classes]
MODULES = {reference: shipped_class(reference).module for reference in CLASSES}


def test_there_are_some() -> None:
    assert len(CLASSES) >= 2


@pytest.mark.parametrize("reference", CLASSES)
def test_a_module_imports_the_library_only_and_is_short(reference: str) -> None:
    path = MODULES[reference]
    assert path is not None
    text = path.read_text(encoding="utf-8")
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) <= {"diffusers", "torch"}
    assert len(text.splitlines()) < 150
    assert text.startswith("# Licence: Apache-2.0. From convert-pixart: converter/models/")


@pytest.mark.parametrize("reference", CLASSES)
def test_a_config_leads_to_its_class(reference: str) -> None:
    module, _, name = reference.partition(":")
    config, stem = {"_class_name": name}, module.rpartition(".")[2]
    kind = class_in(CLASSES, config)
    assert class_of(CLASSES, config) == reference
    assert (kind.auto_map, kind.entry) == ({"AutoModel": f"{stem}.{name}"}, (stem, name))
    assert kind.pipeline_name == [stem, name]
    assert kind.text == {f"{stem}.py": Path(str(kind.module)).read_text(encoding="utf-8")}
    assert issubclass(imported_class(reference), importlib.import_module("diffusers").ModelMixin)


def test_a_class_of_diffusers_does_not_travel() -> None:
    config = {"_class_name": "PixArtTransformer2DModel"}
    kind = class_in(CLASSES, config)
    assert (class_of(CLASSES, config), kind.module, kind.text) == (None, None, {})
    assert kind.entry == ("diffusers", "PixArtTransformer2DModel")
    assert shipped_class("diffusers:PixArtAlphaPipeline").pipeline_name == "PixArtAlphaPipeline"
    assert kind.difference(Path("nowhere")) == ""


def test_a_copy_is_the_module_or_is_called_otherwise(tmp_path: Path) -> None:
    source = Path(__file__)
    kind, copy = ShippedClass(source.stem, "Any", source), tmp_path / source.name
    assert kind.difference(tmp_path) == "missing"
    copy.write_bytes(source.read_bytes())
    assert kind.difference(tmp_path) == ""
    for other in (source.read_bytes() + b"\n", b"#" + source.read_bytes()[1:]):
        copy.write_bytes(other)
        assert kind.difference(tmp_path) == "modified"
