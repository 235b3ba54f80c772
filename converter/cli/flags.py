"""Click options for the flags that families declare, and the types of numbers that options take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from ..families import Flag

# An option that may stand alone or have a value: `--qk_norm`, `--qk_norm=False`, `--qk_norm no`.
BOOLEAN: dict[str, Any] = {
    "is_flag": False,
    "flag_value": "true",
    "type": click.BOOL,
    "default": None,
    "metavar": "[BOOL]",
}


class Whole(click.IntRange):
    """A whole number in a range, which errors call an integer."""

    name = "integer"


class Number(click.FloatRange):
    """A number in a range, which errors call a number."""

    name = "number"


def option(flag: Flag) -> click.Option:
    """The option of a flag that a family declares."""
    name, metavar = f"--{flag.name}", flag.metavar
    if flag.type is bool:
        return click.Option([name], help=flag.help, **BOOLEAN)
    kind: Any = value
    if flag.choices:
        kind = click.Choice(flag.choices)
    elif flag.type is int:
        kind, metavar = click.INT if flag.minimum is None else Whole(min=flag.minimum), metavar or "N"
    elif flag.type is float:
        kind, metavar = click.FLOAT, metavar or "X"
    elif flag.type is str:
        kind = click.STRING
    return click.Option([name], type=kind, metavar=metavar, help=flag.help)


def value(text: str) -> Any:
    """A number, or true or false, where it reads as one, else the text; a family says what it takes.

    >>> value("4"), value("True"), value("[1]")
    (4, True, '[1]')
    """

    def constant(text: str) -> NoReturn:
        raise ValueError

    try:
        read = json.loads(text.lower(), parse_constant=constant)
    except ValueError:
        return text
    return read if isinstance(read, bool | int | float) else text
