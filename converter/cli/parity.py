"""`pixart parity`: the comparison, its progress bar, the reports that it writes, and what is printed of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import click

from ..parity.choices import MOST_THREADS, PRECISIONS, PROFILES, SELF_TESTS, WEIGHTS
from .conversion_flags import require_evidence
from .given import beside, given
from .options import Command, boolean, json_option
from .output import print_json, say

DTYPES = click.Choice(PRECISIONS)


@click.command(cls=Command, short_help="Prove that a converted model computes the original's function.")
@click.option(
    "--orig_ckpt_path",
    multiple=True,
    metavar="PATH",
    help="The original checkpoint, a glob, or a folder of checkpoints. Repeatable.",
)
@click.option(
    "--converted_path",
    multiple=True,
    metavar="DIR",
    help="The folder converted from it; {stem}, {name} and {parent} stand for the checkpoint's. One for each.",
)
@click.option("--config", metavar="TOML", help="A parity.toml that lists pairs, their options and waivers.")
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    help="How much is tried. Default: quick, four samples.",
)
@click.option(
    "--family", metavar="NAME", help="The model family that the checkpoint has to be of, or a file that makes it."
)
@click.option("--weights", type=click.Choice(WEIGHTS), help="Which weights. Default: what the conversion record says.")
@click.option(
    "--state_dict_key",
    metavar="PATH",
    help="Where in the original the weights lie, where it holds several state dicts.",
)
@click.option("--num_attention_heads", type=click.IntRange(min=1), metavar="N", help="Heads, in your word.")
@click.option("--image_size", type=click.IntRange(min=8), metavar="PIXELS", help="Resolution, in your word.")
@click.option("--interpolation_scale", type=float, metavar="X", help="Scale of the positions, in your word.")
@boolean("--multi_scale_train", "Whether the model is of the multi-scale class (PixArtMS), in your word.")
@boolean("--kv_compress", "Whether the model compresses keys and values, in your word.")
@boolean("--exact_timesteps", "Of a DiT: compare the model with the line run on it that its conversion's note gives.")
@given
@require_evidence
@click.option("--cast", type=DTYPES, help="The dtype that the conversion rounded the weights to, where it did.")
@click.option("--device", metavar="NAME", help="Where the nets run: cpu (default), cuda, cuda:1, ...")
@click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    metavar="N",
    help="Of the CPU, for the whole run. Default: as many as torch would use.",
)
@click.option(
    "--dtype",
    type=DTYPES,
    multiple=True,
    help="Precisions to run. Default: float64 and float32; half precision is reported and gates nothing. Repeatable.",
)
@click.option("--cases", metavar="FILE", help="Run saved inputs (.safetensors) instead of the profile's.")
@click.option("--save_failing", metavar="DIR", help="Save the inputs and outputs of failing cases there.")
@click.option(
    "--self_test",
    type=click.Choice(SELF_TESTS),
    help="Deliberate faults that have to be noticed: some in every run (quick), or the whole catalogue.",
)
@click.option("--waivers", metavar="TOML", help="Reviewed exceptions: case, statistic, bound, reason, expiry.")
@click.option("--cache", metavar="FILE", help="Keep results there, and run only what has changed since.")
@click.option(
    "--report", multiple=True, metavar="FILE", help="Write a report: .json, .xml (JUnit), .md or .html. Repeatable."
)
@click.option("--card", metavar="FILE", help="Write a verification card (Markdown) to publish beside the weights.")
@json_option
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.pass_context
def parity(
    context: click.Context,
    /,
    orig_ckpt_path: tuple[str, ...],
    converted_path: tuple[str, ...],
    config: str | None,
    waivers: str | None,
    cache: str | None,
    report: tuple[str, ...],
    card: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Prove that a converted model computes the original's function, or say where it goes wrong.

    The weights are compared byte by byte, the config with what the original shows, and both nets are run on fixed
    noise; the tolerance is the original's own rounding noise. Neither net is in memory whole.

    Exit codes: 0 PASS, 1 FAIL, 2 usage, 3 input rejected, 4 INCONCLUSIVE, 5 internal. Of several: the worst.
    """
    from ..checkpoint.write.interrupt import interruptible
    from ..errors import UsageError
    from ..parity import batch, check
    from ..parity.cache import Cache
    from ..parity.settings import chosen, load_settings
    from ..parity.waivers import load_waivers
    from .progress import bar
    from .reporting import as_dict, lines, prepared, refused, write_reports

    options = beside(options, check)
    settings = load_settings(config) if config else None
    pairs = chosen(orig_ckpt_path, converted_path, settings, **options | {"dtype": options["dtype"] or None})
    if card and len(pairs) > 1:
        raise UsageError(f"--card: of one comparison, and there are {len(pairs)}")
    prepared(report, card, pairs)
    granted = [*(settings.waivers if settings else []), *(load_waivers(waivers) if waivers else [])]
    kept = Cache(cache) if cache else None
    with ExitStack() as shown, interruptible():

        def tell(pair: Any, made: Any) -> None:
            shown.close()  # the bar is wiped before anything is printed
            if error := refused(pair, made, alone=len(pairs) == 1):
                say(f"{context.find_root().info_name}: error: {error}", err=True)
            elif not quiet and not as_json:
                for line in lines(pair, made):
                    say(line)

        reports = batch.run(
            pairs,
            cache=kept,
            waivers=granted,
            progress=None if quiet else lambda total: bar(shown, total, "comparing"),
            done=tell,
        )
        for made in reports:
            made.run["command"] = context.obj
        write_reports(reports, report, card)
    for note in kept.notes if kept else []:
        say(f"note: {note}", err=True)
    code = batch.exit_code(reports)
    if as_json:
        error = refused(pairs[0], reports[0], alone=True) if len(pairs) == 1 else ""
        print_json({"ok": code == 0} | as_dict(reports) | ({"error": error} if error else {}))
    if code:
        raise click.exceptions.Exit(code)
