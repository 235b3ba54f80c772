"""`pixart merge-lora`: adapters baked into a checkpoint."""

from __future__ import annotations

from typing import Any

import click

from .convert import request_of, run_and_print
from .options import (
    CHOSEN,
    INPUT,
    OUTPUT,
    WRITTEN,
    ModelCommand,
    combined,
    family,
    given,
    lora_options,
    require_evidence,
    weights_options,
    writing_options,
)
from .sides import Sides

SIDES = Sides("BASE OUT", "orig_ckpt_path", "dump_path")


@click.command(
    "merge-lora",
    cls=ModelCommand,
    short_help="Bake LoRA adapters into a checkpoint.",
    sections={
        INPUT: f"orig_ckpt_path adapters lora_alpha allow_partial {CHOSEN} {WRITTEN}",
        OUTPUT: "dump_path to dtype max_shard_size variant stock overwrite dry_run parity",
    },
)
@SIDES.argument
@click.option("--orig_ckpt_path", metavar="PATH", help="BASE by name: any file or folder that convert-pixart takes.")
@click.option("--dump_path", metavar="PATH", help="OUT by name: what to write, whole or not at all.")
@lora_options("An adapter, a file or a folder in any spelling, that is baked in")
@click.option(
    "--to",
    type=click.Choice(["diffusers", "original", "comfyui"]),
    default="diffusers",
    metavar="LAYOUT",
    help="diffusers: a folder (default). original: a .pth or .safetensors in the layout of the training code. "
    "comfyui: a .safetensors as ComfyUI reads it.",
)
@click.option("--stock", is_flag=True, help="Write for diffusers' own classes only.")
@combined(
    weights_options,
    family,
    given,
    require_evidence,
    click.option("--max_shard_size", metavar="SIZE", help="Split larger models into files of this size, such as 5GB."),
    click.option("--variant", metavar="NAME", help="Put this into the names of the weights, such as fp16."),
    writing_options("Replace an existing file, or a folder that an earlier conversion wrote."),
)
@click.option("--parity", is_flag=True, help="Compare the result with base and adapters; the verdict is the exit code.")
@click.pass_context
def merge_lora(context: click.Context, /, as_json: bool, quiet: bool, **words: Any) -> None:
    """Write the checkpoint BASE with adapters (LoRA and its kin) baked in to OUT, as convert-pixart writes one.

    Each adapter adds to a weight what it adds to the base's, times its weight W; products are computed in float32 at
    least, and the sum is rounded once. Nothing is applied in part: what does not fit the model is an error.
    OUT/conversion.json says what went in.

    Example: pixart merge-lora PixArt.pth merged --lora style.safetensors=0.8 --lora face_folder

    Exit codes: 0 done, 2 usage, 3 input rejected, 5 internal error, or a disk that fills up or fails; with --parity
    also 1 FAIL and 4 INCONCLUSIVE.
    """
    from ..jobs.adapters import Merging

    originals, (target,) = SIDES.take(words)
    words["merging"] = Merging(*(words.pop(name) for name in ("adapters", "lora_alpha", "allow_partial")))
    run_and_print(context, request_of(originals, target, words, literally=True), quiet=quiet, as_json=as_json)
