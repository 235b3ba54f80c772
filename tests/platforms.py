"""What of the standard library each system has, by the stubs that come with mypy; and `os` as Windows has it."""

from __future__ import annotations

import ast
import ctypes
import errno
import fcntl
import functools
import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from converter import system

_MYPY = find_spec("mypy")
assert _MYPY
assert _MYPY.origin
STUBS = Path(_MYPY.origin).parent / "typeshed" / "stdlib"
SYSTEMS = ("linux", "darwin", "win32")


@functools.cache
def names(module: str, platform: str) -> frozenset[str]:
    """What a module of the standard library defines there; empty where it is missing, or is of another package."""
    place = STUBS / module.replace(".", "/")
    stub = [path for path in (place.with_suffix(".pyi"), place / "__init__.pyi") if path.is_file()]
    there = {"sys": SimpleNamespace(platform=platform, version_info=sys.version_info)}

    def defined(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.If):
                yield from defined(node.body if eval(ast.unparse(node.test), there) else node.orelse)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.ImportFrom):
                yield from (alias.name for alias in node.names if alias.asname == alias.name)  # exported again

    return frozenset(defined(ast.parse(stub[0].read_text()).body)) if stub else frozenset()


def only_some_have(module: str) -> frozenset[str]:
    """Its names on Linux that another system lacks."""
    linux, *others = (names(module, platform) for platform in SYSTEMS)
    return linux - frozenset.intersection(*others)


def _without(module: ModuleType, platform: str) -> dict[str, Any]:
    """A module's names, less those that another system lacks."""
    missing = names(module.__name__, "linux") - names(module.__name__, platform)
    return {name: value for name, value in vars(module).items() if name not in missing}


def _open_in(path: Any) -> bool:
    """Whether this process has the file, or a file in the folder, open."""
    whole = os.path.realpath(os.path.dirname(path)) + os.sep + os.path.basename(path)
    for number in os.listdir("/proc/self/fd"):
        try:
            there = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # that of the listing itself
        if (there == whole or there.startswith(whole + os.sep)) and not os.path.isdir(there):
            return True
    return False


def _error(code: int, number: int, path: Any) -> OSError:
    error = OSError(code, os.strerror(code), os.fspath(path))
    error.winerror = number
    return error


class Windows:
    """Calls as Windows has them, as far as it matters here: by its documentation, and CPython's."""

    O_BINARY = 1 << 40  # no flag of Linux

    def __init__(self) -> None:
        self.flushed: list[str] = []

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        assert flags & self.O_BINARY, "line ends would be changed"
        if os.path.isdir(path):
            raise _error(errno.EACCES, 5, path)
        return os.open(path, flags & ~self.O_BINARY, mode)

    def fsync(self, fd: int) -> None:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # FlushFileBuffers needs the right to write
        self.flushed.append(os.readlink(f"/proc/self/fd/{fd}"))
        os.fsync(fd)

    def rename(self, one: Any, other: Any) -> None:
        if _open_in(one):
            raise _error(errno.EACCES, 32, one)
        if os.path.lexists(other):  # also an empty folder
            raise _error(errno.EEXIST, 183, one)
        os.rename(one, other)

    def replace(self, one: Any, other: Any) -> None:
        if _open_in(one) or _open_in(other) or os.path.isdir(other):
            raise _error(errno.EACCES, 5, one)
        os.replace(one, other)

    def rmdir(self, path: Any) -> None:
        (os.unlink if os.path.islink(path) else os.rmdir)(path)  # also a link to a folder goes

    def readlink(self, path: Any) -> str:
        return "\\\\?\\" + os.readlink(path)


def take_away(patch: pytest.MonkeyPatch, platform: str) -> Windows | None:
    """`converter.system` sees what this system has, and no more; of Windows, the calls that it was given instead.

    Nothing else in the package names what only some systems have, which test_architecture.py proves.
    """
    patch.setattr(system, "sys", SimpleNamespace(platform=platform))
    patch.setattr(system, "signal", SimpleNamespace(**_without(signal, platform)))
    calls = Windows() if platform == "win32" else None
    theirs = {name: getattr(calls, name) for name in dir(calls) if not name.startswith("_")} if calls else {}
    patch.setattr(system, "os", SimpleNamespace(**_without(os, platform) | theirs))
    patch.setattr(system, "WAITS", (0.0,))
    library = ctypes.CDLL

    def loaded(name: str | None, *args: Any, **more: Any) -> Any:
        if name is not None:
            return library(name, *args, **more)
        if calls:
            raise TypeError("argument of type 'NoneType' is not iterable")
        return SimpleNamespace()  # without what only the C library of Linux has

    patch.setattr(ctypes, "CDLL", loaded)
    if calls:
        unlink = os.unlink

        def strict(path: Any, **more: Any) -> None:
            shown = path if more.get("dir_fd") is None else os.path.join(f"/proc/self/fd/{more['dir_fd']}", path)
            if _open_in(shown):
                raise _error(errno.EACCES, 32, path)
            unlink(path, **more)

        patch.setattr(os, "unlink", strict)
    else:
        patch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)  # no command of Linux, which refuses it
    return calls
