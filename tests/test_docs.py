"""What the documentation shows works: every docstring example; of the README and `docs/` the commands, the Python, what
is printed, flags and links."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
import torch
from doc_runner import PROGRAMS, Reader, blocks, commands
from fuzz.__main__ import parser
from makers import ROOT

import converter
from converter import families
from converter.models.pixart.table import KEYS
from converter.parity.ci.settings import load_settings

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


# The README and `docs/`.

PAGES = {path.name: path.read_text() for path in [README, *sorted((ROOT / "docs").glob("*.md"))] if path.exists()}
TEXT = "".join(PAGES.values())


def sections(text: str) -> dict[str, str]:
    """The parts of a page under headings of the second level, the beginning under its title."""
    parts = re.split(r"^## ", text, flags=re.M)
    return {part.partition("\n")[0].removeprefix("# "): part for part in parts}


def words_of(command: str) -> list[str]:
    """The arguments of a command that people would type, without its comment."""
    return shlex.split(command, comments=True)[1:]


def wanted(command: str) -> bool:
    """Whether a command is for files that are here: those that ship, or that an earlier command of the page made."""
    return any(Path(word).exists() for word in words_of(command) if word not in (".", ".[report]"))


RUNNABLE = [
    (page, name)
    for page, text in PAGES.items()
    if page != TUTORIAL.name
    for name, part in sections(text).items()
    if any(language == "python" or "fixtures/" in content for language, content in blocks(part))
]


def test_the_readme_is_short_and_shows_what_is_printed() -> None:
    text = PAGES[README.name]
    assert len(text.splitlines()) <= 250
    assert [language for language, _ in blocks(text)][:4] == ["sh", "text"] * 2
    assert all(f"docs/{page}" in text for page in PAGES if page != README.name)
    assert {page for page, _ in RUNNABLE} >= {"README.md", "converting.md", "library.md", "parity.md"}


@pytest.mark.parametrize(("page", "section"), RUNNABLE, ids=[f"{page}: {name}" for page, name in RUNNABLE])
def test_a_page_can_be_followed(
    page: str, section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]
) -> None:
    """Each section from its top, in a fresh folder: the commands on files that are there, then the Python, one session;
    and what it shows is what is printed."""
    monkeypatch.setattr(families, "_REGISTERED", {})  # what an example registers is forgotten again
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    text = sections(PAGES[page])[section]
    reader = Reader(f"{page}: {section}", tmp_path, ambient(tmp_path), cli)
    assert reader.follow(text, wanted) == len(re.findall(r"^```text$", text, flags=re.M))


def test_the_commands_that_it_shows_can_be_given() -> None:
    """Every command of every page, also where its files are nobody's: the options exist, and no argument is missing."""
    from converter.cli.main import pixart

    shown = [
        line
        for text in PAGES.values()
        for language, content in blocks(text)
        if language == "sh"
        for line in commands(content)
    ]
    shown += re.findall(r"`((?:convert-)?pixart [^`]*--[^`]*)`", TEXT)
    shown += [line.strip() for content in yaml_runs() for line in commands(content)]
    seen = 0
    for line in shown:
        program, *arguments = shlex.split(line, comments=True)
        if program not in PROGRAMS:
            continue
        name, *rest = ("convert", *arguments) if program == "convert-pixart" else arguments
        command = pixart.commands[name]
        context = click.Context(command, info_name=name, help_option_names=["-h", "--help"])
        left = command.make_parser(context).parse_args(list(rest))[1]  # raises for an option that there is not
        assert left == [], line
        seen += 1
    assert seen > 15


def yaml_runs() -> list[str]:
    """The scripts of the jobs that are shown."""
    return [
        textwrap.dedent(script)
        for language, content in blocks(PAGES["ci.md"])
        if language == "yaml"
        for script in re.findall(r"run: \|\n((?: .*\n)+)", content)
    ]


def test_the_action_has_the_inputs_that_are_shown() -> None:
    (shown,) = re.findall(r"with: \{ (.*) \}", PAGES["ci.md"])
    inputs = re.findall(r"^  (\w[\w-]*):$", (ROOT / "action.yml").read_text().partition("\noutputs:")[0], flags=re.M)
    named = re.findall(r"(\w+): ", shown)
    assert named
    assert {*named} <= {*inputs}


def test_the_settings_that_are_shown_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Reader("ci.md", tmp_path, {}).follow(sections(PAGES["ci.md"])["parity.toml"])
    settings = load_settings(tmp_path / "parity.toml", today=date(2026, 12, 1))
    assert settings.checkpoints[0]["given"] == {"num_attention_heads": 16}
    assert settings.waivers[0].bound == 3.4


@pytest.mark.slow
def test_the_tutorial_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]) -> None:
    """From its first block to its last, in an empty folder; and what it shows is what is printed."""
    monkeypatch.setattr(families, "_REGISTERED", {})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    text = TUTORIAL.read_text()
    reader = Reader(TUTORIAL.name, tmp_path, ambient(tmp_path), cli)
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


def test_the_flags_that_are_named_exist() -> None:
    from converter.cli.main import pixart

    options = [
        command.get_params(click.Context(command, help_option_names=["-h", "--help"]))
        for command in pixart.commands.values()
    ]
    known = {flag for command in options for parameter in command for flag in parameter.opts}
    known |= {flag for action in parser()._actions for flag in action.option_strings}  # of bin/fuzz
    bench = subprocess.run([sys.executable, ROOT / "bin" / "bench.py", "--help"], capture_output=True, text=True)
    known |= set(re.findall(r"(?<![\w-])--[a-z]\w*", bench.stdout))
    known |= {"--help", "--ar", "--hw"}  # the last two in prompts
    named = set(re.findall(r"(?<![\w-])--[a-z]\w*", re.sub("hf download .*", "", TEXT)))
    assert named
    assert named <= known


@pytest.mark.parametrize("page", PAGES)
def test_what_is_linked_exists(page: str) -> None:
    folder = README.parent if page == README.name else TUTORIAL.parent
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", without_blocks(PAGES[page])):
        path, _, place = link.partition("#")
        target = folder / path if path else folder / page
        assert target.exists(), link
        assert not place or place in anchors(target.read_text()), link
    programs = re.findall(r"`?\b((?:bin|fixtures)/[\w./-]+\w)", PAGES[page])
    assert [name for name in programs if not (ROOT / name).exists()] == []


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """The places of a page that can be linked to, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(text), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
