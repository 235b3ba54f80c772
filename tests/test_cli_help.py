"""`--help`: every option stands under one title, and a terminal of 80 columns holds all of it."""

from __future__ import annotations

from collections.abc import Callable

import click
import pytest
from makers import Result

from converter.cli.main import pixart
from converter.cli.options import MODEL, Command

Cli = Callable[..., Result]
TITLED = ("convert", "revert", "inspect", "parity", "generate", "doctor")


def sections(text: str) -> dict[str, list[str]]:
    """The names of the options under each title."""
    listed: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            listed[title := line[:-1]] = []
        elif title and line.startswith("  -"):
            listed[title].append(line.split()[0].rstrip(","))
    return listed


@pytest.mark.parametrize("name", TITLED)
def test_every_option_stands_under_one_title(name: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = cli("pixart", name, "--help")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    listed = sections(done.stdout)
    names = [option for options in listed.values() for option in options]
    command = pixart.commands[name]
    own = {option.opts[0] for option in command.params if isinstance(option, click.Option)}
    assert own < set(names)
    assert len(names) == len(set(names))
    assert [*listed][-1] == "Other options"
    assert set(listed["Other options"]) <= {"--json", "--quiet", "-h"}
    assert "--image_size" in listed[MODEL]
    assert "--given" in listed[MODEL]
    assert "Exit codes: " in " ".join(done.stdout.split())


def test_what_a_newcomer_looks_for_in_convert(cli: Cli) -> None:
    listed = sections(cli("convert-pixart", "--help").stdout)
    assert [*listed] == [
        "Input",
        "What a file cannot tell",
        "Output",
        "A whole pipeline",
        "Adapters (LoRA)",
        "Many checkpoints, and a running training",
        "Publish",
        "Other options",
    ]
    assert listed["Input"][0] == "--orig_ckpt_path"
    assert listed["Output"][0] == "--dump_path"
    assert listed["Publish"] == ["--push_to_hub", "--private"]


def test_the_way_back_speaks_of_a_file_only(cli: Cli) -> None:
    shown = " ".join(cli("pixart", "revert", "--help").stdout.split())
    assert "--overwrite Replace an existing file. " in shown
    assert "or a folder" not in shown


def test_a_command_without_titles_is_as_click_has_it() -> None:
    command = Command("plain", params=[click.Option(["--size"], help="How large.")])
    with click.Context(command) as context:
        assert command.get_help(context) == click.Command.get_help(command, context)
    assert sections(command.get_help(click.Context(command))) == {"Options": ["--size", "--help"]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num_attention_heads=four"], "'--num_attention_heads': 'four' is not a valid integer (see "),
        (["--num_attention_heads=0"], "0 is not in the range x>=1 (see "),
        (["--watch_idle=soon"], "'--watch_idle': 'soon' is not a valid number (see "),
    ],
)
def test_a_number_that_is_none(words: list[str], said: str, cli: Cli) -> None:
    done = cli("convert-pixart", "a.pth", "out", *words)
    assert (done.returncode, said in done.stderr) == (2, True)
