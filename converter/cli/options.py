"""Commands whose options are written with underscores or hyphens, and stand under titles in `--help`; the options that
several of them share, those of every installed model family, and `--given NAME=VALUE` for those of others."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError, printable
from .flags import BOOLEAN, Number, Whole, option, value

if TYPE_CHECKING:
    from ..families import Flag

Decorator = Callable[[Any], Any]
# In a context's `meta`, where more than the built-in families is asked for: the file of one, '' for those of packages.
_FAMILY = "converter.family"
# Titles in `--help`.
INPUT, MODEL, OUTPUT = "Input", "What a file cannot tell", "Output"
CHOSEN = "weights state_dict_key family"  # of the input
STATED = ("given", "require_evidence")  # of the model
WRITTEN = "null_caption allow_nonfinite allow_overflow allow_zeros"  # likewise, of what writes a model


def underscored(name: str) -> str:
    """`dump-path` as `dump_path`: the existing scripts' spelling is the canonical one."""
    return name.replace("-", "_")


# Flags with hyphens are understood too, and `-h`; values stay as they are.
_SPELLING: dict[str, Any] = {"token_normalize_func": underscored, "help_option_names": ["-h", "--help"]}


class Command(click.Command):
    """A command whose flags may be written with hyphens too.

    `sections`: title -> the names of the options that stand under it in `--help`; all others come last.
    """

    def __init__(self, *args: Any, sections: Mapping[str, str] | None = None, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.sections = {title: names.split() for title, names in (sections or {}).items()}

    def titled(self, ctx: click.Context) -> dict[str, list[str]]:
        """Names of options by the title that they stand under."""
        return self.sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = {str(param.name): param for param in self.get_params(ctx) if isinstance(param, click.Option)}
        sections = self.titled(ctx)
        rest = options.keys() - {name for names in sections.values() for name in names}
        last = {"Other options" if sections else "Options": [name for name in options if name in rest]}
        for title, names in (sections | last).items():
            with formatter.section(title):
                formatter.write_dl([*filter(None, (options[name].get_help_record(ctx) for name in names))])

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        return super().make_context(*args, **_SPELLING | extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for param in self.params:
            if isinstance(param, click.Argument) and ctx.params[str(param.name)] == "":
                raise empty(param.human_readable_name)
        return rest


class Group(click.Group):
    command_class = Command

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        return super().make_context(*args, **{"help_option_names": _SPELLING["help_option_names"]} | extra)


def empty(name: str) -> UsageError:
    """The error for an argument, or an option in backticks, that is no text at all."""
    return UsageError(f"{name} is empty (a variable of the shell that is not set?)")


def boolean(name: str, help: str) -> Decorator:
    """The decorator of a flag that may stand alone or have a value."""
    return click.option(name, help=help, **BOOLEAN)


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

fleet_options = combined(
    click.option("--workers", type=Whole(min=1), metavar="N", help="Several at once, by N processes on this machine."),
    click.option("--cluster", metavar="ADDRESS", help="By the workers of a Dask scheduler, such as tcp://HOST:8786."),
)


lora_alpha = click.option(
    "--lora_alpha",
    type=Number(min=0, min_open=True),
    metavar="N",
    help="Alpha of an adapter whose file does not say it. Default: 8 for the training scripts' files.",
)
allow_partial = click.option(
    "--allow_partial", is_flag=True, help="Leave out what of an adapter cannot be used, and list it."
)


def _with_strength(
    context: click.Context, parameter: click.Parameter, words: tuple[str, ...]
) -> list[tuple[str, float]]:
    """`a.safetensors=0.8` is ("a.safetensors", 0.8); a path that is there is taken as it is, at the strength 1."""
    pairs = []
    for word in words:
        path, equals, strength = word.rpartition("=")
        if not equals or os.path.lexists(word):
            pairs.append((word, 1.0))
            continue
        try:
            pairs.append((path, float(strength)))
        except ValueError:
            raise click.BadParameter(f"{printable(word)}: {printable(strength, 40)!r} is no number") from None
    return pairs


def lora_options(what: str) -> Decorator:
    """Adapters, as `adapters`, with what it takes to read them; `what` says what is done with each."""
    return combined(
        click.option(
            "--lora",
            "adapters",
            multiple=True,
            callback=_with_strength,
            metavar="PATH[=STRENGTH]",
            help=f"{what}, at a strength (default 1). Repeatable.",
        ),
        lora_alpha,
        allow_partial,
    )


def writing_options(overwrite: str) -> Decorator:
    """The options of a command that writes a model; `overwrite` says what that flag replaces."""
    return combined(
        click.option(
            "--dtype",
            type=click.Choice(["float32", "float16", "bfloat16"]),
            metavar="TYPE",
            help="Round the weights to float32, float16 or bfloat16. Default: keep them as they are.",
        ),
        click.option(
            "--null_caption",
            metavar="FILE",
            help="The null caption, if the source has none: .pth, .npz or .safetensors.",
        ),
        click.option("--dry_run", is_flag=True, help="Print the plan and the evidence; write nothing."),
        click.option("--overwrite", is_flag=True, help=overwrite),
        click.option("--allow_nonfinite", is_flag=True, help="Let NaN and infinity through as they are."),
        click.option("--allow_overflow", is_flag=True, help="Let values beyond the range of --dtype become infinity."),
        click.option("--allow_zeros", is_flag=True, help="Accept tensors that are zero throughout."),
        output_options,
    )


class ModelCommand(Command):
    """A command on a model, called with `hyper_parameters`, in which the model's own options are gathered.

    They stand before `--family`, in `--help` under the second title, `MODEL`, with what else is said of the model by
    hand, and come from the families that are installed.
    To look for those of other packages takes longer than all else at the start, and a file that `--family` names is
    run: both are done for an option that is not known, the first for `--help` too.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        taken = {param.name for param in params}
        options = [option(flag) for flag in _flags(ctx) if flag.name not in taken]
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

    def titled(self, ctx: click.Context) -> dict[str, list[str]]:
        own = {param.name for param in super().get_params(ctx)}
        more = [str(param.name) for param in self.get_params(ctx) if param.name not in own]
        first, *others = self.sections.items()
        return dict([first, (MODEL, [*more, *(name for name in STATED if name in own)]), *others])

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


def _read_as(flag: Flag | None, name: str, text: str, ctx: click.Context) -> Any:
    """A value of `--given`, as the option of its flag would read it."""
    try:
        return option(flag).type.convert(text, None, ctx) if flag else value(text)
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
