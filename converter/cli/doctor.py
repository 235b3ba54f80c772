"""`pixart doctor`: which part is at fault if pictures are bad."""

from __future__ import annotations

from typing import Any

import click

from .options import ModelCommand, family, given, output_options, weights_options
from .output import print_json, say


@click.command(cls=ModelCommand, short_help="Say which part is at fault if pictures are bad.")
@click.argument("path")
@click.option("--original", metavar="FILE", help="The checkpoint that the transformer was converted from.")
@weights_options
@family
@given
@output_options
def doctor(path: str, as_json: bool, quiet: bool, **words: Any) -> None:
    """Say which part of the pipeline in the folder PATH is at fault if pictures are bad, with the evidence and the
    command that mends it. PATH may also be a transformer's folder, or an original checkpoint.

    Every byte of the weights is read, and the transformer is run once, on a few positions, in the dtype of its files.

    Exit codes: 0 all parts are sound, 1 one is at fault, 2 usage, 3 no pipeline and no model, 5 internal error.
    """
    from ..checkpoint.write.interrupt import interruptible
    from ..pipelines.doctor import diagnose, report

    with interruptible():
        result = report(diagnose(path, **words))
    if as_json:
        print_json(result)
    elif not quiet:
        width, last = max(len(part["part"]) for part in result["parts"]), ""
        for part in result["parts"]:
            name = "" if part["part"] == last else part["part"]
            last = part["part"]
            verdict = "FAULT" if part["verdict"] == "fault" else part["verdict"]
            say(f"{name:<{width}}  {verdict}{': ' if part['words'] else ''}{part['words']}", result=True)
            for title in ("evidence", "remedy"):
                if part[title]:
                    say(f"{'':<{width}}    {title}: {part[title]}", result=True)
    if not result["ok"]:
        raise click.exceptions.Exit(1)
