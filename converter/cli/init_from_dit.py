"""`pixart init-from-dit`: a PixArt that begins as a DiT."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

from .conversion_flags import which
from .options import Command, boolean, json_option
from .output import print_json, say


@click.command("init-from-dit", cls=Command, short_help="Initialise a PixArt from a class-conditional DiT.")
@click.option("--orig_ckpt_path", required=True, metavar="PATH", help="The DiT in its original layout, or a hub name.")
@click.option(
    "--dump_path",
    required=True,
    metavar="PATH",
    help="A .pth or .safetensors in PixArt's original layout, or a folder for diffusers.",
)
@which
@click.option(
    "--none",
    type=click.Choice(["unconditional", "zero"]),
    default="unconditional",
    help="What stands for no class: the last class embedding (default), or zero.",
)
@click.option(
    "--t_block",
    type=click.Choice(["mean", "paper"]),
    default="mean",
    help="What the shared layer starts as: the mean of the blocks' own (default), or random as in the paper's code.",
)
@click.option("--image_size", type=click.IntRange(min=8), metavar="PIXELS", help="Default: the DiT's own.")
@click.option(
    "--interpolation_scale", type=float, metavar="X", help="Of the positions. Default: the released model's, or 1."
)
@click.option("--version", type=click.Choice(["alpha", "sigma"]), help="120 caption tokens (default), or 300.")
@click.option("--caption_tokens", type=click.IntRange(min=1), metavar="L", help="In place of --version.")
@click.option("--caption_channels", type=click.IntRange(min=1), default=4096, metavar="K", help="Default: 4096, of T5.")
@boolean("--micro_condition", "Add embedders of size and aspect ratio, which start by adding nothing.")
@click.option("--num_attention_heads", type=click.IntRange(min=1), metavar="N", help="Default: of the published size.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of what is drawn. Default: 0.")
@click.option("--report", multiple=True, metavar="FILE", help="Write a report: .json, .md or .html. Repeatable.")
@click.option("--overwrite", is_flag=True, help="Replace a file, or a folder that an earlier run wrote.")
@json_option
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.pass_context
def init_from_dit(
    context: click.Context,
    /,
    orig_ckpt_path: str,
    dump_path: str,
    weights: str | None,
    state_dict_key: str | None,
    version: str | None,
    caption_tokens: int | None,
    micro_condition: bool | None,
    num_attention_heads: int | None,
    report: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Write a PixArt that begins as the DiT at PATH (arXiv 2310.00426, section 2.3).

    The class branch is removed; the shared t_block and the blocks' tables are set so that at t = 500, without a class
    and whatever the caption, every block computes what the DiT's does. That is proven on both nets before anything is
    written. A report shows how far apart they are at other timesteps.

    Exit codes: 0 done, 1 the proof failed, 4 it could not be made (in both nothing is written), 2 usage, 3 input
    rejected, 5 internal, or a disk that fills up or fails.
    """
    from ..checkpoint.interrupt import interruptible
    from ..errors import UsageError, human_bytes, printable
    from ..initialisation import Options
    from ..initialisation import init_from_dit as run
    from ..initialisation.report import KINDS, render
    from .progress import bar
    from .reporting import renderable, writable, write_text

    if version and caption_tokens:
        raise UsageError("--version, --caption_tokens: one of the two")
    if version == "sigma" and micro_condition:
        raise UsageError("--version sigma, --micro_condition: sigma has none (--caption_tokens 300 if that is meant)")
    reports = [Path(path) for path in report]
    renderable(reports, KINDS)
    writable(reports, [orig_ckpt_path, dump_path], "--report")
    tokens = caption_tokens or {"alpha": 120, "sigma": 300}[version or "alpha"]
    options = Options(caption_tokens=tokens, micro_condition=bool(micro_condition), **chosen)
    with ExitStack() as shown, interruptible():
        done = run(
            orig_ckpt_path,
            dump_path,
            options,
            num_attention_heads=num_attention_heads,
            weights=weights,
            state_dict_key=state_dict_key,
            overwrite=overwrite,
            timesteps=bool(reports),
            progress=None if quiet else partial(bar, shown, what="writing", unit="B", unit_scale=True),
        )
    for path in reports:
        write_text(path, render(done, Path(orig_ckpt_path).name, path.suffix))
    proof = done.proof
    lines = [f"note: {note}" for note in done.notes] + ([f"proof: {proof.words}"] if proof.passed else [])
    lines += [proof.distances.words] if proof.distances else []
    for name, size in done.files.items():
        where = done.path / name if os.path.isdir(done.path) else done.path
        lines.append(f"wrote: {printable(where)} ({human_bytes(size)})")
    lines += [f"wrote: {printable(path)}" for path in reports]
    for line in [] if quiet or as_json else lines:
        say(line)
    error = {} if done.written else {"exit_code": proof.exit_code, "error": f"{proof.words}; nothing was written"}
    if as_json:
        made = {
            "path": str(done.path),
            "files": done.files,
            "choices": done.choices,
            "notes": done.notes,
            "proof": proof.as_dict(),
        }
        print_json({"ok": done.written} | error | made)
    if error:
        say(f"{context.find_root().info_name}: error: {error['error']}", err=True)
        raise click.exceptions.Exit(proof.exit_code)
