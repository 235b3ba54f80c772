"""`pixart revert`: a converted model in the original layout again."""

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
    weights_options,
    writing_options,
)
from .sides import Sides

SIDES = Sides("FOLDER FILE", "converted_path", "dump_path")


@click.command(
    cls=ModelCommand,
    short_help="Write a converted model in the original layout again.",
    sections={
        INPUT: f"converted_path {CHOSEN} {WRITTEN}",
        OUTPUT: "dump_path to dtype overwrite dry_run",
    },
)
@SIDES.argument
@click.option("--converted_path", metavar="PATH", help="FOLDER by name: of diffusers, a file in it, or a hub id.")
@click.option("--dump_path", metavar="PATH", help="FILE by name: the .pth or .safetensors, whole or not at all.")
@click.option(
    "--to",
    type=click.Choice(["original", "comfyui"]),
    default="original",
    metavar="LAYOUT",
    help="original: the layout of the training code (default). comfyui: a .safetensors as ComfyUI reads it.",
)
@combined(weights_options, writing_options("Replace an existing file."), family, given)
@click.pass_context
def revert(context: click.Context, /, as_json: bool, quiet: bool, **words: Any) -> None:
    """Write the converted model in FOLDER as a FILE in the original layout again, bit for bit, buffers included.

    The null caption comes from the sidecar that the conversion wrote, the positional table is computed, and both are
    compared with the conversion's record. What is in neither the model nor the sidecar is left out and reported: it is
    never invented.

    Exit codes: 0 done, 2 usage, 3 input rejected, 5 internal error, or a disk that fills up or fails.
    """
    originals, (target,) = SIDES.take(words)
    run_and_print(context, request_of(originals, target, words, literally=True), quiet=quiet, as_json=as_json)
