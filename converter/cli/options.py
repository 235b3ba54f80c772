"""Options with underscores or hyphens, real booleans, those that several commands share, those for the hyper-parameters
of every installed model family, and `--given NAME=VALUE` for those of others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..errors import UsageError, printable

if TYPE_CHECKING:
    from ..families import Flag

Decorator = Callable[[Any], Any]
# In a context's `meta`, where more than the built-in families is asked for: the file of one, '' for those of packages.
_FAMILY = "converter.family"


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


def combined(*decorators: Decorator) -> Decorator:
    """Several decorators as one, in the order in which `--help` lists them."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
quiet_option = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
output_options = combined(json_option, quiet_option)

weights_options = combined(
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

writing_options = combined(
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
    output_options,
)


class ModelCommand(Command):
    """A command on a model, called with `hyper_parameters`, in which the model's own options are gathered.

    They stand before `--family`, and come from the families that are installed. To look for those of other packages
    takes longer than all else at the start, and a file that `--family` names is run: both are done for an option that
    is not known, the first for `--help` too.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        taken = {param.name for param in params}
        options = [_option(flag) for flag in _flags(ctx) if flag.name not in taken]
        place = next((i for i, param in enumerate(params) if param.name == "family"), len(params))
        return [*params[:place], *options, *params[place:]]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from ..families import find

        try:
            rest = super().parse_args(ctx, [*args])
        except click.NoSuchOption:
            ctx.meta[_FAMILY] = next((word for word in _words_after("--family", args) if word.endswith(".py")), "")
            rest = super().parse_args(ctx, args)
        given, file = ctx.params.pop("given"), ctx.params["family"] or ""
        flags = find(file).flags if given and file.endswith(".py") else {}
        for name in given:
            if ctx.params.get(name) is not None or name in ctx.params.keys() - flags.keys():
                raise UsageError(f"`given` {name}: use `{name}`")
        stated = {name: _read_as(flags.get(name), name, text, ctx) for name, text in given.items()}
        own = {param.name for param in self.params}
        values = {name: ctx.params.pop(name) for name in [*ctx.params] if name not in own}
        ctx.params["hyper_parameters"] = {name: value for name, value in values.items() if value is not None} | stated
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        ctx.meta[_FAMILY] = ""
        super().format_options(ctx, formatter)


def _words_after(option: str, args: list[str]) -> list[str]:
    """The values of an option among arguments that are not parsed yet."""
    joined = [word.partition("=")[2] for word in args if word.startswith(f"{option}=")]
    return joined + [value for word, value in pairwise(args) if word == option]


def _flags(context: click.Context) -> list[Flag]:
    """The hyper-parameters of all families, each once; one that two families declare is described by the first."""
    from ..families import find, installed

    more = context.meta.get(_FAMILY)
    families = [*installed(packages=more is not None).values(), *([find(more)] if more else [])]
    flags: dict[str, Flag] = {}
    for flag in (flag for family in families for flag in family.flags.values()):
        flags.setdefault(flag.name, flag)
    return [*flags.values()]


def _option(flag: Flag) -> click.Option:
    name, metavar = f"--{flag.name}", flag.metavar
    if flag.type is bool:
        return boolean_option(name, flag.help)
    kind: Any = _value
    if flag.choices:
        kind = click.Choice(flag.choices)
    elif flag.type is int:
        kind, metavar = click.INT if flag.minimum is None else click.IntRange(min=flag.minimum), metavar or "N"
    elif flag.type is float:
        kind, metavar = click.FLOAT, metavar or "X"
    elif flag.type is str:
        kind = click.STRING
    return click.Option([name], type=kind, metavar=metavar, help=flag.help)


def _value(text: str) -> Any:
    """A number, or true or false, where it reads as one, else the text; a family says what it takes."""

    def constant(text: str) -> NoReturn:
        raise ValueError

    try:
        value = json.loads(text.lower(), parse_constant=constant)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def _read_as(flag: Flag | None, name: str, text: str, ctx: click.Context) -> Any:
    """A value of `--given`, as the option of its flag would read it."""
    try:
        return _option(flag).type.convert(text, None, ctx) if flag else _value(text)
    except click.BadParameter as error:
        raise click.BadParameter(f"{name}: {error.message}", ctx, param_hint="'--given'") from None


def _read(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> dict[str, str]:
    """`num_heads=4` is {"num_heads": "4"}."""
    stated: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = underscored(name)
        if not equals or not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise click.BadParameter(f"{printable(word)} is not of the form NAME=VALUE")
        if name in stated:
            raise click.BadParameter(f"{name} is given twice")
        stated[name] = value
    return stated


given = click.option(
    "--given",
    multiple=True,
    callback=_read,
    metavar="NAME=VALUE",
    help="A hyper-parameter of a family in a file (NAME.py), such as num_heads=4. Repeatable.",
)
