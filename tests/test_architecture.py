"""The order of the rooms: each module imports only from its own room and from rooms below, never in a circle.

The order is read from the table of `docs/architecture.md`, so that documentation and code cannot disagree.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from makers import ROOT

PACKAGE = ROOT / "converter"
ROOMS = re.findall(r"^\| `([\w/]+)` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
FACADE = ("__main__", "_version")


def name_of(path: Path) -> str:
    """`converter.mapping.rows` of its file; a package is called as its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The documented room that a module is in, `models/pixart` before `models`; '' for what starts or gathers."""
    parts = module.split(".")[1:]
    named = ["/".join(parts[:2]), *parts[:1]]
    return next((room for room in named if room in ROOMS), "" if not parts or parts[0] in FACADE else parts[0])


def imported(module: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module of this package) of every import, those inside functions and for type checkers included."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from . import audit` imports a module, `from .audit import check` a name of it.
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in dict.fromkeys(names) if name.split(".")[0] == "converter")


IMPORTS = {name: list(imported(name, ast.parse(path.read_text()))) for name, path in MODULES.items()}


def test_every_room_stands_in_the_documented_order() -> None:
    assert sorted({room_of(module) for module in MODULES} - {"", "models"}) == sorted(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down(room: str) -> None:
    below = ROOMS[: ROOMS.index(room)]
    up = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        for module, lines in IMPORTS.items()
        if room_of(module) == room
        for line, name in lines
        if room_of(name) not in (*below, room) and not name.endswith("._version")
    ]
    assert not up


def test_the_checker_works_without_what_ci_needs_around_it() -> None:
    around = "converter.parity.ci"
    up = [(module, name) for module, lines in IMPORTS.items() for _, name in lines if name.startswith(around)]
    assert not [pair for pair in up if pair[0].startswith("converter.parity") and not pair[0].startswith(around)]


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {name for _, name in lines if name != module} for module, lines in IMPORTS.items()}
    # A package's `__init__` gathers the names of its modules, which may import siblings by way of the package's name.
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
