"""`pixart inspect`: what a file is."""

from __future__ import annotations

import click

from .conversion_flags import insisted, which
from .options import Command, json_option
from .output import print_json, say


@click.command(cls=Command, short_help="Say what a checkpoint is, from its index.")
@click.argument("path")
@which
@insisted
@click.option(
    "--deep", is_flag=True, help="Read every byte: checksums, NaN and infinity, zeros, and what a record says."
)
@json_option
def inspect(
    path: str, weights: str | None, state_dict_key: str | None, family: str | None, deep: bool, as_json: bool
) -> None:
    """Say what the checkpoint at PATH is: container, family, every hyper-parameter with its evidence, what a conversion
    would drop or keep aside, and what stands against one. Of the tensors, only a few elements of the positional table
    are read, and taken without the proof of their checksum; a conversion verifies them, and so does --deep. A table
    that they do not explain is read whole.

    PATH is a file or a folder; where nothing is there, hf://OWNER/NAME[@REVISION][/FILE] or OWNER/NAME on the hub.
    """
    from ..conversion.inspection import inspect as run
    from ..errors import printable
    from ..hub import local
    from .printing import inspection_lines

    place = local(path)
    made = run(place, weights=weights, state_dict_key=state_dict_key, family=family, deep=deep)
    if str(place) != path:
        made["source"]["name"] = printable(path)  # in the cache, a folder is called after its commit
    if as_json:
        print_json({"ok": True} | made)
    else:
        for line in inspection_lines(made):
            say(line, result=True)
