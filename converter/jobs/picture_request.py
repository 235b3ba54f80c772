"""What a picture is asked for with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.write.target import check_target
from ..errors import UsageError, printable, require
from ..pipelines.decode import numbered

Progress = Callable[[str], Callable[[int], Callable[[int], None]] | None]  # of what -> as `convert` takes it
IMAGE, LATENT = "image", "latent"
FILES = ("reference", "vae", "text_encoder", "tokenizer", "prompt_embeds", "latents")  # that a picture is drawn with


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """What `pixart generate` is asked for. Most names are those of diffusers' pipelines.

    Attributes:
        pipeline: a pipeline, a converted folder or an original checkpoint, here or on the hub.
        output: the PNG to write, or the `.safetensors` for `output_type` 'latent'.
        reference: an original checkpoint, whose own net draws in place of the pipeline's transformer.
        vae, text_encoder, tokenizer: in place of the pipeline's.
        prompt_embeds, save_prompt_embeds: files of text embeddings, to draw from and to keep.
        latents: a file with the tensor `latents` to begin with, in place of noise.
        seed: of that noise, and of the noise that some samplers add.
        memory_budget: such as '8GB'. quantize: the text encoder to '8bit' or 'nf4', which is not exact.
        model: what `open_picture_model` takes.
    """

    pipeline: str
    output: str
    prompt: tuple[str, ...] = ()
    negative_prompt: str | None = None
    reference: str | None = None
    vae: str | None = None
    text_encoder: str | None = None
    tokenizer: str | None = None
    height: int | None = None
    width: int | None = None
    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    seed: int | None = None
    num_images_per_prompt: int = 1
    use_resolution_binning: bool = True
    sampler: str | None = None
    conventions: str | None = None
    prompt_embeds: str | None = None
    save_prompt_embeds: str | None = None
    latents: str | None = None
    output_type: str = IMAGE
    device: str = "cpu"
    dtype: str = "float32"
    memory_budget: str | None = None
    quantize: str | None = None
    overwrite: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)

    def validate(self) -> None:
        """Raises: `UsageError` for what does not go together, or cannot be written."""
        if bool(self.prompt) == bool(self.prompt_embeds):
            raise UsageError(f"give either `prompt` or `prompt_embeds`; got {'both' if self.prompt else 'neither'}")
        for name in ("pipeline", *FILES, "save_prompt_embeds"):
            if getattr(self, name) == "":
                raise UsageError(f"`{name}` is empty: name a place, or leave it out")
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise UsageError(f"`guidance_scale` {self.guidance_scale}: a finite number is needed")
        if self.output_type == IMAGE:
            require("a picture", "PIL")
        suffix = ".png" if self.output_type == IMAGE else ".safetensors"
        if Path(self.output).suffix.lower() != suffix:
            raise UsageError(f"`output` {printable(self.output)}: must end in {suffix} for {self.output_type}s")
        if self.prompt:
            self.check_targets(len(self.prompt) * self.num_images_per_prompt)

    def targets(self, images: int) -> list[Path]:
        """The files to write for so many pictures, without the embeddings."""
        return numbered(Path(self.output), images if self.output_type == IMAGE else 1)

    def check_targets(self, images: int) -> None:
        """Raises: `UsageError` where one of the files to write may not be written, or is one that is read."""
        names: list[Any] = [*(getattr(self, name) for name in ("pipeline", *FILES)), self.model.get("null_caption")]
        sources = [Path(name) for name in names if name]
        written = set[Path]()
        for path in (*self.targets(images), *map(Path, filter(None, [self.save_prompt_embeds]))):
            for source in sources:
                real = check_target(path, source, overwrite=self.overwrite)
            if real in written:
                raise UsageError(f"`output` and `save_prompt_embeds` {printable(path)}: give each a file of its own")
            written.add(real)


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """With what `pixart parity --images` draws; the fields are those of a `PictureRequest`."""

    vae: str | None = None
    text_encoder: str | None = None
    tokenizer: str | None = None
    prompt: str | None = None
    prompt_embeds: str | None = None
    latents: str | None = None
    num_inference_steps: int | None = None
