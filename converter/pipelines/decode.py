"""From latents to pictures: diffusers' VAE decoder, 8 bits rounded as either side rounds them, and PNG files."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint import open_checkpoint
from ..checkpoint.folder import CONFIG, read_config
from ..checkpoint.write.publish import write_file
from ..errors import UNQUANTISED, InputError, UsageError, printable, require
from ..families.travelling import CLASS

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("float32", "float16", "bfloat16")
TILE = 512  # pixels. diffusers takes the config's `sample_size`, with which 1024 px may be a single tile
# What older files call the projections of the attention in the middle.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(rf"(?<=\.)({'|'.join(_RENAMED)})(?=\.(weight|bias)$)")
# What other programs call the parameters of a picture.
_LABELS = {"num_inference_steps": "Steps", "sampler": "Sampler", "guidance_scale": "CFG scale", "seed": "Seed"}
Pictures = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How latents become pictures.

    `scaling_factor`: the latents are divided by it (None: that of the VAE's config). `half_up`: round as the training
    code does, in the decoder's dtype; else as diffusers does, half to even in float32. `tiling`: decode tiles of 512
    px, whose seams are blended (not exact); `slicing`: one picture at a time. `size`: (height, width) in pixels to
    resize and crop to.
    """

    scaling_factor: float | None = None
    half_up: bool = True
    tiling: bool = False
    slicing: bool = False
    size: tuple[int, int] | None = None
    dtype: str = "float32"
    device: str = "cpu"


