"""`--given NAME=VALUE`: the hyper-parameters that a family by others calls its own, which have no flag here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from inspect import signature
from typing import Any, NoReturn

import click

from ..errors import UsageError, printable
from .options import underscored


def _read(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> dict[str, Any]:
    """`num_heads=4` is {"num_heads": 4}."""
    made: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = underscored(name)
        if not equals or not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise click.BadParameter(f"{printable(word)} is not of the form NAME=VALUE")
        if name in made:
            raise click.BadParameter(f"{name} is there twice")
        made[name] = _value(value)
    return made


def _value(text: str) -> Any:
    """A number, or true or false, where it reads as one, else the text; a family says what it takes."""

    def constant(text: str) -> NoReturn:
        raise ValueError

    try:
        value = json.loads(text.lower(), parse_constant=constant)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


given = click.option(
    "--given",
    multiple=True,
    callback=_read,
    metavar="NAME=VALUE",
    help="A hyper-parameter of the family that has no flag here, such as num_heads=4. Repeatable.",
)


def beside(options: dict[str, Any], call: Callable[..., Any]) -> dict[str, Any]:
    """The options of a command with what `--given` states among them, as `call` takes both.

    Raises: `UsageError` for the name of something else.
    """
    own = {name: value for name, value in options.items() if name != "given"}
    stated: dict[str, Any] = options["given"]
    for name in stated:
        if name in own:
            raise UsageError(f"--given {name}: say --{name}")
        if name in {*signature(call).parameters, "base"}:  # that is what a parity.toml's paths are relative to
            raise UsageError(f"--given {name}: not the name of a hyper-parameter")
    return own | stated
