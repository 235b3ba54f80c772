"""`pixart extract-lora`: the difference of two models as an adapter, and what is printed of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from .convert import ADAPTERS_ONLY
from .diff import WEIGHTS
from .flags import Number, Whole
from .options import INPUT, OUTPUT, ModelCommand, boolean, family, given, output_options
from .output import print_json, progress_bar, say

if TYPE_CHECKING:
    from ..lora.extraction import Extraction

SHOWN = 8  # lines of a section; --all shows them all


@click.command(
    "extract-lora",
    cls=ModelCommand,
    short_help="Write the difference of two models as a LoRA.",
    sections={
        INPUT: "weights_base weights_tuned state_dict_key_base state_dict_key_tuned family",
        OUTPUT: "dump_path rank energy to overwrite",
    },
)
@click.argument("base")
@click.argument("tuned")
@click.argument("out", required=False)
@click.option("--dump_path", metavar="PATH", help="OUT by name: what to write, whole or not at all.")
@click.option("--rank", type=Whole(min=1), metavar="R", help="The rank of every module, or the most, with --energy.")
@click.option(
    "--energy",
    type=Number(0, 1, min_open=True),
    metavar="SHARE",
    help="The smallest rank for each module that keeps this share of its squared singular values, such as 0.99.",
)
@click.option(
    "--to",
    type=click.Choice(["diffusers", "comfyui", "original", *ADAPTERS_ONLY]),
    default="diffusers",
    metavar="SPELLING",
    help="diffusers (default), peft, comfyui, kohya, onetrainer, original, omi, lycoris or kohya-diffusers.",
)
@click.option("--weights_base", type=WEIGHTS, help="Which weights of BASE, if it has both. Default: raw.")
@click.option("--weights_tuned", type=WEIGHTS, help="Which weights of TUNED, if it has both. Default: raw.")
@click.option("--state_dict_key_base", metavar="PATH", help="Where in BASE they are, if it holds several state dicts.")
@click.option("--state_dict_key_tuned", metavar="PATH", help="Where in TUNED they are, likewise.")
@family
@given
@boolean("--parity", "Run the tuned model, the base, and the base with the LoRA, and say how far apart. Default: true.")
@click.option("--device", metavar="NAME", help="Where to compute: cpu (default), cuda, cuda:1, ...")
@click.option("--overwrite", is_flag=True, help="Replace an existing adapter.")
@click.option("--all", "everything", is_flag=True, help="List every module, and all that is left out.")
@output_options
def extract_lora(
    out: str | None, parity: bool | None, device: str | None, everything: bool, as_json: bool, quiet: bool, **words: Any
) -> None:
    """Write to OUT the LoRA that makes the model TUNED of the model BASE, as nearly as its rank allows: for each module
    the nearest product of that rank (the truncated SVD of the difference). Merging it into BASE is the way back.

    Each model may be any accepted file or folder, in the original's layout or in diffusers'. OUT is a .safetensors, or
    for PEFT and diffusers a folder. With --to kohya, comfyui or original, q, k and v have one LoRA together.

    Biases, tables and norms have no place in a LoRA: those that differ are named, and left out.

    Example: pixart extract-lora PixArt.pth fine_tuned.pth style.safetensors --rank 32 --to kohya

    Exit codes: 0 done, 2 usage, 3 input rejected (also where no module differs), 5 internal error, or a disk that fills
    up or fails.
    """
    from ..checkpoint.write.interrupt import interruptible
    from ..errors import UsageError
    from ..lora.extract import extract_lora as run

    if (out is None) == (words["dump_path"] is None):
        raise UsageError(f"give BASE TUNED OUT, or `dump_path` for OUT; got {'neither' if out is None else 'both'}")
    words["dump_path"] = out or words["dump_path"]

    measuring = None
    if parity is not False:
        from ..jobs.lora_effect import EffectMeasure

        measuring = EffectMeasure(device or "cpu")
    with ExitStack() as bars, interruptible():
        progress = progress_bar(bars, quiet, "extracting", "reading both models", unit="B")
        done = run(**words, device=device, measuring=measuring, progress=progress)
    if as_json:
        print_json({"ok": True} | done.as_dict())
    elif not quiet:
        for line in _lines(done, everything):
            say(line)


def _lines(done: Extraction, everything: bool) -> Iterator[str]:
    from ..errors import as_flags, plural
    from .printing import wrote_lines

    yield done.words
    if done.effect:
        yield as_flags(done.effect.words)
    yield from _section("error of the modules, relative to their difference", done.error_rows(everything), everything)
    title = "left out, a LoRA has no place for it"
    yield from _section(title, done.left_out_rows(everything), everything)
    yield from (f"note: {note}" for note in done.notes)
    assert done.path is not None
    yield from wrote_lines(done.path, done.files)
    spelling = done.adapter.spelling.name
    yield f"done: {plural(len(done.modules), 'module')} in the spelling {spelling}, read back and verified"


def _section(title: str, rows: list[tuple[str, str]], everything: bool) -> Iterator[str]:
    """Names and what is said of each, the first few."""
    shown = rows if everything else rows[:SHOWN]
    if rows:
        yield f"{title}:"
    width = max((len(name) for name, _ in shown), default=0)
    yield from (f"  {name:<{width}}  {words}" for name, words in shown)
    if len(rows) > len(shown):
        yield f"  and {len(rows) - len(shown)} more lines: --all"
