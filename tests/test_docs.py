"""What the documentation shows works: every docstring example, the README's commands, Python, flags and links."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from followed import Reader
from fuzz.__main__ import parser
from makers import ROOT

import converter
from converter import families
from converter.models.pixart.table import KEYS

README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "new-family.md"
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(converter.__path__, "converter.")
    if module.name != "converter.__main__"  # importing it would run it
)
WITH_EXAMPLES = [name for name in MODULES if ">>>" in Path(str(importlib.import_module(name).__file__)).read_text()]


def ambient(tmp: Path) -> dict[str, Any]:
    """The names that an example may use without importing them: the only ones, for every example."""
    return {"np": np, "torch": torch, "tmp": tmp, "Path": Path, "KEYS": KEYS, "converter": converter}


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstring_examples(name: str, tmp_path: Path, in_root: Path) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs=ambient(tmp_path))
    assert result.attempted > 0  # none is where doctest does not look
    assert result.failed == 0


def test_what_is_public_is_documented() -> None:
    for name in converter.__all__:
        public = getattr(converter, name)
        if not isinstance(public, str):
            assert (public.__doc__ or "").strip(), name
    for name in MODULES:
        if name.rpartition(".")[2].startswith("_"):
            continue
        assert (importlib.import_module(name).__doc__ or "").strip(), name
    # The entry points of the library show an example each.
    functions = (converter.convert, converter.diff, converter.inspect, converter.open_checkpoint, converter.KeyMapping)
    for function in functions:
        assert ">>>" in (function.__doc__ or ""), function


def test_a_wrong_example_would_be_found(tmp_path: Path) -> None:
    module = ModuleType("wrong")
    module.__doc__ = ">>> 1 + 1\n3\n"
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder().find(module, "wrong", extraglobs=ambient(tmp_path)):
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 1
    assert report


# The README.


def sections() -> dict[str, str]:
    """Its parts under headings of the second level, the beginning under ''."""
    title, *rest = re.split(r"^## ", README.read_text(), flags=re.M)
    return {"": title} | {part.partition("\n")[0]: part for part in rest}


RUNNABLE = [name for name, text in (sections() if README.exists() else {}).items() if "```python" in text]


def test_there_is_a_readme_with_examples() -> None:
    assert len(RUNNABLE) >= 2
    assert "As a library" in RUNNABLE


@pytest.mark.parametrize("section", RUNNABLE, ids=lambda name: name or "beginning")
def test_the_readme_can_be_followed(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each section from its top, in a fresh folder: the commands on files that ship, then the Python, one session."""
    monkeypatch.setattr(families, "_REGISTERED", {})  # what an example registers is forgotten again
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    reader = Reader(f"README.md: {section or 'beginning'}", tmp_path, ambient(tmp_path))
    programs = ("bin/convert-pixart", "bin/pixart")
    reader.follow(sections()[section], lambda line: line.startswith(programs) and "fixtures/" in line)


@pytest.mark.slow
def test_the_tutorial_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first block to its last, in an empty folder; and what it shows is what is printed."""
    monkeypatch.setattr(families, "_REGISTERED", {})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    text = TUTORIAL.read_text()
    reader = Reader(TUTORIAL.name, tmp_path, ambient(tmp_path))
    shown = re.findall(r"^(```text|# from \w+\.py)$", text, flags=re.M)
    try:
        assert reader.follow(text) == len(shown) > 5
    finally:
        for name in set(sys.modules) - before:
            if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
                del sys.modules[name]


@pytest.mark.parametrize("wrong", ["```sh\npython -c 1\n```\n```text\nno\n```\n", "```diff\n--- a\n-b\n+c\n```\n"])
def test_a_page_that_is_wrong_would_be_found(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a\n")
    with pytest.raises(AssertionError):
        Reader("wrong", tmp_path, {}).follow(wrong)


def test_the_flags_that_it_names_exist() -> None:
    from converter.cli.main import pixart

    known = {flag for command in pixart.commands.values() for parameter in command.params for flag in parameter.opts}
    known |= {flag for action in parser()._actions for flag in action.option_strings}  # of bin/fuzz
    named = set(re.findall(r"(?<![\w-])--[a-z]\w*", README.read_text() + TUTORIAL.read_text()))
    assert named
    assert named <= known | {"--help"}


def test_the_files_that_it_names_exist() -> None:
    text = README.read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    programs = re.findall(r"`?\b((?:bin|fixtures)/[\w./-]+\w)", text)
    assert programs
    assert [name for name in {*links, *programs} if not (ROOT / name).exists()] == []
    assert (ROOT / ".ci/run").exists()


def test_the_exit_codes_that_it_names_are_those_of_the_errors() -> None:
    table = dict(re.findall(r"^\| (\d+) \| (.*?) \|$", README.read_text(), flags=re.M))
    assert set(table) == {"0", "1", "2", "3", "4", "5"}
    for error, word in (
        (converter.UsageError, "call is wrong"),
        (converter.InputError, "input is refused"),
        (converter.ConverterError, "internal"),
    ):
        assert word in table[str(error.exit_code)]
