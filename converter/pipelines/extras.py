"""Packages that not every installation has, asked for before the work that needs them begins."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec

from ..errors import UsageError

_PACKAGES = {"bs4": "beautifulsoup4", "google.protobuf": "protobuf", "PIL": "Pillow"}  # where the names differ


def require(purpose: str, *modules: str, extra: str = "pipeline") -> None:
    """Raises: `UsageError` that says what to install, if one of these modules is missing.

    >>> require("counting sheep", "json", "sheep")
    Traceback (most recent call last):
    converter.errors.UsageError: counting sheep needs sheep: pip install 'convert-pixart[pipeline]'
    """
    missing = [_PACKAGES.get(module, module) for module in modules if not _there(module)]
    if missing:
        raise UsageError(f"{purpose} needs {' and '.join(missing)}: pip install 'convert-pixart[{extra}]'")


def _there(module: str) -> bool:
    with suppress(ModuleNotFoundError):  # of the package that it would be in
        return find_spec(module) is not None
    return False
