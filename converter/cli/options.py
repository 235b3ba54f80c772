"""Flags with underscores or hyphens, real booleans, and commands that accept both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def underscored(name: str) -> str:
    """`dump-path` as `dump_path`: the existing scripts' spelling is the canonical one."""
    return name.replace("-", "_")


# Flags with hyphens are understood too, and `-h`; values stay as they are.
_SPELLING: dict[str, Any] = {"token_normalize_func": underscored, "help_option_names": ["-h", "--help"]}


class Command(click.Command):
    """A command whose flags may be written with hyphens too."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        return super().make_context(*args, **_SPELLING | extra)


class Group(click.Group):
    command_class = Command

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        return super().make_context(*args, **{"help_option_names": _SPELLING["help_option_names"]} | extra)


def boolean(name: str, help: str) -> Callable[[Any], Any]:
    """A flag that may stand alone or have a value: `--qk_norm`, `--qk_norm=False`, `--qk_norm no`."""
    return click.option(
        name, is_flag=False, flag_value="true", type=click.BOOL, default=None, metavar="[BOOL]", help=help
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
