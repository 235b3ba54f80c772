"""Whole pipelines out of the recorded nets and the tiny parts in `fixtures/pipeline`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from makers import HEADS, ROOT

import converter
from converter.pipelines.assemble import Components

PARTS = ROOT / "fixtures" / "pipeline"
VAE, TOKENIZER, TEXT_ENCODER = PARTS / "vae-alpha", PARTS / "tokenizer", PARTS / "text_encoder-alpha"
TEXT = {"text_encoder": TEXT_ENCODER, "tokenizer": TOKENIZER}


def vae_of(name: str) -> Path:
    """The VAE that fits a recorded net."""
    return VAE if name.startswith("alpha") else PARTS / "vae"


def assemble(
    name: str, out: Path, options: Any = None, *, stock: bool = False, **components: Any
) -> converter.Conversion:
    """A recorded net as a pipeline; `components` are fields of `Components`, with a VAE by default."""
    beside = Components(**{"vae": vae_of(name)} | components)
    words: dict[str, Any] = {"hyper_parameters": {"num_attention_heads": HEADS}, "stock": stock} | (options or {})
    return converter.convert(PARTS / f"{name}.pth", out, components=beside, **words)


def flags(name: str, out: Path, *more: object, vae: Path | str = "") -> list[object]:
    """The same on the command line, of `convert-pixart`."""
    call = ["--orig_ckpt_path", PARTS / f"{name}.pth", "--dump_path", out, "--num_attention_heads", HEADS]
    return [*call, "--only_transformer=False", "--vae", vae or vae_of(name), *more]
