"""`pixart revert`: the way back, out of diffusers' layout."""

from __future__ import annotations

from typing import Any

import click

from .conversion_flags import hyper_parameters, together, which, writing
from .given import beside
from .options import Command


@click.command(cls=Command, short_help="Write a converted model in the original layout again.")
@click.option("--converted_path", required=True, metavar="PATH", help="The diffusers folder, file, hub id or pipeline.")
@click.option(
    "--dump_path", required=True, metavar="FILE", help="The .pth or .safetensors to make, whole or not at all."
)
@click.option(
    "--to",
    type=click.Choice(["original", "comfyui"]),
    default="original",
    help="The original layout (default), or a .safetensors as ComfyUI reads it.",
)
@together(which, writing, hyper_parameters)
def revert(converted_path: str, dump_path: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write a converted model in the original layout again, bit for bit, buffers included.

    The null caption comes from the sidecar that the conversion left, the positional table is computed, and both are
    compared with the conversion's record. What nothing beside the model holds is left out, and said so: it is never
    invented.

    Exit codes: 0 done, 2 usage, 3 input rejected, 5 internal, or a disk that fills up or fails.
    """
    from ..conversion.convert import convert
    from .converting import one

    one(converted_path, dump_path, beside(options, convert), quiet=quiet, as_json=as_json)
