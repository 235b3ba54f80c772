"""The three stages of a picture under way: text embeddings, latents, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..checkpoint.folder import read_config
from ..checkpoint.write.publish import write_file
from ..filenames import TOOL
from ..pipelines.components import TEXT_ENCODER, VAE
from ..pipelines.decode import Decoding, decode, png_text, save_png
from ..pipelines.denoise import Guidance, denoise
from ..pipelines.embeddings import Embeddings
from ..pipelines.text_encoder import encode
from .drawing import Drawing
from .picture_request import FILES, Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def embeddings_of(drawing: Drawing, progress: Progress) -> Embeddings:
    """The first stage: the embeddings of the prompts, and those that guidance begins at."""
    embeddings = drawing.given_embeddings or _encoded(drawing, progress)
    if drawing.guided and embeddings.negative_prompt_embeds is None:
        assert drawing.model.null_caption
        null = drawing.model.null_caption.torch()[None].expand(len(embeddings.prompt_embeds), -1, -1)
        embeddings = replace(embeddings, negative_prompt_embeds=null.clone())
    if drawing.guided and embeddings.negative_prompt_attention_mask is None:
        embeddings = replace(embeddings, negative_prompt_attention_mask=embeddings.prompt_attention_mask)
    if drawing.request.save_prompt_embeds:
        path = Path(drawing.request.save_prompt_embeds)
        embeddings.save(path, conventions=drawing.how.name, overwrite=drawing.request.overwrite)
    return embeddings


def _encoded(drawing: Drawing, progress: Progress) -> Embeddings:
    import torch

    folder, count = drawing.folders[TEXT_ENCODER], len(drawing.request.prompt)
    begin = progress("encoding the prompt")
    encoded = encode(
        drawing.ids,
        drawing.mask,
        folder,
        how=drawing.way("text encoder"),
        dtype=getattr(torch, drawing.dtypes["text"]),
        device=drawing.request.device,
        progress=begin(int(read_config(folder)["num_layers"])) if begin else None,
    ).cpu()
    prompt, null = encoded[:count], encoded[count:].expand(count, -1, -1) if len(encoded) > count else None
    own = drawing.mask[count:].expand(count, -1) if null is not None and not drawing.how.mask_of_prompt else None
    return Embeddings(prompt, drawing.mask[:count], null, own)


def draw_latents(drawing: Drawing, embeddings: Embeddings, progress: Progress) -> Tensor:
    """The second stage: latents (B, C, h, w), float32."""
    import torch

    dtype, device = getattr(torch, drawing.dtypes["transformer"]), drawing.request.device
    start, generator = starting_noise(drawing)
    net = drawing.model.net(dtype, device, whole=drawing.way("transformer") == "whole")
    begin, latents = progress("drawing"), start.to(device)
    step = begin(drawing.steps) if begin else lambda count: None
    how = {"steps": drawing.steps, "dtype": dtype, "float32_latents": drawing.how.float32_latents}
    steps = denoise(net, drawing.sampler, guidance_of(drawing, embeddings), latents, generator=generator, **how)
    for _, after in steps:
        latents = after
        step(1)
    return latents.float().cpu()


def guidance_of(drawing: Drawing, embeddings: Embeddings) -> Guidance:
    size, times = drawing.size, drawing.request.num_images_per_prompt
    tensors = {k: part.repeat_interleave(times, 0) for k, part in vars(embeddings).items() if part is not None}
    return Guidance(
        tensors["prompt_embeds"],
        tensors["prompt_attention_mask"],
        tensors.get("negative_prompt_embeds"),
        tensors.get("negative_prompt_attention_mask"),
        scale=drawing.scale,
        conditions=drawing.model.spec.conditions(drawing.model.findings, size.height, size.width, size.ratio),
    )


def starting_noise(drawing: Drawing) -> tuple[Tensor, torch.Generator]:
    """What the picture begins with, and the generator that further noise comes from, both on the CPU: the same on
    every device."""
    import torch

    generator, side = torch.Generator().manual_seed(drawing.seed), drawing.model.findings.value("image_size")
    channels, factor = drawing.model.findings.value("in_channels"), drawing.model.spec.vae_factor
    if drawing.given_latents is not None:
        return drawing.given_latents.float(), generator
    for _ in range(drawing.how.discarded_draws):
        torch.randn(1, channels, side, side, generator=generator)
    places = (drawing.size.height // factor, drawing.size.width // factor)
    return torch.randn(drawing.images, channels, *places, generator=generator), generator


def decoding_of(drawing: Drawing) -> Decoding:
    how, way = drawing.how, drawing.way("VAE")
    return Decoding(
        scaling_factor=how.scaling_factor,
        half_up=how.half_up,
        tiling=way == "tiled",
        slicing=way in ("sliced", "tiled"),
        size=drawing.size.asked,
        dtype=drawing.dtypes["vae"],
        device=drawing.request.device,
    )


def save_pictures(drawing: Drawing, latents: Tensor, progress: Progress) -> list[Path]:
    """The third stage: PNG files with the parameters in them."""
    pictures = decode(latents, drawing.folders[VAE], decoding_of(drawing), progress("decoding"))
    paths, prompts = drawing.request.targets(len(pictures)), drawing.request.prompt
    for i, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
        own = {"prompt": prompts[i // drawing.request.num_images_per_prompt]} if prompts else {}
        save_png(picture, path, png_text(parameters(drawing) | own), overwrite=drawing.request.overwrite)
    return paths


def save_latents(drawing: Drawing, latents: Tensor) -> Path:
    """Instead of the third stage: a safetensors file with `latents`, as they come out of the last step."""
    from safetensors.torch import save

    path = Path(drawing.request.output)
    about = {TOOL: json.dumps(parameters(drawing))}
    write_file(path, save({"latents": latents.contiguous()}, about), overwrite=drawing.request.overwrite)
    return path


def parameters(drawing: Drawing) -> dict[str, Any]:
    """What the picture was drawn with, in diffusers' words."""
    request = drawing.request
    shown: dict[str, Any] = {"prompt": [*request.prompt] if len(request.prompt) > 1 else "".join(request.prompt)}
    shown |= {"negative_prompt": request.negative_prompt} if request.negative_prompt else {}
    files = {name: Path(getattr(request, name)).name for name in FILES if getattr(request, name)}
    return shown | files | {
        "model": Path(request.reference or request.pipeline).absolute().name,
        "net": "original" if not drawing.model.analysis.diffusers else "diffusers",
        "sampler": drawing.sampler_name,
        "num_inference_steps": drawing.steps,
        "guidance_scale": drawing.scale,
        "seed": drawing.seed,
        "height": (drawing.size.asked or (drawing.size.height,))[0],
        "width": (drawing.size.asked or (drawing.size.width,))[-1],
        "conventions": drawing.how.name,
        "dtype": request.dtype,
        **({"quantize": request.quantize} if request.quantize else {}),
        "tool": f"{TOOL} {__version__}",
    }  # fmt: skip
