"""`pixart parity`: the comparison, its progress bar, the reports that it writes, and what is printed of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..parity.choices import MOST_THREADS, PRECISIONS, PROFILES, SELF_TESTS, WEIGHTS
from .generate import components
from .options import ModelCommand, combined, family, given, output_options, require_evidence
from .output import print_json, progress_bar, say, say_error

if TYPE_CHECKING:
    from ..conversion.pairs import Pair
    from ..reports.report import Report

DTYPES = click.Choice(PRECISIONS)
image_options = combined(
    click.option(
        "--images",
        is_flag=True,
        help="Draw with both nets too, from noise to the picture. The pictures go into the report, and beside it.",
    ),
    components,
    click.option("--prompt", metavar="TEXT", help="What to draw. Default: one that is always the same."),
    click.option("--prompt_embeds", metavar="FILE", help="Text embeddings (.safetensors) in place of a prompt."),
    click.option("--latents", metavar="FILE", help="Begin with the tensor 'latents' of this file in place of noise."),
    click.option("--num_inference_steps", type=click.IntRange(1, 1000), metavar="N", help="Default: 6."),
)


@click.command(cls=ModelCommand, short_help="Prove that a converted model computes the original's function.")
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
    help="The folder converted from it, one for each; {stem}, {name} and {parent} are those of the checkpoint.",
)
@click.option("--config", metavar="TOML", help="A parity.toml that lists pairs, their options and waivers.")
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    help="How much to test. Default: quick, four samples.",
)
@click.option("--weights", type=click.Choice(WEIGHTS), help="Which weights. Default: what the conversion record says.")
@click.option(
    "--state_dict_key", metavar="PATH", help="Where in the original the weights are, if it holds several state dicts."
)
@family
@given
@require_evidence
@click.option("--cast", type=DTYPES, help="The type that the conversion rounded the weights to, if it did.")
@click.option("--device", metavar="NAME", help="Where to run the nets: cpu (default), cuda, cuda:1, ...")
@click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    metavar="N",
    help="CPU threads for the whole run. Default: as many as torch would use.",
)
@click.option(
    "--dtype",
    type=DTYPES,
    multiple=True,
    help="Precisions to run. Default: float64 and float32; half precision is reported and decides nothing. Repeatable.",
)
@click.option("--cases", metavar="FILE", help="Run saved inputs (.safetensors) instead of the profile's.")
@click.option("--save_failing", metavar="DIR", help="Save the inputs and outputs of failing cases there.")
@click.option(
    "--self_test",
    type=click.Choice(SELF_TESTS),
    help="Deliberate faults that must be detected: some in every run (quick), or the whole catalogue (full).",
)
@click.option("--waivers", metavar="TOML", help="Reviewed exceptions: case, statistic, bound, reason, expiry.")
@click.option("--cache", metavar="FILE", help="Keep results in this file, and run only what has changed since.")
@click.option(
    "--report", multiple=True, metavar="FILE", help="Write a report: .json, .xml (JUnit), .md or .html. Repeatable."
)
@click.option("--card", metavar="FILE", help="Write a verification card (Markdown) to publish with the weights.")
@image_options
@output_options
@click.pass_context
def parity(
    context: click.Context, /, as_json: bool, quiet: bool, hyper_parameters: dict[str, Any], **words: Any
) -> None:
    """Prove that a converted model computes the original's function, or say where it goes wrong.

    The weights are compared byte by byte, the config with what the original shows, and both nets are run on fixed
    noise; the tolerance is the original's own rounding noise. Neither net is in memory whole.

    Exit codes: 0 PASS, 1 FAIL, 2 usage, 3 input rejected, 4 INCONCLUSIVE, 5 internal error. Of several: the worst.
    """
    from ..checkpoint.write.interrupt import interruptible
    from ..jobs.comparisons import ComparisonRequest, compare, lines
    from ..jobs.picture_request import ImageRequest

    drawn = ("vae", "text_encoder", "tokenizer", "prompt", "prompt_embeds", "latents", "num_inference_steps")
    beside = {name: value for name in drawn if (value := words.pop(name)) is not None}
    if beside and not words["images"]:
        raise UsageError(f"`{next(iter(beside))}` requires `images`")
    names = {"orig_ckpt_path": "originals", "converted_path": "converted", "report": "reports"}
    places = {name: words.pop(name) for name in ("config", "waivers", "cache", "card")}
    places |= {field: words.pop(name) for name, field in names.items()}
    options = words | {"dtype": words["dtype"] or None}
    images = ImageRequest(**beside) if options.pop("images") else None
    request = ComparisonRequest(**places, options=options, hyper_parameters=hyper_parameters, images=images)

    def tell(pair: Pair, report: Report, error: str) -> None:
        bars.close()  # the bar is wiped before anything is printed
        if error:
            say_error(error)
        elif not quiet and not as_json:
            for line in lines(pair, report):
                say(line)

    with ExitStack() as bars, interruptible():
        done = compare(request, str(context.obj), progress=progress_bar(bars, quiet, "comparing"), done=tell)
    for note in done.notes:
        say(f"note: {note}", err=True)
    if as_json:
        print_json({"ok": done.exit_code == 0} | done.as_dict())
    if done.exit_code:
        raise click.exceptions.Exit(done.exit_code)
