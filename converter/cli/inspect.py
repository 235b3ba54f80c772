"""`pixart inspect`: what a file is."""

from __future__ import annotations

from typing import Any

import click

from .options import CHOSEN, INPUT, ModelCommand, family, given, json_option, lora_alpha, weights_options
from .output import print_json, say


@click.command(
    cls=ModelCommand,
    short_help="Say what a checkpoint is, from its index.",
    sections={INPUT: f"{CHOSEN} lora_alpha deep"},
)
@click.argument("path")
@weights_options
@family
@given
@lora_alpha
@click.option(
    "--deep",
    is_flag=True,
    help="Read every byte: checksums, NaN and infinity, zeros, and whether it is what a record says.",
)
@json_option
def inspect(path: str, as_json: bool, **words: Any) -> None:
    """Say what the checkpoint at PATH is: container, family, every hyper-parameter with its evidence, what a conversion
    would drop or keep in the sidecar, and what prevents one. Of the tensors, only a few elements of the
    positional table are read, without verifying their checksum; a conversion verifies them, and so does --deep. A table
    that these elements do not explain is read whole.

    Of an adapter (LoRA): its spelling, the tool that wrote it, the model that it is for, ranks and scales with where
    they are from, and what stands against using it.

    PATH is a file or a folder, or, if nothing is there, hf://OWNER/NAME[@REVISION][/FILE] or OWNER/NAME on the hub, or
    a URL such as s3://BUCKET/FILE.

    Exit codes: 0 for any file that can be read, 2 usage, 3 input rejected, 5 internal error.
    """
    from ..errors import as_flags
    from ..jobs.adapters import inspect as run
    from ..remote import fetched, shown
    from .printing import inspection_lines

    with fetched(path, hub=True) as place:
        report = run(place, **words)
    if str(place) != path:
        report["source"]["name"] = shown(path)  # in the cache, a folder is called after its commit
    report["needs"], report["problems"] = as_flags(report["needs"]), [*map(as_flags, report["problems"])]
    if as_json:
        print_json({"ok": True} | report)
    else:
        for line in inspection_lines(report):
            say(line, result=True)
