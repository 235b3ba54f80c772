"""The order of the rooms: each module imports only from its own room and from rooms below, never in a circle.

The order is read from the table of `docs/architecture.md`, so that documentation and code cannot disagree.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from makers import ROOT
from platforms import names, only_some_have

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


@cache
def imports() -> dict[str, list[tuple[int, str]]]:
    """What each module imports."""
    return {name: list(imported(name, ast.parse(path.read_text()))) for name, path in MODULES.items()}


def test_every_room_stands_in_the_documented_order() -> None:
    assert sorted({room_of(module) for module in MODULES} - {"", "models"}) == sorted(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down(room: str) -> None:
    below = ROOMS[: ROOMS.index(room)]
    up = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        for module, lines in imports().items()
        if room_of(module) == room
        for line, name in lines
        if room_of(name) not in (*below, room) and not name.endswith("._version")
    ]
    assert not up


def test_the_checker_works_without_what_ci_needs_around_it() -> None:
    around = "converter.parity.ci"
    up = [(module, name) for module, lines in imports().items() for _, name in lines if name.startswith(around)]
    assert not [pair for pair in up if pair[0].startswith("converter.parity") and not pair[0].startswith(around)]


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {name for _, name in lines if name != module} for module, lines in imports().items()}
    # A package's `__init__` gathers the names of its modules, which may import siblings by way of the package's name.
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


# What differs between systems.


SYSTEM = "converter.system"
ASKS_PROC = (SYSTEM, "converter.pipelines.memory")  # where psutil answers on other systems
DIFFERENT = {"os": {"open", "rename", "renames", "replace", "readlink", "fsync"}}  # there everywhere, and not the same
OF_PATHS = {"rename", "readlink", "chmod", "lchmod"}


def not_everywhere(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of what only some systems have, or have in another way."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                linux = names(alias.name, "linux")
                if alias.name == "ctypes" or (linux and linux <= only_some_have(alias.name)):
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            lacking = only_some_have(node.module) | DIFFERENT.get(node.module, set())
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names if alias.name in lacking)
        elif isinstance(node, ast.Attribute):
            of = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in only_some_have(of) | DIFFERENT.get(of, set()):
                yield node.lineno, f"{of}.{node.attr}"
            elif node.attr in OF_PATHS and of != "system":
                yield node.lineno, f".{node.attr}"


@pytest.mark.parametrize("code", [
    "import resource", "import ctypes", "import fcntl", "import pwd", "from os import preadv", "os.preadv", "os.pwrite",
    "os.statvfs", "os.O_NONBLOCK", "os.O_CLOEXEC", "os.sysconf", "os.open", "os.rename",
    "os.replace", "signal.SIGHUP", "signal.alarm", "path.rename(other)", "path.chmod(0)", "os.getuid()", "os.fsync",
])  # fmt: skip
def test_what_only_some_systems_have_is_recognised(code: str) -> None:
    assert list(not_everywhere(ast.parse(code)))


@pytest.mark.parametrize("code", ["import signal", "os.path.join", "os.stat", "signal.SIGTERM", "system.rename(a, b)"])
def test_what_all_systems_have_is_left_alone(code: str) -> None:
    assert not list(not_everywhere(ast.parse(code)))


def test_what_only_some_systems_have_stands_in_one_module() -> None:
    found = {module: list(not_everywhere(ast.parse(path.read_text()))) for module, path in MODULES.items()}
    assert found.pop(SYSTEM)
    assert not {module: where for module, where in found.items() if where}


def test_the_files_in_which_linux_tells_of_itself_are_read_in_one_place() -> None:
    for module, path in MODULES.items():
        texts = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
        asked = [text for text in texts if isinstance(text, str) and text.startswith(("/proc/", "/sys/", "/dev/"))]
        assert not asked or module in ASKS_PROC


def test_text_files_are_the_same_on_every_system() -> None:
    """UTF-8, and lines that end in one character, whatever is usual there."""
    vague = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            call = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = {keyword.arg for keyword in node.keywords}
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            of_path = call == "read_text" or (call == "write_text" and len(node.args) == 1)
            opens = call in ("open", "fdopen") and texts and "b" not in texts[-1]
            writes = call == "write_text" or (opens and not set("wax+").isdisjoint(texts[-1]))
            if (of_path or opens) and not {"encoding", *(["newline"] if writes else [])} <= given:
                vague.append((module, node.lineno))
    assert not vague
