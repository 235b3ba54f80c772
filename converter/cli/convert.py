"""`convert-pixart`: checkpoints to a layout of the user's choice, and what is printed of them."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from .flags import Number
from .options import (
    CHOSEN,
    INPUT,
    OUTPUT,
    WRITTEN,
    ModelCommand,
    allow_partial,
    combined,
    family,
    fleet_options,
    given,
    lora_alpha,
    require_evidence,
    weights_options,
    writing_options,
)
from .output import print_json, progress_bar, result_so_far, say, say_error
from .sides import Sides

if TYPE_CHECKING:
    from ..conversion.batch import Outcome
    from ..jobs.conversions import ConversionRequest
    from ..pipelines.assemble import Components

# The spellings of adapters that are no layout of a model too.
ADAPTERS_ONLY = ("peft", "kohya", "onetrainer", "omi", "lycoris", "kohya-diffusers")
_COMPONENTS = ("vae", "text_encoder", "tokenizer", "scheduler", "components")


SIDES = Sides("FILE... OUT", "orig_ckpt_path", "dump_path", instead="watch")


@click.command(
    cls=ModelCommand,
    short_help="Convert a checkpoint to a diffusers folder, or to another layout.",
    sections={
        INPUT: f"orig_ckpt_path {CHOSEN} {WRITTEN}",
        OUTPUT: "dump_path to dtype max_shard_size variant stock overwrite dry_run parity",
        "A whole pipeline": " ".join(("only_transformer", *_COMPONENTS)),
        "Adapters (LoRA)": "lora_alpha base allow_partial",
        "Many checkpoints, and a running training": "workers cluster watch watch_idle watch_settle",
        "Publish": "push_to_hub private",
    },
)
@SIDES.argument
@click.option(
    "--orig_ckpt_path",
    multiple=True,
    metavar="PATH",
    help="FILE by name: a .pth, .pt, .bin or .safetensors, a diffusers folder, a folder of checkpoints or of runs, "
    "a hub id, hf://OWNER/NAME/FILE, a URL such as s3://BUCKET/FILE, or a glob. Repeatable.",
)
@click.option(
    "--dump_path",
    metavar="PATH",
    help="OUT by name: what to write, or its URL; whole or not at all. For several checkpoints "
    "'converted/{run}/{stem}'; there are {stem}, {name}, {run}, {parent} and {grandparent}.",
)
@click.option(
    "--to",
    type=click.Choice(["diffusers", "original", "comfyui", *ADAPTERS_ONLY]),
    default="diffusers",
    metavar="LAYOUT",
    help="diffusers: a folder (default). original: a .pth or .safetensors in the layout of the training code. "
    "comfyui: a .safetensors as ComfyUI reads it. For an adapter (LoRA): diffusers, peft, comfyui, kohya, onetrainer, "
    "original, omi, lycoris or kohya-diffusers.",
)
@lora_alpha
@allow_partial
@click.option("--base", metavar="PATH", help="The adapter's model, where only its weights can tell what to write.")
@click.option(
    "--only_transformer",
    type=click.BOOL,
    default=True,
    metavar="BOOL",
    help="False: write all that DiffusionPipeline.from_pretrained loads. Default: true.",
)
@click.option("--vae", metavar="DIR", help="The VAE, needed: its folder or a pipeline's, here or on the hub.")
@click.option("--text_encoder", metavar="DIR", help="The T5. Default: none, to draw from embeddings.")
@click.option("--tokenizer", metavar="DIR", help="The tokenizer of that.")
@click.option(
    "--scheduler",
    metavar="NAME",
    help="A folder, or dpm-solver (default), sa-solver, iddpm, lcm or dmd, as the training code has it.",
)
@click.option(
    "--components",
    type=click.Choice(["link", "copy"]),
    help="How the files of these are put there: as symbolic links (default), or copied.",
)
@click.option(
    "--stock",
    is_flag=True,
    help="Write for diffusers' own classes only, where one that travels with the weights computes what they do not.",
)
@combined(
    weights_options,
    family,
    given,
    require_evidence,
    click.option("--max_shard_size", metavar="SIZE", help="Split larger models into files of this size, such as 5GB."),
    click.option("--variant", metavar="NAME", help="Put this into the names of the weights, such as fp16."),
    writing_options("Replace an existing file, or a folder that an earlier conversion wrote."),
)
@click.option("--parity", is_flag=True, help="Compare the result with the source; the verdict is the exit code.")
@click.option("--push_to_hub", metavar="REPO", help="Publish the result there (OWNER/NAME), with a model card.")
@click.option("--private", is_flag=True, help="Make the repository private if --push_to_hub creates it.")
@fleet_options
@click.option("--watch", metavar="DIR", help="In place of FILE: convert each checkpoint of a run, or of several.")
@click.option("--watch_idle", type=Number(min=0), metavar="SECONDS", help="Stop after this long without a new file.")
@click.option(
    "--watch_settle",
    type=Number(min=0),
    default=5.0,
    metavar="SECONDS",
    help="Convert a file once it has not grown for this long. Default: 5.",
)
@click.pass_context
def convert(context: click.Context, /, as_json: bool, quiet: bool, only_transformer: bool, **words: Any) -> None:
    """Convert the checkpoint FILE to OUT, a folder for diffusers (or another layout, with --to).

    Whatever the file shows is read from it, and recorded with its evidence in OUT/conversion.json; an option that
    contradicts the file is an error. Of several checkpoints, those whose target already holds the result are skipped,
    and one that fails does not stop the rest. For the tool's own version: pixart --version.

    Example: convert-pixart epoch_7_step_9000.pth out --weights ema --parity

    Exit codes: 0 done, 2 usage, 3 input rejected, 5 internal error, or a disk that fills up or fails; with --parity
    also 1 FAIL and 4 INCONCLUSIVE.
    """
    words["components"] = _components({name: words.pop(name) for name in _COMPONENTS}, only_transformer)
    originals, (target,) = SIDES.take(words)
    request = request_of(originals, target, words)
    request.validate()
    run_and_print(context, request, quiet=quiet, as_json=as_json)


def _components(words: dict[str, Any], only_transformer: bool) -> Components | None:
    """What the options say of a whole pipeline."""
    from ..errors import UsageError

    words = {name: word for name, word in words.items() if word is not None}
    if only_transformer:
        for name in words:
            raise UsageError(f"`{name}` requires `only_transformer` false")
        return None
    from ..pipelines.assemble import Components

    return Components(**words)


def request_of(
    originals: list[str], target: str, words: dict[str, Any], *, literally: bool = False
) -> ConversionRequest:
    """The request that the options of a command line describe."""
    from ..conversion.options import ConversionOptions
    from ..jobs.adapters import AdapterOptions
    from ..jobs.conversions import ConversionRequest

    own = {field.name for field in fields(AdapterOptions)}
    words["adapters"] = AdapterOptions(**{name: words.pop(name) for name in own & words.keys()})
    names = {field.name for field in fields(ConversionOptions)}
    words["require_evidence"] = bool(words.get("require_evidence"))
    options = ConversionOptions(**{name: words.pop(name) for name in names & words.keys()})
    return ConversionRequest(originals, target, options, literally=literally, **words)


def run_and_print(context: click.Context, request: ConversionRequest, *, quiet: bool, as_json: bool) -> None:
    """Run the request and print the outcome: in full for one checkpoint, a line or two each for several."""
    from ..checkpoint.write.interrupt import interruptible
    from ..conversion.batch import worst
    from ..errors import InputError
    from ..jobs.conversions import counts, run, summary

    silent, started = quiet or as_json, time.monotonic()
    outcomes: list[Outcome] = []

    def finished(outcome: Outcome, step: str) -> None:
        bars.close()  # a bar is wiped before anything is printed
        if not step:
            outcomes.append(outcome)  # it is done, and counts, whatever comes in between now
        if outcome.words and outcome.failed_step == step:
            say_error(outcome.words)
        elif not silent:
            for line in _lines(outcome, step, time.monotonic() - started if not request.several else None):
                say(line)

    def content() -> dict[str, Any]:
        """The result for programs, of several; people get the summary."""
        dry_run = request.options.dry_run
        if not silent:
            say(summary(outcomes, dry_run=dry_run))
        return {"conversions": [_row(outcome) for outcome in outcomes], "summary": counts(outcomes, dry_run=dry_run)}

    with ExitStack() as bars, interruptible():
        try:
            outcomes[:] = run(
                request,
                str(context.obj),
                quiet=quiet,
                progress=progress_bar(bars, quiet, "converting", unit="B"),
                comparing=progress_bar(bars, quiet, "comparing"),
                say=lambda words: None if quiet else say(f"note: {words}", err=True),
                finished=finished,
            )
        except (KeyboardInterrupt, InputError):  # how a watch ends, by its user or without its folder
            if request.watch or (request.several and outcomes):
                result_so_far(content())
            raise
    code = worst(outcome.exit_code for outcome in outcomes)
    if request.several:
        result = content()
    else:
        done = outcomes[0].conversion
        assert done
        result = {"path": str(done.path), "written": done.written, "record": done.record, "notes": done.notes}
        result |= {"added": done.added} if done.added else {}
        result |= _results(outcomes[0])
    if as_json:
        print_json({"ok": code == 0} | result)
    if code:
        raise click.exceptions.Exit(code)


def _lines(outcome: Outcome, step: str, seconds: float | None) -> list[str]:
    """What is printed of a conversion or a step that is done; `seconds` that the only one took."""
    from .printing import assumed_together, conversion_lines

    if step:
        return outcome.results[step].lines
    if seconds is not None and outcome.conversion:
        return [*conversion_lines(outcome.conversion, seconds)]
    more = assumed_together(outcome.conversion.record) if outcome.conversion else []
    more += outcome.conversion.added if outcome.conversion else []
    more += [f"note: {note}" for note in outcome.notes]
    return [f"{outcome.status}: {outcome.pair}", *(f"  {line}" for line in more)]


def _row(outcome: Outcome) -> dict[str, Any]:
    """One of several, JSON-ready."""
    from ..errors import as_flags
    from ..hub.redaction import redacted

    pair = outcome.pair
    places = {"original": redacted(pair.original), "path": redacted(pair.converted)}
    row: dict[str, Any] = places | {"status": outcome.status}
    if outcome.words:
        row["error"] = as_flags(outcome.words)
    if outcome.conversion:
        row["record"] = outcome.conversion.record
    if outcome.conversion or outcome.notes:
        row["notes"] = outcome.notes
    return row | _results(outcome)


def _results(outcome: Outcome) -> dict[str, Any]:
    return {name: result.content for name, result in outcome.results.items()}
