"""Options with underscores or hyphens, real booleans, and the options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Any], Any]


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


# A flag that may stand alone or have a value: `--qk_norm`, `--qk_norm=False`, `--qk_norm no`.
_BOOLEAN: dict[str, Any] = {
    "is_flag": False,
    "flag_value": "true",
    "type": click.BOOL,
    "default": None,
    "metavar": "[BOOL]",
}


def boolean(name: str, help: str) -> Decorator:
    """The decorator of a flag that may stand alone or have a value."""
    return click.option(name, help=help, **_BOOLEAN)


def boolean_option(name: str, help: str) -> click.Option:
    """The same as an option by itself."""
    return click.Option([name], help=help, **_BOOLEAN)


def together(*decorators: Decorator) -> Decorator:
    """Several decorators as one, in the order in which `--help` lists them."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
quiet_option = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
shown = together(json_option, quiet_option)

which = together(
    click.option(
        "--weights", type=click.Choice(["raw", "ema"]), help="Which weights, if a file has both. Default: raw."
    ),
    click.option(
        "--state_dict_key",
        metavar="PATH",
        help="Where in the file the weights are, such as app.model, if it holds several state dicts.",
    ),
)

family = click.option(
    "--family",
    metavar="NAME",
    help="Require this model family instead of recognising it: its name, or your own file that defines it (NAME.py).",
)

require_evidence = boolean(
    "--require_evidence",
    "Refuse an assumption that can change an output, and name the flag that states the value instead.",
)

writing = together(
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help="Round the weights to this type, to nearest. Default: keep them as they are.",
    ),
    click.option("--null_caption", metavar="FILE", help="A file with the null caption, if the source has none."),
    click.option("--dry_run", is_flag=True, help="Print the plan and the evidence; write nothing."),
    click.option(
        "--overwrite", is_flag=True, help="Replace an existing file, or a folder that an earlier conversion wrote."
    ),
    click.option("--allow_nonfinite", is_flag=True, help="Convert NaN and infinity as they are."),
    click.option("--allow_overflow", is_flag=True, help="Let values beyond the range of --dtype become infinity."),
    click.option("--allow_zeros", is_flag=True, help="Accept tensors that are zero throughout."),
    shown,
)
