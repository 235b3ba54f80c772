"""The registry of model families: built in, registered by a call, in a file of the user, or brought by another package.

Another package adds a family by an entry point:

    [options.entry_points]
    converter.families =
        mine = my_package.my_family:FAMILY
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import ConverterError, UsageError, printable
from ..mapping import KeyMapping
from . import from_file
from .base import Family, Finding, Findings, Flag, State
from .known import ADAPTER, modified_weights, named

if TYPE_CHECKING:
    from ..checkpoint.key_names import Tables  # which every start of a command would pay for

MODELS = "converter.models"
_REGISTERED: dict[str, Family] = {}


def register(family: Family) -> None:
    """Add a family, or replace the one of that name. In a file that `--family` names, it is for that call alone."""
    if not isinstance(family, Family):
        raise TypeError(f"a family is a converter.families.Family, not {type(family).__name__}")
    from_file.FILE_REGISTRY.get(_REGISTERED)[family.name] = family


@cache
def _built_in() -> dict[str, Family]:
    """The families of `converter.models`, by name like those of any package: this package imports no user of it."""
    models = import_module(MODELS)
    places = (place.split(":") for place in models.FAMILIES)
    built_in: list[Family] = [getattr(import_module(f"{MODELS}.{module}"), name) for module, name in places]
    return {family.name: family for family in built_in}


@cache
def _from_packages() -> dict[str, Family]:
    from importlib.metadata import entry_points

    by_name = {}
    for point in entry_points(group="converter.families"):
        try:
            family = point.load()
        except (Exception, SystemExit) as error:  # somebody else's code: whatever it raises, say whose it is
            raise ConverterError(
                f"the family {point.name} ({point.value}) cannot be loaded: {printable(error)}"
            ) from error
        if not isinstance(family, Family):
            raise ConverterError(f"the entry point {point.name} ({point.value}) is not a converter.families.Family")
        by_name[family.name] = family
    return by_name


def installed(*, packages: bool = True) -> dict[str, Family]:
    """The built-in families by name, and those that other packages bring."""
    return _built_in() | (_from_packages() if packages else {})


def families(*, packages: bool = True) -> dict[str, Family]:
    """Every family by name, built-in ones first; one registered under the same name takes its place."""
    return installed(packages=packages) | _REGISTERED


def find(name: str) -> Family:
    """The family of that name or, where it ends in `.py`, the one in that file: the user's own code, which is run.

    Raises: `UsageError` where there is none.
    """
    if not isinstance(name, str):  # from Python anything may come
        raise UsageError(f"`family` {printable(repr(name), 60)}: must be str, not {type(name).__name__}")
    if from_file.is_file(name):
        return from_file.load(name)
    known = families()
    if name not in known:
        there = ", ".join(sorted(known))
        raise UsageError(f"`family` {printable(name)}: unknown; there are {there}, or a file NAME.py of yours")
    return known[name]


def _at_hand(insisted: Family | None) -> Iterator[list[Family]]:
    """The families in question, those in packages later: looking for entry points takes longer than all else here."""
    for packages in (False,) if insisted else (False, True):
        yield [insisted] if insisted else list(families(packages=packages).values())


def tables(insisted: Family | None = None) -> Tables:
    """The names of all families, or of the one insisted on: first of those at hand, then of those in packages too."""

    def batches() -> Iterator[list[KeyMapping]]:
        for at_hand in _at_hand(insisted):
            yield [table for family in at_hand for table in family.tables]

    return batches


def recognise(state: Mapping[str, Any], insisted: Family | None = None) -> tuple[Family, bool] | None:
    """(family, whether the keys are diffusers' already): the one whose table knows most keys.

    A family that has a mark among the keys comes before all others. None where the best knows not even half of them,
    or where the layout is one that is known by name and the family does not know every key of it. With `insisted`,
    only the side of its table is in question.
    """
    for at_hand in _at_hand(insisted):
        marked = [family for family in at_hand if family.marked(state)]
        known, family, diffusers = max(
            (
                (table.known(state), family, diffusers)
                for family in marked or at_hand
                for diffusers, table in ((False, family.keys), (True, family.keys.targets))
            ),
            key=lambda side: side[0],
        )
        if insisted or (state and known == len(state)):
            return family, diffusers
    table = family.keys.targets if diffusers else family.keys
    strange = (
        modified_weights(key for key in state if table.row_of(key) is None)
        if marked
        else not state or known * 2 < len(state) or other_model(state, family, diffusers)
    )
    return None if strange else (family, diffusers)


def other_model(state: Mapping[str, Any], family: Family, diffusers: bool) -> str:
    """What a state dict not of this family is, if its layout is known; else ''."""
    table = family.keys.targets if diffusers else family.keys
    kind = named(state, lambda key: table.row_of(key) is not None)
    return "" if kind.startswith(f"a {family.title} transformer") else kind


__all__ = [
    "ADAPTER",
    "Family",
    "Finding",
    "Findings",
    "Flag",
    "State",
    "families",
    "find",
    "installed",
    "modified_weights",
    "named",
    "other_model",
    "recognise",
    "register",
    "tables",
]  # fmt: skip
