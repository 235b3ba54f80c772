"""`convert-pixart`: the conversion, its progress bar, and what is printed of it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import click

from .options import Command, boolean, json_option


@click.command(cls=Command, short_help="Convert an original checkpoint to a diffusers folder.")
@click.option(
    "--orig_ckpt_path",
    required=True,
    metavar="PATH",
    help="The checkpoint: .pth, .pt, .bin, .safetensors, or a diffusers folder.",
)
@click.option("--dump_path", required=True, metavar="DIR", help="The folder to make. It appears whole or not at all.")
@click.option(
    "--image_size",
    type=click.IntRange(min=8),
    metavar="PIXELS",
    help="Resolution. Read from the file where it can be.",
)
@click.option(
    "--version",
    type=click.Choice(["alpha", "sigma"]),
    help="Which PixArt. Read from the file where it can be.",
)
@boolean("--multi_scale_train", "Whether the model is of the multi-scale class (PixArtMS).")
@boolean("--micro_condition", "Insist that the model has micro-conditions (size, aspect ratio), or has none.")
@boolean("--qk_norm", "Insist that the model normalises queries and keys, or does not.")
@boolean("--kv_compress", "Say that the model compresses keys and values.")
@click.option(
    "--only_transformer",
    type=click.BOOL,
    default=True,
    metavar="BOOL",
    help="Only true for now: whole pipelines are not written yet.",
)
@click.option(
    "--num_attention_heads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Heads. Default: hidden size / 72 where that is whole.",
)
@click.option(
    "--interpolation_scale",
    type=float,
    metavar="X",
    help="Scale of the positions. Read from the file where it can be.",
)
@click.option(
    "--weights", type=click.Choice(["raw", "ema"]), help="Which weights, where a file has both. Default: raw."
)
@click.option("--family", metavar="NAME", help="Insist on a model family instead of recognising it.")
@click.option("--dry_run", is_flag=True, help="Print the plan and the evidence, write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace a folder that an earlier conversion wrote.")
@click.option("--allow_nonfinite", is_flag=True, help="Let NaN and infinity through as they are.")
@click.option("--parity", is_flag=True, help="Prove the result (quick profile): its verdict becomes the exit code.")
@json_option
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.pass_context
def convert(
    context: click.Context,
    /,
    orig_ckpt_path: str,
    dump_path: str,
    only_transformer: bool,
    parity: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Convert an original PixArt checkpoint to the diffusers layout.

    What the file can tell is read from it, with the evidence in DIR/conversion.json; a flag that contradicts the file
    is an error. The tool's own version: pixart --version.

    Exit codes: 0 done, 2 usage, 3 input rejected, 5 internal, or a disk that fills up or fails; with --parity also
    1 FAIL and 4 INCONCLUSIVE.
    """
    import time

    from ..checkpoint.interrupt import interruptible
    from ..conversion import convert as run
    from ..errors import UsageError
    from .printing import conversion_lines, print_json
    from .progress import bar

    if parity and options["dry_run"]:
        raise UsageError("--parity --dry_run: nothing is written, so there is nothing to prove")
    if not only_transformer:
        raise UsageError(
            "--only_transformer false: whole pipelines are not written yet; convert the transformer and pass it to "
            "PixArtAlphaPipeline or PixArtSigmaPipeline.from_pretrained(..., transformer=...)"
        )
    started = time.monotonic()
    # The bar is wiped before anything else is printed, an error too.
    with ExitStack() as shown, interruptible():
        done = run(
            orig_ckpt_path,
            dump_path,
            progress=None if quiet else partial(bar, shown, what="converting", unit="B", unit_scale=True),
            **options,
        )
    made = {"path": str(done.path), "written": done.written, "record": done.record}
    if not quiet and not as_json:
        for line in conversion_lines(done, time.monotonic() - started):
            click.echo(line)
    code = 0
    if parity and done.written:
        from .reporting import prove

        report = prove(orig_ckpt_path, done.path, context.obj, options["family"], quiet=quiet, silent=quiet or as_json)
        made["parity"], code = report.as_dict(), report.exit_code
    if as_json:
        print_json({"ok": code == 0} | made)
    if code:
        raise click.exceptions.Exit(code)
