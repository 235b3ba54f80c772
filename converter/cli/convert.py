"""`convert-pixart`: to a layout of the user's choice, one checkpoint, many, or those of a running job."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click

from .conversion_flags import hyper_parameters, require_evidence, together, which, writing
from .given import beside
from .options import Command
from .output import say


@click.command(cls=Command, short_help="Convert a checkpoint to a diffusers folder, or to another layout.")
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
    help="What to make; it appears whole or not at all. Of several checkpoints, with {stem}, {name} or {parent}.",
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
    help="Only true for now: whole pipelines are not written yet.",
)
@together(
    which,
    hyper_parameters,
    require_evidence,
    click.option("--max_shard_size", metavar="SIZE", help="Write larger models as several files, such as 5GB each."),
    click.option("--variant", metavar="NAME", help="Put this into the names of the weights, such as fp16."),
    writing,
)
@click.option("--parity", is_flag=True, help="Prove the result (quick profile): its verdict becomes the exit code.")
@click.option("--push_to_hub", metavar="REPO", help="Publish the result there (owner/name), with a model card.")
@click.option("--private", is_flag=True, help="If --push_to_hub makes the repository, make it a private one.")
@click.option("--watch", metavar="DIR", help="Convert every checkpoint that comes into a folder, once it is complete.")
@click.option(
    "--watch_idle", type=click.FloatRange(min=0), metavar="SECONDS", help="Stop when nothing came for so long."
)
@click.option(
    "--watch_settle",
    type=click.FloatRange(min=0),
    default=5.0,
    metavar="SECONDS",
    help="How long a file must not have grown. Default: 5.",
)
@click.pass_context
def convert(
    context: click.Context,
    /,
    orig_ckpt_path: tuple[str, ...],
    dump_path: str,
    only_transformer: bool,
    parity: bool,
    push_to_hub: str | None,
    private: bool,
    watch: str | None,
    watch_idle: float | None,
    watch_settle: float,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Convert a PixArt checkpoint: to the diffusers layout, or to another with --to.

    What the file can tell is read from it, with the evidence in DIR/conversion.json; a flag that contradicts the file
    is an error. Of several checkpoints, those whose target holds the result already are skipped, and one that fails
    does not stop the rest. The tool's own version: pixart --version.

    Exit codes: 0 done, 2 usage, 3 input rejected, 5 internal, or a disk that fills up or fails; with --parity also
    1 FAIL and 4 INCONCLUSIVE.
    """
    from ..conversion import convert as conversion
    from ..conversion.pairs import check_targets_unique, expand
    from ..conversion.pairs import several as are_several
    from ..errors import UsageError
    from .converting import one, refused_together, several

    options = beside(options, conversion.convert)
    hub = {"push_to_hub": push_to_hub, "private": private}
    refused_together(options | hub | {"parity": parity, "watch": watch, "watch_idle": watch_idle}, orig_ckpt_path)
    if not only_transformer:
        raise UsageError(
            "--only_transformer false: whole pipelines are not written yet; convert the transformer and pass it to "
            "PixArtAlphaPipeline or PixArtSigmaPipeline.from_pretrained(..., transformer=...)"
        )
    shown: dict[str, Any] = {"quiet": quiet, "as_json": as_json, "prove": None}
    if parity:
        from .reporting import prove

        silent = quiet or as_json
        how: dict[str, Any] = {"command": context.obj, "family": options["family"], "quiet": quiet, "silent": silent}
        shown["prove"] = partial(prove, **how)
    if not watch and not are_several(orig_ckpt_path, dump_path):
        (source,) = orig_ckpt_path
        one(source, dump_path, options, publish=_publisher(push_to_hub, private, source, shown), **shown)
        return
    if push_to_hub:
        raise UsageError("--push_to_hub: of one conversion, and these may be several")
    pairs: Iterable[Any] = check_targets_unique([pair for path in orig_ckpt_path for pair in expand(path, dump_path)])
    if watch:
        from ..conversion.watch import watch as watching

        pairs = watching(watch, dump_path, settle=watch_settle, idle=watch_idle, say=_say)
    several(pairs, options, str(context.find_root().info_name), **shown)


def _say(words: str) -> None:
    say(f"note: {words}", err=True)


def _publisher(repo: str | None, private: bool, source: str, shown: dict[str, Any]) -> Any:
    """What publishes a folder, if that is wanted: whether it could is asked before anything is done."""
    if not repo:
        return None
    from .. import hub

    hub.check(repo)

    def publish(folder: Path) -> dict[str, Any]:
        pushed = hub.push(folder, repo, private=private or None, source=source, quiet=shown["quiet"])
        for line in [] if shown["quiet"] or shown["as_json"] else [*pushed.notes, f"published: {pushed.url}"]:
            say(line)
        return {"published": pushed.url}

    return publish
