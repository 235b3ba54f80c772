"""The flags that commands share which read a checkpoint, and those of the ones that write one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .given import given
from .options import boolean, json_option

Decorator = Callable[[Any], Any]


def together(*decorators: Decorator) -> Decorator:
    """Several decorators as one, in the order in which `--help` lists them."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


which = together(
    click.option(
        "--weights", type=click.Choice(["raw", "ema"]), help="Which weights, where a file has both. Default: raw."
    ),
    click.option(
        "--state_dict_key",
        metavar="PATH",
        help="Where in the file the weights lie, such as app.model, where it holds several state dicts.",
    ),
)

insisted = click.option(
    "--family",
    metavar="NAME",
    help="Insist on a model family instead of recognising it: its name, or a file of yours that makes it (NAME.py).",
)

hyper_parameters = together(
    click.option(
        "--image_size",
        type=click.IntRange(min=8),
        metavar="PIXELS",
        help="Resolution. Read from the file where it can be.",
    ),
    click.option(
        "--version",
        type=click.Choice(["alpha", "sigma"]),
        help="Which PixArt. Read from the file where it can be.",
    ),
    boolean("--multi_scale_train", "Whether the model is of the multi-scale class (PixArtMS)."),
    boolean("--micro_condition", "Insist that the model has micro-conditions (size, aspect ratio), or has none."),
    boolean("--qk_norm", "Insist that the model normalises queries and keys, or does not."),
    boolean("--kv_compress", "Say that the model compresses keys and values."),
    click.option(
        "--num_attention_heads",
        type=click.IntRange(min=1),
        metavar="N",
        help="Heads. Default: as in the released models of this width, where there are any.",
    ),
    click.option(
        "--interpolation_scale",
        type=float,
        metavar="X",
        help="Scale of the positions. Read from the file where it can be.",
    ),
    boolean("--exact_timesteps", "Of a DiT: say that the line which its conversion's note gives will be run on it."),
    insisted,
    given,
)

require_evidence = boolean(
    "--require_evidence",
    "Take an assumption that can change an output for an error, which names the flag that states it.",
)

writing = together(
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help="Round the weights to this, to nearest. Default: as they are.",
    ),
    click.option(
        "--null_caption", metavar="FILE", help="A file that holds the null caption, where the source does not."
    ),
    click.option("--dry_run", is_flag=True, help="Print the plan and the evidence, write nothing."),
    click.option("--overwrite", is_flag=True, help="Replace a file, or a folder that an earlier conversion wrote."),
    click.option("--allow_nonfinite", is_flag=True, help="Let NaN and infinity through as they are."),
    click.option("--allow_overflow", is_flag=True, help="Let what is beyond the range of --dtype become infinity."),
    click.option("--allow_zeros", is_flag=True, help="Let tensors through that are zero throughout."),
    json_option,
    click.option("--quiet", is_flag=True, help="Print nothing but errors."),
)