def decode(
    latents: Tensor,
    vae_folder: str | os.PathLike[str],
    how: Decoding | None = None,
    progress: Callable[[int], Callable[[int], None]] | None = None,
) -> Pictures:
    """Decode latents (B, 4, h, w) with the VAE of a folder: uint8 (B, H, W, 3).

    Args:
        progress: called with the number of parts to be decoded; what it returns, with 1 after each.

    Raises: `InputError` for a VAE that is not whole, latents that do not fit it, and NaN out of it; `UsageError`.

    Source: `scripts/inference.py` of PixArt-alpha and PixArt-sigma; diffusers' `AutoencoderKL`, `VaeImageProcessor`.

    Example:
        >>> decode(torch.zeros(1, 4, 8, 6), "fixtures/pipeline/vae").shape
        (1, 64, 48, 3)
    """
    import torch

    how = how or Decoding()
    vae = load_decoder(vae_folder, how.dtype, how.device)
    channels, factor = vae.config.latent_channels, how.scaling_factor or vae.config.scaling_factor
    if latents.ndim != 4 or latents.shape[1] != channels or 0 in latents.shape:
        needed = f"(B, {channels}, height / 8, width / 8) is needed"
        raise InputError.at(vae_folder, "", f"latents {list(latents.shape)}, and {needed}")
    if not bool(latents.isfinite().all()):
        raise InputError("latents hold NaN or infinity before they are decoded: draw them with `dtype` float32")
    parts, tiles = latents.split(1 if how.slicing else len(latents)), 1
    if how.tiling:
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE >> (len(vae.config.block_out_channels) - 1)
        if max(latents.shape[2:]) > vae.tile_latent_min_size:
            stride = int(vae.tile_latent_min_size * (1 - vae.tile_overlap_factor))
            tiles = -(-latents.shape[2] // stride) * -(-latents.shape[3] // stride)
    if progress:
        advance = progress(len(parts) * tiles)

        def count(*_: Any) -> None:  # whatever else a hook returns would be the output
            advance(1)

        vae.decoder.register_forward_hook(count)
    with torch.inference_mode():
        return np.concatenate([_decoded(vae, part.to(vae.device, vae.dtype) / factor, how) for part in parts])


def _decoded(vae: Any, scaled: Tensor, how: Decoding) -> Pictures:
    from diffusers.image_processor import PixArtImageProcessor

    values = vae.decode(scaled).sample
    if not bool(values.isfinite().all()):
        remedy = "are its weights damaged?"
        if how.dtype != "float32":
            remedy = "half precision overflows in it: use `dtype` float32, or a VAE made for it (sdxl-vae-fp16-fix)"
        raise InputError.at(
            vae.config._name_or_path, "", f"NaN or infinity comes out of the VAE in {how.dtype}: {remedy}"
        )
    if how.size:
        height, width = how.size
        values = PixArtImageProcessor.resize_and_crop_tensor(values, width, height)
    return to_8_bits(values, half_up=how.half_up)


def to_8_bits(values: Tensor, *, half_up: bool) -> Pictures:
    """Decoded values (B, 3, H, W), of which [-1, 1] is shown, as uint8 (B, H, W, 3); `half_up` as in `Decoding`.

    >>> to_8_bits(torch.zeros(1, 3, 1, 1), half_up=True).tolist()
    [[[[128, 128, 128]]]]
    """
    import torch
    from diffusers.image_processor import VaeImageProcessor

    if half_up:
        levels = values.clamp(-1, 1).add(1).div(2).mul(255).add(0.5).to(torch.uint8)
        return np.asarray(levels.permute(0, 2, 3, 1).cpu().numpy())
    shares = VaeImageProcessor.pt_to_numpy(VaeImageProcessor.denormalize(values))
    return np.asarray((shares * 255).round().astype(np.uint8))


def load_decoder(folder: str | os.PathLike[str], dtype: str = "float32", device: str = "cpu") -> Any:
    """Diffusers' `AutoencoderKL` of a folder without its encoder, every tensor of it from the file.

    Raises: `InputError` where one is missing (diffusers would leave it random), of another shape or quantised.
    """
    import torch
    from diffusers import AutoencoderKL

    if dtype not in DTYPES:
        raise UsageError(f"`dtype` {printable(dtype)}: one of {', '.join(DTYPES)}")
    folder = Path(folder)
    config = read_config(folder)
    if (kind := config.get(CLASS)) != "AutoencoderKL":
        rule = f"{CLASS} is {printable(kind)}, not AutoencoderKL: give the folder of a VAE"
        raise InputError.at(folder, CONFIG, rule)
    try:
        with torch.device("meta"):
            vae = AutoencoderKL.from_config(config | {"_name_or_path": os.fspath(folder)})
    except Exception as error:  # whatever the class makes of wrong fields
        raise InputError.at(folder, CONFIG, f"AutoencoderKL cannot be made of it: {printable(error)}") from error
    vae.encoder = vae.quant_conv = None
    wanted, state = vae.state_dict(), {}
    with open_checkpoint(folder) as checkpoint:
        keys = {_OLD.sub(lambda old: _RENAMED[old[0]], key): key for key in checkpoint}
        if missing := [name for name in wanted if name not in keys]:
            lacks = f"the decoder lacks {len(missing)} of its {len(wanted)} tensors, such as {missing[0]}"
            raise InputError.at(folder, "", f"{lacks}: they would be random; take a whole file of the VAE")
        for name, empty in wanted.items():
            tensor = checkpoint[keys[name]]
            if not tensor.dtype.floating or tensor.shape != tuple(empty.shape):
                remedy = "weights and config are of different VAEs" if tensor.dtype.floating else UNQUANTISED
                needed = f"floats {list(empty.shape)} are needed: {remedy}"
                raise InputError.at(folder, name, f"{tensor.dtype} {list(tensor.shape)}, but {needed}")
            state[name] = tensor.torch().to(device, getattr(torch, dtype))
    vae.load_state_dict(state, assign=True)
    return vae.eval().requires_grad_(False)


def numbered(path: Path, count: int) -> list[Path]:
    """Where so many pictures go: a single one to the path itself.

    >>> [each.name for each in numbered(Path("cat.png"), 2)]
    ['cat-1.png', 'cat-2.png']
    """
    return [path.with_stem(f"{path.stem}-{i}") for i in range(1, count + 1)] if count > 1 else [path]


def png_text(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a PNG from parameters (diffusers' names): `parameters` as other programs show them, all as JSON.

    >>> png_text({"prompt": "a cat", "seed": 3, "num_inference_steps": 20})["parameters"]
    'a cat\\nSteps: 20, Seed: 3'
    """
    shown = [f"{label}: {parameters[name]}" for name, label in _LABELS.items() if name in parameters]
    if "width" in parameters and "height" in parameters:
        shown.append(f"Size: {parameters['width']}x{parameters['height']}")
    negative = parameters.get("negative_prompt")
    lines = [parameters.get("prompt") or "", f"Negative prompt: {negative}" if negative else "", ", ".join(shown)]
    return {"parameters": "\n".join(filter(None, lines)), "convert-pixart": json.dumps(dict(parameters))}


def save_png(picture: Pictures, path: Path, text: Mapping[str, str], *, overwrite: bool = False) -> None:
    """Write a picture (H, W, 3) with its texts, whole or not at all.

    Raises: `UsageError` where the file exists and is not to be replaced; `ConverterError` where the disk is full.

    >>> save_png(np.zeros((8, 8, 3), np.uint8), tmp / "black.png", {"parameters": "none"})
    """
    require("a PNG file", "PIL")
    from PIL import Image, PngImagePlugin

    info, data = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, value in text.items():
        info.add_text(name, value.encode("utf-8", "backslashreplace").decode())
    Image.fromarray(picture).save(data, format="PNG", pnginfo=info)
    write_file(path, data.getvalue(), overwrite=overwrite)
