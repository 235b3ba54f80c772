"""`pixart diff`: how two checkpoints differ."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import click

from .options import Command, json_option
from .output import print_json, say

WEIGHTS = click.Choice(["raw", "ema"])


@click.command(cls=Command, short_help="Say how two checkpoints differ, whatever their layouts.")
@click.argument("a")
@click.argument("b")
@click.option("--weights_a", type=WEIGHTS, help="Which weights of A, where it has both. Default: both are compared.")
@click.option("--weights_b", type=WEIGHTS, help="Which weights of B, where it has both. Default: both are compared.")
@click.option(
    "--state_dict_key_a", metavar="PATH", help="Where in A the weights lie, where it holds several state dicts."
)
@click.option("--state_dict_key_b", metavar="PATH", help="Where in B, likewise.")
@click.option("--rounding_ok", is_flag=True, help="Exit with 0 also where one is the other rounded to fewer bits.")
@click.option("--all", "everything", is_flag=True, help="List every tensor that differs, each on its own line.")
@json_option
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.pass_context
def diff(
    context: click.Context,
    /,
    a: str,
    b: str,
    weights_a: str | None,
    weights_b: str | None,
    state_dict_key_a: str | None,
    state_dict_key_b: str | None,
    rounding_ok: bool,
    everything: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Say how the checkpoints A and B differ, tensor by tensor: identical, the same but for rounding, or how far apart
    (relative L2: the norm of the difference over the larger of both norms).

    Each may be any accepted file or folder, in the original's layout or in diffusers'. Where one holds raw and EMA
    weights, the answer says which of them the other one is, or is nearest to. Of two files that both do, like is
    compared with like.

    Exit codes: 0 identical, 1 they differ, 2 usage, 3 input rejected, 5 internal.
    """
    from ..checkpoint.write.interrupt import interruptible
    from ..comparison import diff as run
    from .differences import lines
    from .progress import bar

    # The bar is wiped before anything else is printed, an error too.
    with ExitStack() as shown, interruptible():
        found = run(
            a,
            b,
            weights_a=weights_a,
            weights_b=weights_b,
            state_dict_key_a=state_dict_key_a,
            state_dict_key_b=state_dict_key_b,
            progress=None if quiet else partial(bar, shown, what="comparing", unit="B", unit_scale=True),
        )
    same = found.same(rounding_ok=rounding_ok)
    if as_json:
        print_json({"ok": same} | found.as_dict())
    elif not quiet:
        for line in lines(found, everything):
            say(line)
    if not same:
        raise click.exceptions.Exit(1)
