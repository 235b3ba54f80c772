"""Names of flags in either spelling; values as they are."""

from __future__ import annotations

from typing import Any

import click
import pytest

from converter.cli.options import Command, Group, boolean


@click.command(cls=Command)
@click.option("--dump_path")
@click.option("--dry_run", is_flag=True)
@click.option("--kind", type=click.Choice(["a_b", "c"]))
@boolean("--qk_norm", "")
@click.argument("rest", nargs=-1)
def command(**options: Any) -> None: ...


def parsed(*arguments: str) -> dict[str, Any]:
    return command.make_context("command", list(arguments)).params


DEFAULT = {"dump_path": None, "dry_run": False, "kind": None, "qk_norm": None, "rest": ()}


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        (("--dump-path=a-b_c",), {"dump_path": "a-b_c"}),
        (("--dump_path", "a-b_c"), {"dump_path": "a-b_c"}),
        # A value that looks like a flag is a value, also one that is a flag's other spelling.
        (("--dump_path", "--my-out"), {"dump_path": "--my-out"}),
        (("--dump-path", "--dry-run"), {"dump_path": "--dry-run"}),
        (("--dump_path=--my-out=x-y",), {"dump_path": "--my-out=x-y"}),
        (("--dry-run", "--dump-path", "-o-ut"), {"dry_run": True, "dump_path": "-o-ut"}),
        (("--dry_run", "a-b", "c_d"), {"dry_run": True, "rest": ("a-b", "c_d")}),
        (("--", "--dry-run", "--my-out"), {"rest": ("--dry-run", "--my-out")}),
        (("--qk-norm", "--dry-run"), {"qk_norm": True, "dry_run": True}),
        (("--qk-norm=no",), {"qk_norm": False}),
        (("--kind", "a_b"), {"kind": "a_b"}),
    ],
)
def test_only_names_are_respelt(arguments: tuple[str, ...], made: dict[str, Any]) -> None:
    assert parsed(*arguments) == DEFAULT | made


def test_also_of_a_command_in_a_group() -> None:
    group = Group("group", commands={"two_words": command})
    context = group.make_context("group", ["two_words", "--dump-path", "--my-out"])
    name, found, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    assert name == "two_words"
    assert found is not None
    assert found.make_context("two_words", rest, parent=context).params == DEFAULT | {"dump_path": "--my-out"}


def test_an_unknown_flag_is_an_error() -> None:
    with pytest.raises(click.NoSuchOption, match="--my_out"):
        parsed("--my-out")
