"""Flags with underscores or hyphens, real booleans, and commands that accept both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def underscored(arguments: list[str]) -> list[str]:
    """`--dump-path=a-b` as `--dump_path=a-b`: the existing scripts' spelling is the canonical one."""
    made: list[str] = []
    for i, argument in enumerate(arguments):
        if argument == "--":
            return made + arguments[i:]
        flag, equals, value = argument.partition("=")
        made.append("--" + flag[2:].replace("-", "_") + equals + value if flag.startswith("--") else argument)
    return made


class Command(click.Command):
    """A command whose flags may be written with hyphens too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, underscored(args))


class Group(click.Group):
    command_class = Command


def boolean(name: str, help: str) -> Callable[[Any], Any]:
    """A flag that may stand alone or have a value: `--qk_norm`, `--qk_norm=False`, `--qk_norm no`."""
    return click.option(
        name, is_flag=False, flag_value="true", type=click.BOOL, default=None, metavar="[BOOL]", help=help
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
