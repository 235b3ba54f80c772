"""`convert-pixart` and `pixart revert`: checkpoints to a layout of the user's choice, and what is printed of them."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from .options import ModelCommand, combined, family, given, require_evidence, weights_options, writing_options
from .output import print_json, progress_bar, say, say_error

if TYPE_CHECKING:
    from ..conversion.batch import Outcome
    from ..jobs.conversions import ConversionRequest
    from ..pipelines.assemble import Components

_COMPONENTS = ("vae", "text_encoder", "tokenizer", "scheduler", "components", "stock")


@click.command(cls=ModelCommand, short_help="Convert a checkpoint to a diffusers folder, or to another layout.")
@click.option(
    "--orig_ckpt_path",
    multiple=True,
    metavar="PATH",
    help="The checkpoint: .pth, .pt, .bin, .safetensors, a diffusers folder, a hub id or hf://owner/name/file; "
    "or a glob. Repeatable.",
)
@click.option(
    "--dump_path",
    required=True,
    metavar="PATH",
    help="Where the result goes; it appears whole or not at all. For several checkpoints, use {stem}, {name} or "
    "{parent}.",
)
@click.option(
    "--to",
    type=click.Choice(["diffusers", "original", "comfyui"]),
    default="diffusers",
    help="The layout: a diffusers folder (default), a .pth or .safetensors in the original layout, or a .safetensors "
    "as ComfyUI reads it.",
)
@click.option(
    "--only_transformer",
    type=click.BOOL,
    default=True,
    metavar="BOOL",
    help="False: write a whole pipeline, which DiffusionPipeline.from_pretrained loads, with the components below.",
)
@click.option("--vae", metavar="DIR", help="Its VAE: a folder, or a pipeline's, or one of these on the hub. Required.")
@click.option("--text_encoder", metavar="DIR", help="Its T5. Default: none, to draw from embeddings.")
@click.option("--tokenizer", metavar="DIR", help="The tokenizer of that.")
@click.option(
    "--scheduler",
    metavar="NAME",
    help="Its scheduler: dpm-solver (default), sa-solver, iddpm, lcm or dmd as the training code has it, or a folder.",
)
@click.option(
    "--components",
    type=click.Choice(["link", "copy"]),
    help="How the files of components become part of it: by symbolic links (default), or copied.",
)
@click.option(
    "--stock", is_flag=True, default=None, help="Use diffusers' own scheduler class, which rounds the timesteps."
)
@combined(
    weights_options,
    family,
    given,
    require_evidence,
    click.option("--max_shard_size", metavar="SIZE", help="Split larger models into files of this size, such as 5GB."),
    click.option("--variant", metavar="NAME", help="Put this into the names of the weights, such as fp16."),
    writing_options,
)
@click.option("--parity", is_flag=True, help="Prove the result (quick profile); the verdict becomes the exit code.")
@click.option("--push_to_hub", metavar="REPO", help="Publish the result there (owner/name), with a model card.")
@click.option("--private", is_flag=True, help="Make the repository private if --push_to_hub creates it.")
@click.option("--watch", metavar="DIR", help="Convert every checkpoint that appears in a folder, once it is complete.")
@click.option(
    "--watch_idle", type=click.FloatRange(min=0), metavar="SECONDS", help="Stop after this long without a new file."
)
@click.option(
    "--watch_settle",
    type=click.FloatRange(min=0),
    default=5.0,
    metavar="SECONDS",
    help="How long a file must have stopped growing before it is converted. Default: 5.",
)
@click.pass_context
def convert(context: click.Context, /, as_json: bool, quiet: bool, only_transformer: bool, **words: Any) -> None:
    """Convert a PixArt checkpoint: to the diffusers layout, or to another with --to.

    Whatever the file shows is read from it, and recorded with its evidence in DIR/conversion.json; a flag that
    contradicts the file is an error. Of several checkpoints, those whose target already holds the result are skipped,
    and one that fails does not stop the rest. For the tool's own version: pixart --version.

    Exit codes: 0 done, 2 usage, 3 input rejected, 5 internal error, or a disk that fills up or fails; with --parity
    also 1 FAIL and 4 INCONCLUSIVE.
    """
    words["components"] = _components({name: words.pop(name) for name in _COMPONENTS}, only_transformer)
    request = _request(words.pop("orig_ckpt_path"), words.pop("dump_path"), words)
    request.validate()
    _run_and_print(context, request, quiet=quiet, as_json=as_json)


@click.command(cls=ModelCommand, short_help="Write a converted model in the original layout again.")
@click.option("--converted_path", required=True, metavar="PATH", help="The diffusers folder, file, hub id or pipeline.")
@click.option(
    "--dump_path", required=True, metavar="FILE", help="The .pth or .safetensors to write, whole or not at all."
)
@click.option(
    "--to",
    type=click.Choice(["original", "comfyui"]),
    default="original",
    help="The original layout (default), or a .safetensors as ComfyUI reads it.",
)
@combined(weights_options, writing_options, family, given)
@click.pass_context
def revert(context: click.Context, /, as_json: bool, quiet: bool, **words: Any) -> None:
    """Write a converted model in the original layout again, bit for bit, buffers included.

    The null caption comes from the sidecar that the conversion wrote, the positional table is computed, and both are
    compared with the conversion's record. What is in neither the model nor the sidecar is left out and reported: it is
    never invented.

    Exit codes: 0 done, 2 usage, 3 input rejected, 5 internal error, or a disk that fills up or fails.
    """
    request = _request([words.pop("converted_path")], words.pop("dump_path"), words, literally=True)
    _run_and_print(context, request, quiet=quiet, as_json=as_json)


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


def _request(originals: list[str], target: str, words: dict[str, Any], *, literally: bool = False) -> ConversionRequest:
    """The request that the options of a command line describe."""
    from ..conversion.options import ConversionOptions
    from ..jobs.conversions import ConversionRequest

    names = {field.name for field in fields(ConversionOptions)}
    words["require_evidence"] = bool(words.get("require_evidence"))
    options = ConversionOptions(**{name: words.pop(name) for name in names & words.keys()})
    return ConversionRequest(originals, target, options, literally=literally, **words)


def _run_and_print(context: click.Context, request: ConversionRequest, *, quiet: bool, as_json: bool) -> None:
    """Run the request and print the outcome: in full for one checkpoint, a line or two each for several."""
    from ..checkpoint.write.interrupt import interruptible
    from ..conversion.batch import CONVERTED, PLANNED, STATUSES, worst
    from ..jobs.conversions import run

    silent, started = quiet or as_json, time.monotonic()
    outcomes: list[Outcome] = []

    def finished(outcome: Outcome, step: str) -> None:
        bars.close()  # a bar is wiped before anything is printed
        if not step:
            outcomes.append(outcome)  # it is done, and counts, whatever comes in between now
        if outcome.words:
            say_error(outcome.words)
        elif not silent:
            for line in _lines(outcome, step, time.monotonic() - started if not request.several else None):
                say(line)

    def summary() -> dict[str, int]:
        listed = [status for status in STATUSES if status != (CONVERTED if request.options.dry_run else PLANNED)]
        counts = {status: sum(outcome.status == status for outcome in outcomes) for status in listed}
        if not silent:
            say("summary: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
        return counts

    with ExitStack() as bars, interruptible():
        try:
            run(
                request,
                str(context.obj),
                quiet=quiet,
                progress=progress_bar(bars, quiet, "converting", unit="B"),
                comparing=progress_bar(bars, quiet, "comparing"),
                say=lambda words: say(f"note: {words}", err=True),
                finished=finished,
            )
        except KeyboardInterrupt:  # how a watch usually ends
            if request.several:
                summary()
            raise
    code = worst(outcome.exit_code for outcome in outcomes)
    if request.several:
        content: dict[str, Any] = {"conversions": [_row(outcome) for outcome in outcomes], "summary": summary()}
    else:
        done = outcomes[0].conversion
        assert done
        content = {"path": str(done.path), "written": done.written, "record": done.record, "notes": done.notes}
        content |= {"added": done.added} if done.added else {}
        content |= _results(outcomes[0])
    if as_json:
        print_json({"ok": code == 0} | content)
    if code:
        raise click.exceptions.Exit(code)


def _lines(outcome: Outcome, step: str, seconds: float | None) -> list[str]:
    """What is printed of a conversion or a step that is done; `seconds` that the only one took."""
    from ..errors import printable
    from .printing import assumed_lines, conversion_lines

    if step:
        return outcome.results[step].lines
    if seconds is not None and outcome.conversion:
        return [*conversion_lines(outcome.conversion, seconds)]
    sides = f"{printable(outcome.pair.original)} -> {printable(outcome.pair.converted)}"
    more = [*assumed_lines(outcome.conversion.record)] if outcome.conversion else []
    more += outcome.conversion.added if outcome.conversion else []
    more += [f"note: {note}" for note in outcome.notes]
    return [f"{outcome.status}: {sides}", *(f"  {line}" for line in more)]


def _row(outcome: Outcome) -> dict[str, Any]:
    """One of several, JSON-ready."""
    from ..errors import as_flags

    pair = outcome.pair
    row: dict[str, Any] = {"original": pair.original, "path": pair.converted, "status": outcome.status}
    if outcome.words:
        row["error"] = as_flags(outcome.words)
    if outcome.conversion:
        row["record"] = outcome.conversion.record
    if outcome.conversion or outcome.notes:
        row["notes"] = outcome.notes
    return row | _results(outcome)


def _results(outcome: Outcome) -> dict[str, Any]:
    return {name: result.content for name, result in outcome.results.items()}
