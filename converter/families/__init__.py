"""The registry of model families: built in, registered by a call, or brought by another package.

Another package adds a family by an entry point:

    [options.entry_points]
    converter.families =
        mine = my_package.my_family:FAMILY
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from ..errors import ConverterError, printable
from .base import Family, Finding, Findings, State
from .known import named

_REGISTERED: dict[str, Family] = {}


def register(family: Family) -> None:
    """Add a family, or replace the one of that name."""
    if not isinstance(family, Family):
        raise TypeError(f"a family is a converter.families.Family, not {type(family).__name__}")
    _REGISTERED[family.name] = family


@cache
def _from_packages() -> dict[str, Family]:
    from importlib.metadata import entry_points

    found = {}
    for point in entry_points(group="converter.families"):
        try:
            family = point.load()
        except Exception as error:  # somebody else's code: whatever it raises, say whose it is
            raise ConverterError(
                f"the family {point.name} ({point.value}) cannot be loaded: {printable(error)}"
            ) from error
        if not isinstance(family, Family):
            raise ConverterError(f"the entry point {point.name} ({point.value}) is not a converter.families.Family")
        found[family.name] = family
    return found


def families() -> dict[str, Family]:
    """Every family by name; a registered one stands before a package's, that before a built-in one."""
    from .pixart import PIXART

    return {PIXART.name: PIXART, **_from_packages(), **_REGISTERED}


def recognise(state: Mapping[str, Any]) -> tuple[Family, bool] | None:
    """(family, whether the keys are diffusers' already): whose table knows most keys, and at least half of them."""
    layouts = [
        (family.keys.targets.known(state) if diffusers else family.keys.known(state), family, diffusers)
        for family in families().values()
        for diffusers in (False, True)
    ]
    known, family, diffusers = max(layouts, key=lambda layout: layout[0])
    return (family, diffusers) if state and known * 2 >= len(state) else None


__all__ = ["Family", "Finding", "Findings", "State", "families", "named", "recognise", "register"]
