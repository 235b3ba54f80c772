"""What a picture is asked for with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.write.target import check_target
from ..errors import UsageError, printable

Progress = Callable[[str], Callable[[int], Callable[[int], None]] | None]  # of what -> as `convert` takes it
IMAGE, LATENT = "image", "latent"


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """What `pixart generate` is asked for. Most names are those of diffusers' pipelines.

    Attributes:
        pipeline: a pipeline, a converted folder or an original checkpoint, here or on the hub.
        output: the PNG to write, or the `.safetensors` for `output_type` 'latent'.
        reference: an original checkpoint, whose own net draws in place of the pipeline's transformer.
        vae, text_encoder, tokenizer: in place of the pipeline's.
        prompt_embeds, save_prompt_embeds: files of text embeddings, to draw from and to keep.
        latents: a file with the tensor `latents` to begin with, in place of noise from the `seed`.
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
        if self.latents and self.seed is not None:
            raise UsageError("`latents` and `seed`: both say what the picture begins with; give one")
        suffix = ".png" if self.output_type == IMAGE else ".safetensors"
        if Path(self.output).suffix.lower() != suffix:
            raise UsageError(f"`output` {printable(self.output)}: must end in {suffix} for {self.output_type}s")
        for path in filter(None, (self.output, self.save_prompt_embeds)):
            check_target(Path(path), Path(self.pipeline), overwrite=self.overwrite)


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
