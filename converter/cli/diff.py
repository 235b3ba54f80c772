"""`pixart diff`: how two checkpoints differ."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import click

from .options import Command, output_options
from .output import print_json, progress_bar, say

WEIGHTS = click.Choice(["raw", "ema"])


@click.command(cls=Command, short_help="Say how two checkpoints differ, whatever their layouts.")
@click.argument("a")
@click.argument("b")
@click.option("--weights_a", type=WEIGHTS, help="Which weights of A, if it has both. Default: compare both.")
@click.option("--weights_b", type=WEIGHTS, help="Which weights of B, if it has both. Default: compare both.")
@click.option("--state_dict_key_a", metavar="PATH", help="Where in A the weights are, if it holds several state dicts.")
@click.option("--state_dict_key_b", metavar="PATH", help="Where in B the weights are, if it holds several state dicts.")
@click.option("--rounding_ok", is_flag=True, help="Exit with 0 also if one is the other, rounded to fewer bits.")
@click.option("--all", "everything", is_flag=True, help="List every tensor that differs, each on its own line.")
@output_options
def diff(rounding_ok: bool, everything: bool, as_json: bool, quiet: bool, **words: Any) -> None:
    """Say how the checkpoints A and B differ, tensor by tensor: identical, the same but for rounding, or how far apart
    (relative L2: the norm of the difference over the larger of both norms).

    Each may be any accepted file or folder, in the original's layout or in diffusers'. Where one holds raw and EMA
    weights, the answer says which of them the other one is, or is nearest to. Of two files that both do, like is
    compared with like.

    Exit codes: 0 identical, 1 they differ, 2 usage, 3 input rejected, 5 internal error.
    """
    from ..checkpoint.write.interrupt import interruptible
    from ..comparison import diff as run
    from .differences import lines

    # The bar is wiped before anything else is printed, an error too.
    with ExitStack() as bars, interruptible():
        result = run(**words, progress=progress_bar(bars, quiet, "comparing", unit="B"))
    same = result.same(rounding_ok=rounding_ok)
    if as_json:
        print_json({"ok": same} | result.as_dict())
    elif not quiet:
        for line in lines(result, everything):
            say(line)
    if not same:
        raise click.exceptions.Exit(1)
