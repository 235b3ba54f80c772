"""A family from a file that the user names: the user's own code, run like an installed package."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from hashlib import sha256
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ConverterError, UsageError, printable
from .base import Family

# What the file that is being run registers: it is for whoever named the file, and not for the rest of the process.
FILE_REGISTRY: ContextVar[dict[str, Family]] = ContextVar("registered by a file")
_IN_USE: list[str] = []  # the folder of the file that was named last, where it was not on the path before
_PACKAGE = "converter_family_"
_LOADED: dict[Path, tuple[list[tuple[Path, int, int]], Family]] = {}


def is_file(name: str) -> bool:
    """Whether a family is named by its file."""
    return name.endswith(".py")


def load(name: str) -> Family:
    """The family that a file registers, else its `FAMILY`, else the only one in it. It is in no registry afterwards.

    The file is run once, and again when it, or what lies beside it, has changed. Modules that lie beside it can be
    imported, by itself and by what it names to be imported later: as of its package (`from .net import MyNet`,
    `parity=".parity:PARITY"`), or by their names alone (`parity="my_parity:PARITY"`), where none of them hides another
    of that name.

    Raises: `UsageError` for a file that is not there, does not run, or makes no family or several.
    """
    path = Path(name).absolute()
    try:
        os.stat(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"`family` {printable(name)}: {getattr(error, 'strerror', '') or error}") from None
    _use_folder(path.parent)
    stamps = []
    for file in source_files(path.parent):
        with suppress(OSError):  # it went while we looked
            stamps.append((file, os.stat(file).st_mtime_ns, os.stat(file).st_size))
    if path not in _LOADED or _LOADED[path][0] != stamps:
        if _IN_USE and path in _LOADED:
            _forget(path.parent, lambda name: True)
        _LOADED[path] = stamps, _run(path, name)
    return _LOADED[path][1]


def imported(family: Family, name: str) -> Any:
    """An attribute of a family that may be the place to import it from, "package.module:NAME" or ".module:NAME".

    Raises: `UsageError` where it cannot be imported.
    """
    place = getattr(family, name)
    if not isinstance(place, str):
        return place
    module, _, attribute = place.partition(":")
    use_folder_of(family)
    try:
        return getattr(import_module(module, family.describe.__module__.rpartition(".")[0]), attribute)
    except (Exception, SystemExit) as error:  # somebody's code
        if module.startswith("converter."):
            raise
        reason = printable(f"{type(error).__name__}: {error}", 1000)
        raise UsageError(f"`family` {family.name}: its {name} {printable(place)}: {reason}") from error


def use_folder_of(family: Family) -> None:
    """Let the modules beside a family in a file be imported by their names. Those of the family that was used before,
    where they are called alike, are forgotten."""
    module = family.describe.__module__
    if module.startswith(_PACKAGE):
        _use_folder(Path(str(sys.modules[module].__file__)).parent)


def _use_folder(folder: Path) -> None:
    if [str(folder)] == _IN_USE and str(folder) in sys.path:
        return
    for before in _IN_USE:
        sys.path[:] = [place for place in sys.path if place != before]
        _forget(Path(before), lambda name: any((folder / each).exists() for each in (name, f"{name}.py")))
    _IN_USE[:] = [] if str(folder) in sys.path else [str(folder)]
    sys.path.extend(_IN_USE)


def _forget(folder: Path, wanted: Callable[[str], bool]) -> None:
    """Forget the modules that were imported out of a folder, and not out of an environment in it, whose first name is
    wanted."""
    files = {str(file) for file in source_files(folder)}
    for name, module in [*sys.modules.items()]:
        own = getattr(module, "__file__", None) in files and name != "__main__" and not name.startswith(_PACKAGE)
        if own and wanted(name.partition(".")[0]):
            del sys.modules[name]


def source_files(folder: Path) -> list[Path]:
    """All Python source in a folder, but for hidden folders and environments in it."""
    paths = []
    for place, folders, names in os.walk(folder):
        skipped = ("site-packages", "dist-packages", "node_modules")
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skipped)
        paths += [Path(place, name) for name in sorted(names) if name.endswith(".py")]
    return [path for path in paths if path.is_file()]


def _run(path: Path, name: str) -> Family:
    from traceback import extract_tb

    package = _package(path)
    spec = spec_from_file_location(f"{package}.{path.stem}", path)
    assert spec
    assert spec.loader
    module, registered = module_from_spec(spec), dict[str, Family]()
    sys.modules[spec.name] = module
    token = FILE_REGISTRY.set(registered)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # somebody's code: whatever it raises, say where
        lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(path)]
        what = str(error) if isinstance(error, ConverterError) else f"{type(error).__name__}: {error}"
        if isinstance(error, SyntaxError):  # a module has no place of its own in the trace of what does not compile
            lines, what = lines or [error.lineno], f"{type(error).__name__}: {error.msg}"
        where = f"line {lines[-1]}: " if lines and lines[-1] else ""
        raise UsageError(f"`family` {printable(name)}: {where}{printable(what, 1000)}") from error
    finally:
        FILE_REGISTRY.reset(token)
    there = {key: family for key, family in vars(module).items() if isinstance(family, Family)}
    named = [family for key, family in there.items() if key == "FAMILY"]
    chosen = list(registered.values()) or named or list({id(family): family for family in there.values()}.values())
    if len(chosen) != 1:
        count = f"{len(chosen)} families in it: which one is it? Call it FAMILY, and register no other"
        raise UsageError(f"`family` {printable(name)}: {count if chosen else 'no converter.Family in it'}")
    return chosen[0]


def _package(path: Path) -> str:
    """The name of a package of a file and of what lies beside it: the modules of two families may be called alike."""
    package = ModuleType(f"{_PACKAGE}{sha256(os.fsencode(path)).hexdigest()[:16]}")
    package.__path__ = [str(path.parent)]
    for name in [name for name in sys.modules if name == package.__name__ or name.startswith(f"{package.__name__}.")]:
        del sys.modules[name]  # they may have changed with it
    sys.modules[package.__name__] = package
    return package.__name__
