"""`pixart doctor`: which part is at fault if pictures are bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .options import CHOSEN, INPUT, ModelCommand, family, given, output_options, weights_options
from .output import print_json, say

if TYPE_CHECKING:
    from ..pipelines.checks import Problem


@click.command(
    cls=ModelCommand,
    short_help="Say which part is at fault if pictures are bad.",
    sections={INPUT: f"original {CHOSEN}"},
)
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
    from ..pipelines.doctor import diagnose

    with interruptible():
        result = _report(diagnose(path, **words))
    if as_json:
        print_json(result)
    elif not quiet:
        width = max(len(part["part"]) for part in result["parts"])
        for part, before in zip(result["parts"], [{"part": ""}, *result["parts"]], strict=False):
            name = "" if part["part"] == before["part"] else part["part"]
            verdict = "FAULT" if part["verdict"] == "fault" else part["verdict"]
            say(f"{name:<{width}}  {verdict}{': ' if part['words'] else ''}{part['words']}", result=True)
            for title in ("evidence", "remedy"):
                if part[title]:
                    say(f"{'':<{width}}    {title}: {part[title]}", result=True)
    if not result["ok"]:
        raise click.exceptions.Exit(1)


def _report(problems: Mapping[str, list[Problem]]) -> dict[str, Any]:
    """What was found, JSON-ready: a part has one entry for each of its problems, or one that says "ok"."""
    parts = []
    for part, those in problems.items():
        entries = [{"verdict": "fault" if problem.fault else "remark"} | asdict(problem) for problem in those]
        for entry in entries or [{"verdict": "ok", "words": "", "evidence": "", "remedy": ""}]:
            parts.append({"part": part} | {name: value for name, value in entry.items() if name != "fault"})
    return {"ok": all(part["verdict"] != "fault" for part in parts), "parts": parts}
