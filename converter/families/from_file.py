"""A family out of a file that the user names: his own code, run as such, like a package that he installed."""

from __future__ import annotations

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from ..errors import ConverterError, UsageError, printable
from .base import Family

_LOADED: dict[Path, tuple[tuple[int, int], Family]] = {}


def is_file(name: str) -> bool:
    """Whether a family is named by its file."""
    return name.endswith(".py")


def load(name: str, registry: dict[str, Family]) -> Family:
    """The family that a file registers, else its `FAMILY`, else the only one in it. It is in the registry afterwards.

    The file is run once, and again when it has changed. Modules that lie beside it can be imported, by itself and
    by what it names to be imported later (`parity="my_parity:PARITY"`); none of them hides another of that name.

    Raises: `UsageError` for a file that is not there, does not run, or makes no family or several.
    """
    path = Path(name).absolute()
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"`family` {printable(name)}: {getattr(error, 'strerror', '') or error}") from None
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    stamp = (status.st_mtime_ns, status.st_size)
    if path not in _LOADED or _LOADED[path][0] != stamp:
        _LOADED[path] = stamp, _run(path, name, registry)
    family = _LOADED[path][1]
    registry[family.name] = family
    return family


def _run(path: Path, name: str, registry: dict[str, Family]) -> Family:
    """Run it. What it registers besides the family is forgotten again, as all of it is where it fails."""
    from traceback import extract_tb

    spec = spec_from_file_location(f"converter_family_{path.stem}", path)
    assert spec
    assert spec.loader
    module, before = module_from_spec(spec), dict(registry)
    try:
        spec.loader.exec_module(module)
        registered = [family for key, family in registry.items() if before.get(key) is not family]
    except (Exception, SystemExit) as error:  # somebody's code: whatever it raises, say where
        lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(path)]
        # A module has no place of its own in the trace of what does not even compile.
        line = lines[-1] if lines else error.lineno if isinstance(error, SyntaxError) else None
        said = error.msg if isinstance(error, SyntaxError) else error
        what = str(error) if isinstance(error, ConverterError) else f"{type(error).__name__}: {said}"
        where = f"line {line}: " if line else ""
        raise UsageError(f"`family` {printable(name)}: {where}{printable(what, 1000)}") from error
    finally:
        registry.clear()
        registry.update(before)
    named = [family for key, family in vars(module).items() if key == "FAMILY" and isinstance(family, Family)]
    others = {id(family): family for family in vars(module).values() if isinstance(family, Family)}
    chosen = registered or named or list(others.values())
    if len(chosen) != 1:
        count = f"{len(chosen)} families in it: which one is it? Call it FAMILY, and register no other"
        raise UsageError(f"`family` {printable(name)}: {count if chosen else 'no converter.Family in it'}")
    return chosen[0]
