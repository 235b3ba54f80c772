"""`pixart parity`: the comparison, its progress bar, the reports that it writes, and what is printed of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..parity.choices import MOST_THREADS, PRECISIONS, PROFILES, SELF_TESTS, WEIGHTS
from .flags import Whole
from .generate import components
from .options import (
    CHOSEN,
    INPUT,
    OUTPUT,
    ModelCommand,
    combined,
    family,
    fleet_options,
    given,
    json_option,
    lora_options,
    require_evidence,
)
from .output import print_json, progress_bar, say, say_error
from .sides import Sides

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
    click.option("--num_inference_steps", type=Whole(1, 1000), metavar="N", help="Default: 6."),
)
_DRAWN = ("vae", "text_encoder", "tokenizer", "prompt", "prompt_embeds", "latents", "num_inference_steps")
SIDES = Sides("ORIGINAL CONVERTED", "orig_ckpt_path", "converted_path", required=False)


@click.command(
    cls=ModelCommand,
    short_help="Prove that a converted model computes the original's function.",
    sections={
        INPUT: f"orig_ckpt_path converted_path config {CHOSEN} cast adapters lora_alpha allow_partial",
        "What to run": "profile dtype device threads cases self_test waivers cache workers cluster",
        OUTPUT: "report card save_failing",
        "Pictures": " ".join(("images", *_DRAWN)),
    },
)
@SIDES.argument
@click.option(
    "--orig_ckpt_path",
    multiple=True,
    metavar="PATH",
    help="ORIGINAL by name: a checkpoint, a glob, or a folder of checkpoints or of runs. Repeatable.",
)
@click.option(
    "--converted_path",
    multiple=True,
    metavar="DIR",
    help="CONVERTED by name: the folder made of it, one for each; for several 'converted/{run}/{stem}'.",
)
@click.option("--config", metavar="TOML", help="A parity.toml that lists pairs, their options and waivers.")
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    metavar="NAME",
    help="How much to test: quick (default: four samples), standard or full.",
)
@click.option("--weights", type=click.Choice(WEIGHTS), help="Which weights. Default: what the conversion record says.")
@click.option(
    "--state_dict_key", metavar="PATH", help="Where in the original the weights are, if it holds several state dicts."
)
@family
@given
@require_evidence
@click.option(
    "--cast",
    type=DTYPES,
    metavar="TYPE",
    help="What the conversion rounded the weights to. Default: what its record says.",
)
@lora_options("CONVERTED is ORIGINAL with this adapter merged into it")
@click.option("--device", metavar="NAME", help="Where to run the nets: cpu (default), cuda, cuda:1, ...")
@click.option(
    "--threads",
    type=Whole(1, MOST_THREADS),
    metavar="N",
    help="CPU threads for the whole run. Default: as many as torch would use.",
)
@click.option(
    "--dtype",
    type=DTYPES,
    multiple=True,
    metavar="TYPE",
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
@fleet_options
@click.option(
    "--report", multiple=True, metavar="FILE", help="Write a report: .json, .xml (JUnit), .md or .html. Repeatable."
)
@click.option("--card", metavar="FILE", help="Write a verification card (Markdown) to publish with the weights.")
@image_options
@json_option
@click.option("--quiet", is_flag=True, help="Print only what did not pass: a line for each, and how many of a batch.")
@click.pass_context
def parity(
    context: click.Context, /, as_json: bool, quiet: bool, hyper_parameters: dict[str, Any], **words: Any
) -> None:
    """Prove that the folder CONVERTED computes the function of the checkpoint ORIGINAL, or say where it goes wrong.

    The weights are compared byte by byte, the config with what the original shows, and both nets are run on fixed
    noise; the tolerance is the original's own rounding noise. Neither net is in memory whole.

    Exit codes: 0 PASS, 1 FAIL, 2 usage, 3 input rejected, 4 INCONCLUSIVE, 5 internal error. Of several: the worst.
    """
    from ..checkpoint.write.interrupt import interruptible
    from ..jobs.comparisons import ComparisonRequest, brief, compare, lines
    from ..jobs.picture_request import ImageRequest
    from ..reports.report import PASS

    beside = {name: value for name in _DRAWN if (value := words.pop(name)) is not None}
    if beside and not words["images"]:
        raise UsageError(f"`{next(iter(beside))}` requires `images`")
    originals, converted = SIDES.take(words)
    places = {name: words.pop(name) for name in ("config", "waivers", "cache", "card", "workers", "cluster")}
    places |= {"originals": originals, "converted": converted, "reports": words.pop("report")}
    # Of these the default says nothing.
    options = words | {name: words[name] or None for name in ("dtype", "adapters", "allow_partial")}
    images = ImageRequest(**beside) if options.pop("images") else None
    request = ComparisonRequest(**places, options=options, hyper_parameters=hyper_parameters, images=images)

    def tell(pair: Pair, report: Report, error: str) -> None:
        bars.close()  # the bar is wiped before anything is printed
        if error:
            say_error(error)
        elif not quiet and not as_json:
            for line in lines(pair, report):
                say(line)
        elif not as_json and report.verdict != PASS:
            say(brief(pair, report))

    with ExitStack() as bars, interruptible():
        first = "reading both sides, importing torch and diffusers"
        progress = progress_bar(bars, quiet or as_json, "comparing", first)
        done = compare(request, str(context.obj), progress=progress, done=tell)
    for note in done.notes:
        say(f"note: {note}", err=True)
    if as_json:
        print_json({"ok": done.exit_code == 0} | done.as_dict())
    elif done.exit_code or not quiet:
        for line in [*done.summary()][-1 if quiet else 0 :]:  # those that did not pass were printed already
            say(line)
    if done.exit_code:
        raise click.exceptions.Exit(done.exit_code)
