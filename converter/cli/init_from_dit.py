"""`pixart init-from-dit`: a PixArt that begins as a DiT."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from .flags import Whole
from .options import Command, boolean, output_options, weights_options
from .output import print_json, progress_bar, say, say_error
from .sides import Sides

SIDES = Sides("FILE OUT", "orig_ckpt_path", "dump_path")


@click.command("init-from-dit", cls=Command, short_help="Initialise a PixArt from a class-conditional DiT.")
@SIDES.argument
@click.option("--orig_ckpt_path", metavar="PATH", help="FILE by name: the DiT in its original layout, or a hub name.")
@click.option(
    "--dump_path",
    metavar="PATH",
    help="OUT by name: a .pth or .safetensors in PixArt's original layout, or a folder for diffusers.",
)
@weights_options
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
@click.option("--image_size", type=Whole(min=8), metavar="PIXELS", help="Resolution. Default: the DiT's own.")
@click.option(
    "--interpolation_scale",
    type=float,
    metavar="X",
    help="Scale of the positions. Default: the released model's, or 1.",
)
@click.option(
    "--version",
    type=click.Choice(["alpha", "sigma"]),
    help="How many caption tokens: 120 (alpha, the default) or 300 (sigma).",
)
@click.option(
    "--caption_tokens", type=Whole(min=1), metavar="L", help="Number of caption tokens, in place of --version."
)
@click.option(
    "--caption_channels",
    type=Whole(min=1),
    default=4096,
    metavar="K",
    help="Channels of the text encoder. Default: 4096, of T5.",
)
@boolean("--micro_condition", "Add embedders of size and aspect ratio, which start by adding nothing.")
@click.option(
    "--num_attention_heads",
    type=Whole(min=1),
    metavar="N",
    help="Number of heads. Default: that of the published size.",
)
@click.option("--seed", type=Whole(min=0), default=0, metavar="N", help="Random seed. Default: 0.")
@click.option("--report", multiple=True, metavar="FILE", help="Write a report: .json, .md or .html. Repeatable.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file, or a folder that an earlier run wrote.")
@output_options
def init_from_dit(report: tuple[str, ...], as_json: bool, quiet: bool, **words: Any) -> None:
    """Write a PixArt that begins as the DiT in FILE (arXiv 2310.00426, section 2.3).

    The class branch is removed; the shared t_block and the blocks' tables are set so that at t = 500, without a class
    and whatever the caption, every block computes what the DiT's does. That is proven on both nets before anything is
    written. A report shows how far apart they are at other timesteps.

    Exit codes: 0 done, 1 the proof failed, 4 it could not be made (in both nothing is written), 2 usage, 3 input
    rejected, 5 internal error, or a disk that fills up or fails.
    """
    from ..checkpoint.text_writer import write_text
    from ..checkpoint.write.interrupt import interruptible
    from ..errors import UsageError, printable
    from ..initialisation import Options
    from ..initialisation import init_from_dit as run
    from ..initialisation.report import KINDS, render
    from ..jobs.comparisons import check_suffixes, check_writable
    from .printing import wrote_lines

    (orig_ckpt_path,), (dump_path,) = SIDES.take(words)
    version, tokens = words.pop("version"), words.pop("caption_tokens")
    if version and tokens:
        raise UsageError("give `version` or `caption_tokens`, not both")
    if version == "sigma" and words["micro_condition"]:
        raise UsageError("`version` sigma has no `micro_condition`; use `caption_tokens` 300 if that is what you mean")
    check_suffixes(report, [*KINDS])
    check_writable(report, [orig_ckpt_path, dump_path], "`report`")
    words["micro_condition"] = bool(words["micro_condition"])
    words["caption_tokens"] = tokens or {"alpha": 120, "sigma": 300}[version or "alpha"]
    names = {field.name for field in fields(Options)}
    options = Options(timesteps=bool(report), **{name: words.pop(name) for name in names & words.keys()})
    with ExitStack() as bars, interruptible():
        progress = progress_bar(bars, quiet, "writing", unit="B")
        done = run(orig_ckpt_path, dump_path, options, progress=progress, **words)
    for path in map(Path, report):
        write_text(path, render(done, Path(orig_ckpt_path).name, path.suffix))
    proof = done.proof
    lines = [f"note: {note}" for note in done.notes] + ([f"proof: {proof.words}"] if proof.passed else [])
    lines += [proof.distances.words] if proof.distances else []
    lines += [*wrote_lines(done.path, done.files), *(f"wrote: {printable(path)}" for path in report)]
    for line in [] if quiet or as_json else lines:
        say(line)
    error: dict[str, Any] = (
        {} if done.written else {"exit_code": proof.exit_code, "error": f"{proof.words}; nothing was written"}
    )
    if as_json:
        content = {
            "path": str(done.path),
            "files": done.files,
            "choices": done.choices,
            "notes": done.notes,
            "proof": proof.as_dict(),
        }
        print_json({"ok": done.written} | error | content)
    if error:
        say_error(error["error"])
        raise click.exceptions.Exit(proof.exit_code)
