"""`pixart merge-lora`: adapters baked into a checkpoint."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import click

from .options import (
    CHOSEN,
    INPUT,
    OUTPUT,
    WRITTEN,
    ModelCommand,
    allow_partial,
    combined,
    family,
    given,
    lora_alpha,
    require_evidence,
    weights_options,
    writing_options,
)
from .output import print_json, progress_bar, say
from .sides import Sides

SIDES = Sides("BASE OUT", "orig_ckpt_path", "dump_path")

lora_option = click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="PATH[=W]",
    help="An adapter, a file or a folder in any spelling, and its weight, such as style.safetensors=0.8. Repeatable.",
)


def loras_of(words: tuple[str, ...]) -> list[tuple[str, float]]:
    """`a.safetensors=0.8` is ("a.safetensors", 0.8); a path that is there is taken as it is.

    >>> loras_of(("style.safetensors=0.8", "face.safetensors"))
    [('style.safetensors', 0.8), ('face.safetensors', 1.0)]
    """
    from ..errors import UsageError, printable

    pairs = []
    for word in words:
        path, equals, weight = word.rpartition("=")
        if not equals or os.path.lexists(word):
            pairs.append((word, 1.0))
            continue
        try:
            pairs.append((path, float(weight)))
        except ValueError:
            raise UsageError(f"`lora` {printable(word)}: {printable(weight, 40)!r} is no number") from None
    return pairs


@click.command(
    "merge-lora",
    cls=ModelCommand,
    short_help="Bake LoRA adapters into a checkpoint.",
    sections={
        INPUT: f"orig_ckpt_path loras lora_alpha allow_partial {CHOSEN} {WRITTEN}",
        OUTPUT: "dump_path to dtype max_shard_size variant stock overwrite dry_run",
    },
)
@SIDES.argument
@click.option("--orig_ckpt_path", metavar="PATH", help="BASE by name: any file or folder that convert-pixart takes.")
@click.option("--dump_path", metavar="PATH", help="OUT by name: what to write, whole or not at all.")
@lora_option
@click.option(
    "--to",
    type=click.Choice(["diffusers", "original", "comfyui"]),
    default="diffusers",
    metavar="LAYOUT",
    help="diffusers: a folder (default). original: a .pth or .safetensors in the layout of the training code. "
    "comfyui: a .safetensors as ComfyUI reads it.",
)
@click.option("--stock", is_flag=True, help="Write for diffusers' own classes only.")
@lora_alpha
@allow_partial
@combined(
    weights_options,
    family,
    given,
    require_evidence,
    click.option("--max_shard_size", metavar="SIZE", help="Split larger models into files of this size, such as 5GB."),
    click.option("--variant", metavar="NAME", help="Put this into the names of the weights, such as fp16."),
    writing_options("Replace an existing file, or a folder that an earlier conversion wrote."),
)
def merge_lora(as_json: bool, quiet: bool, loras: tuple[str, ...], **words: Any) -> None:
    """Write the checkpoint BASE with adapters (LoRA and its kin) baked in to OUT, as convert-pixart writes one.

    Each adapter adds to a weight what it adds to the base's, times its weight W; products are computed in float32 at
    least, and the sum is rounded once. Nothing is applied in part: what does not fit the model is an error.
    OUT/conversion.json says what went in.

    Example: pixart merge-lora PixArt.pth merged --lora style.safetensors=0.8 --lora face_folder

    Exit codes: 0 done, 2 usage, 3 input rejected, 5 internal error, or a disk that fills up or fails.
    """
    from ..checkpoint.write.interrupt import interruptible
    from ..conversion.options import ConversionOptions
    from ..lora.merge import merge_lora as run
    from .printing import conversion_lines

    (base,), (target,) = SIDES.take(words)
    words["require_evidence"] = bool(words.get("require_evidence"))
    names = {field.name for field in fields(ConversionOptions)}
    options, started = ConversionOptions(**{name: words.pop(name) for name in names & words.keys()}), time.monotonic()
    with ExitStack() as bars, interruptible():
        progress = progress_bar(bars, quiet, "merging", unit="B")
        done = run(base, loras_of(loras), target, options, progress=progress, **words)
    if as_json:
        record = {"path": str(done.path), "written": done.written, "record": done.record, "notes": done.notes}
        print_json({"ok": True} | record)
    elif not quiet:
        for line in conversion_lines(done, time.monotonic() - started):
            say(line)
