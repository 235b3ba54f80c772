"""`pixart new-family`: a first draft of a model family, out of two lists of keys."""

from __future__ import annotations

import keyword
from pathlib import Path

import click

from .options import Command, json_option, weights_options
from .output import print_json, say


@click.command(cls=Command, short_help="Draft a model family from a checkpoint and its target.")
@click.argument("name")
@click.argument("file")
@click.option(
    "--target",
    metavar="PATH",
    help="The target: a diffusers folder, any checkpoint in that layout, or a .json of keys and shapes. "
    "Default: each path maps to itself, for you to edit.",
)
@weights_options
@click.option("--out", metavar="FILE.py", help="The module to write. Default: NAME.py.")
@click.option("--overwrite", is_flag=True, help="Replace that file if it exists.")
@json_option
def new_family(
    name: str,
    file: str,
    target: str | None,
    weights: str | None,
    state_dict_key: str | None,
    out: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draft the model family NAME for the checkpoint FILE (or a .json of keys and shapes): a module with the table of
    keys, what the file shows, and the config.

    Keys are paired by block, shape and name. What is not certain, a row or a hyper-parameter, ends in `# ?`, with what
    else it may be in the comment above it; what has no partner is listed. The draft is used by its path: pixart inspect
    FILE --family NAME.py.

    Exit codes: 0 done, 2 usage, 3 input rejected, 5 internal error.
    """
    from dataclasses import asdict, replace

    from ..checkpoint.file import present
    from ..checkpoint.text_writer import write_text
    from ..errors import UsageError, printable
    from ..families import families
    from ..hub import local
    from ..new_family import draft, read_keys, render
    from .printing import draft_lines

    if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise UsageError(f"NAME {printable(name)}: use lower-case letters, digits and underscores, such as my_dit")
    if name in families():
        raise UsageError(f"NAME {name}: a family of that name already exists; choose another")
    path = Path(out or f"{name}.py")
    if path.suffix != ".py":
        raise UsageError(f"`out` {printable(path)}: must be a Python module (.py)")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{printable(path)}: cannot be written there")
    if present(path) and not overwrite:
        raise UsageError(f"{printable(path)}: exists; use `overwrite` to replace it")
    drafted = draft(read_keys(local(file), weights, state_dict_key), read_keys(local(target)) if target else None)
    write_text(path, render(name, drafted))
    if as_json:
        content = asdict(replace(drafted, config={})) | {"config": drafted.config}  # that may be nested deeply
        print_json({"ok": True, "path": str(path), "unsure": drafted.unsure} | content)
        return
    for line in draft_lines(path, drafted):
        say(line)
