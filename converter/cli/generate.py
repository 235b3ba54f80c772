"""`pixart generate`: a picture from a pipeline and a prompt, its progress bars, and what is printed of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import click

from ..nets.pipeline_spec import CONVENTIONS
from .flags import Number, Whole
from .options import (
    CHOSEN,
    INPUT,
    OUTPUT,
    ModelCommand,
    boolean,
    combined,
    family,
    given,
    output_options,
    weights_options,
)
from .output import print_json, progress_bar, say

FILE, DIR = "FILE", "DIR"

components = combined(
    click.option("--vae", metavar=DIR, help="The VAE's folder or hub id, if not the pipeline's."),
    click.option("--text_encoder", metavar=DIR, help="Likewise, the text encoder's."),
    click.option("--tokenizer", metavar=DIR, help="Likewise, the tokenizer's."),
)


@click.command(
    cls=ModelCommand,
    short_help="Draw a picture with a pipeline, stage by stage.",
    sections={
        INPUT: f"pipeline {CHOSEN} null_caption reference vae text_encoder tokenizer",
        "The picture": "prompt negative_prompt prompt_embeds height width use_resolution_binning "
        "num_images_per_prompt seed latents",
        "How it is drawn": "sampler num_inference_steps guidance_scale conventions device dtype memory_budget quantize",
        OUTPUT: "output output_type save_prompt_embeds overwrite",
    },
)
@click.option(
    "--pipeline",
    required=True,
    metavar="PATH",
    help="A pipeline, a converted folder or an original checkpoint, here or on the hub.",
)
@click.option("--prompt", multiple=True, metavar="TEXT", help="What to draw. Repeatable.")
@click.option("--output", required=True, metavar=FILE, help="The .png to write; NAME-1.png and so on for several.")
@click.option("--negative_prompt", metavar="TEXT", help="What guidance leads away from (diffusers' conventions).")
@click.option("--height", type=Whole(1, 1 << 20), metavar="PIXELS", help="Default: the model's own size.")
@click.option("--width", type=Whole(1, 1 << 20), metavar="PIXELS", help="Default: the model's own size.")
@click.option("--guidance_scale", type=Number(min=0), metavar="X", help="Default: the sampler's, mostly 4.5.")
@click.option("--num_inference_steps", type=Whole(1, 1000), metavar="N", help="Default: the sampler's.")
@click.option("--seed", type=Whole(0, 2**63 - 1), metavar="N", help="Of all noise. Default: a random one.")
@click.option("--num_images_per_prompt", type=Whole(1, 10_000), default=1, metavar="N", help="Default: 1.")
@boolean("--use_resolution_binning", "Draw the closest size that the model was trained with. Default: true.")
@click.option("--sampler", metavar="NAME", help="dpm-solver, sa-solver, iddpm, lcm or dmd. Default: the pipeline's.")
@click.option(
    "--conventions",
    type=click.Choice(CONVENTIONS),
    metavar="NAME",
    help="Draw as the training code does (original), or as pipelines do (diffusers). Default: original, if the model "
    "was converted from one.",
)
@click.option("--reference", metavar=FILE, help="Draw with the net of this original checkpoint instead.")
@components
@click.option("--prompt_embeds", metavar=FILE, help="Text embeddings (.safetensors) in place of a prompt.")
@click.option("--save_prompt_embeds", metavar=FILE, help="Keep the text embeddings in this file.")
@click.option("--latents", metavar=FILE, help="Begin with the tensor 'latents' of this file in place of noise.")
@click.option("--output_type", type=click.Choice(["image", "latent"]), default="image", help="Default: image.")
@click.option("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1, ...")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    metavar="TYPE",
    help="What to compute in: float32 (default), float16 or bfloat16.",
)
@click.option("--memory_budget", metavar="SIZE", help="Stay below this, such as 3GB. Default: what there is.")
@click.option("--quantize", type=click.Choice(["8bit", "nf4"]), help="The text encoder's weights; not exact.")
@combined(weights_options, family, given)
@click.option("--null_caption", metavar=FILE, help="A file with the null caption, if the model has none.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@output_options
@click.pass_context
def generate(
    context: click.Context, /, as_json: bool, quiet: bool, hyper_parameters: dict[str, Any], **words: Any
) -> None:
    """Draw a picture: the text encoder, the transformer and the VAE one after the other, one in memory at a time.

    The plan of the memory is printed before anything is loaded, and the peak of each stage after it. The parameters are
    kept in the PNG.

    Exit codes: 0 done, 2 usage, 3 input rejected, 5 internal error, or a disk or memory that does not suffice.
    """
    from ..checkpoint.write.interrupt import interruptible
    from ..errors import printable
    from ..jobs.picture_request import PictureRequest
    from ..jobs.pictures import draw

    model = {name: words.pop(name) for name in ("weights", "state_dict_key", "family", "null_caption")}
    binning = words.pop("use_resolution_binning")
    request = PictureRequest(
        **words,
        use_resolution_binning=True if binning is None else binning,
        model=model | {"hyper_parameters": hyper_parameters},
    )
    silent = quiet or as_json
    with ExitStack() as bars, interruptible():

        def tell(line: str) -> None:
            bars.close()  # a bar is wiped before anything is printed
            if not silent:
                say(line)

        done = draw(request, say=tell, progress=lambda what: progress_bar(bars, quiet, what))
    for path in done.files:
        tell(f"wrote: {printable(path)}")
    if as_json:
        files = [str(path) for path in done.files]
        print_json({"ok": True, "files": files, "parameters": done.parameters, "peak_memory": done.peaks})
