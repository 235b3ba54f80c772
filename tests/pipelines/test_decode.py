"""Latents to pictures: the recorded bytes, diffusers' own pipeline steps, whole files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import PixArtImageProcessor
from makers import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

from converter.errors import InputError, UsageError
from converter.pipelines.decode import Decoding, decode, load_decoder, numbered, png_text, save_png, to_8_bits

PIPELINE = ROOT / "fixtures" / "pipeline"
VAE = PIPELINE / "vae"
IMAGES = load_file(PIPELINE / "images.safetensors")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def latents(name: str) -> torch.Tensor:
    return load_file(PIPELINE / f"{name}.golden.safetensors")["dpm14.latents"][-1]


def stock(**settings: object) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(VAE, low_cpu_mem_usage=False, **settings).eval()


def altered(folder: Path, name: str, tensor: torch.Tensor | None) -> Path:
    """The VAE with one tensor replaced, or left out."""
    shutil.copytree(VAE, folder, copy_function=shutil.copyfile)
    state = load_file(folder / WEIGHTS)
    assert state.pop(name) is not None
    save_file(state | ({} if tensor is None else {name: tensor}), folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("slicing", [False, True])
@pytest.mark.parametrize(("name", "factor"), [("alpha-ms", 0.18215), ("alpha-fixed", 0.18215), ("sigma-ms", None)])
def test_the_recorded_bytes_come_out(name: str, factor: float | None, slicing: bool) -> None:
    wanted = IMAGES[f"{name}.dpm14.image"].numpy()
    pictures = decode(latents(name), VAE, Decoding(scaling_factor=factor, slicing=slicing))
    differing = np.abs(pictures.astype(int) - wanted)
    assert pictures.dtype == np.uint8
    assert differing.max() <= 1
    assert (differing > 0).mean() < 5e-4  # where the last bit of a kernel decides


def test_so_they_do_in_float16() -> None:
    wanted = IMAGES["sigma-ms.dpm14.image_float16"].numpy()
    differing = np.abs(decode(latents("sigma-ms"), VAE, Decoding(dtype="float16")).astype(int) - wanted)
    assert differing.max() <= 1
    assert (differing > 0).mean() < 0.08  # against float32, 0.1 are


def test_the_recorded_values_are_rounded_to_exactly_the_recorded_bytes() -> None:
    wanted = IMAGES["alpha-ms.dpm14.image"].numpy()[:1]
    assert np.array_equal(to_8_bits(IMAGES["alpha-ms.dpm14.decoded"], half_up=True), wanted)


def test_values_between_two_levels_are_rounded_as_asked() -> None:
    values = torch.tensor([-3.0, -1.0, -0.99, 0.0, 0.5, 1.0, 3.0]).reshape(1, 1, 1, 7).expand(1, 3, 1, 7)
    assert to_8_bits(values, half_up=True)[0, 0, :, 0].tolist() == [0, 0, 1, 128, 191, 255, 255]
    assert to_8_bits(values, half_up=False)[0, 0, :, 0].tolist() == [0, 0, 1, 128, 191, 255, 255]


def test_half_precision_is_rounded_in_its_own_arithmetic_as_the_training_code_does() -> None:
    values = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(2)).mul(2).sub(1).half()
    up, even = (to_8_bits(values, half_up=half_up).astype(int) for half_up in (True, False))
    assert np.abs(up - even).max() == 1
    assert 0.03 < (up != even).mean() < 0.06  # 4.2 % of the values, as measured on the original code
    whole = to_8_bits(values.float(), half_up=True)
    assert (whole != even).mean() < 0.02


def test_as_diffusers_decodes_resizes_and_rounds() -> None:
    whole = latents("alpha-ms")
    with torch.inference_mode():
        values = stock().decode(whole / 0.13025).sample
    resized = PixArtImageProcessor.resize_and_crop_tensor(values, 90, 100)
    images = PixArtImageProcessor(vae_scale_factor=8).postprocess(resized, output_type="pil")
    pictures = decode(whole, VAE, Decoding(half_up=False, size=(100, 90)))
    assert pictures.shape == (2, 100, 90, 3)
    assert np.array_equal(pictures, np.stack([np.asarray(image) for image in images]))


def test_tiles_are_512_px_whatever_the_config_says() -> None:
    vae, parts = stock(), list[int]()
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 512, 64
    wide = torch.randn(2, 4, 16, 72, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        values = torch.cat([vae.decode(one / 0.13025).sample for one in wide.split(1)])

    def progress(total: int) -> object:
        parts.append(-total)
        return parts.append

    tiled = decode(wide, VAE, Decoding(tiling=True, slicing=True), progress)
    assert np.array_equal(tiled, to_8_bits(values, half_up=True))
    assert parts == [-4, 1, 1, 1, 1]
    assert not np.array_equal(tiled, decode(wide, VAE))
    assert np.array_equal(decode(wide[..., :40], VAE, Decoding(tiling=True)), decode(wide[..., :40], VAE))


def test_files_of_older_names_are_read_as_diffusers_reads_them(tmp_path: Path) -> None:
    shutil.copytree(VAE, tmp_path / "old", copy_function=shutil.copyfile)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(VAE / WEIGHTS)
    for new, old in names.items():
        state = {key.replace(f".{new}.", f".{old}."): tensor for key, tensor in state.items()}
    save_file(state, tmp_path / "old" / WEIGHTS)
    assert any(".proj_attn." in key for key in state)
    assert np.array_equal(decode(latents("sigma-ms"), tmp_path / "old"), decode(latents("sigma-ms"), VAE))


def test_the_encoder_is_not_held() -> None:
    names = {name for name, _ in load_decoder(VAE).named_parameters()}
    assert names == {
        name for name, _ in stock().named_parameters() if name.startswith(("decoder.", "post_quant_conv."))
    }


def test_a_vae_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    name = "decoder.conv_out.weight"
    for i, (tensor, rule) in enumerate(
        [
            (None, "the decoder lacks 1 of its 106 tensors, such as decoder.conv_out.weight"),
            (torch.zeros(3, 9, 3, 3), "of different VAEs"),
            (torch.zeros(3, 8, 3, 3, dtype=torch.int8), "quantisation"),
            (torch.full((3, 8, 3, 3), torch.nan), "are its weights damaged"),
        ]
    ):
        with pytest.raises(InputError, match=rule) as caught:
            decode(latents("sigma-ms"), altered(tmp_path / str(i), name, tensor))
        assert caught.match(str(tmp_path / str(i)))


def test_an_overflow_of_half_precision_says_what_to_do(tmp_path: Path) -> None:
    folder = altered(tmp_path / "vae", "decoder.conv_in.weight", torch.full((16, 4, 3, 3), 1e5))
    with pytest.raises(InputError, match="`dtype` float32, or a VAE made for it"):
        decode(latents("sigma-ms"), folder, Decoding(dtype="float16"))


def test_what_is_no_vae_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    with pytest.raises(InputError, match="_class_name is AutoencoderTiny, not AutoencoderKL"):
        load_decoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "block_out_channels": "x"}))
    with pytest.raises(InputError, match="cannot be made of it"):
        load_decoder(tmp_path)
    with pytest.raises(UsageError, match="`dtype` int8"):
        load_decoder(VAE, "int8")


def test_latents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"latents \[1, 32, 8, 8\], and \(B, 4"):
        decode(torch.zeros(1, 32, 8, 8), VAE)
    with pytest.raises(InputError, match="NaN or infinity before they are decoded"):
        decode(torch.full((1, 4, 8, 8), torch.nan), VAE)


def test_a_png_holds_the_picture_and_what_it_was_drawn_with(tmp_path: Path) -> None:
    parameters = {"prompt": "a cat, 猫 \udcff", "negative_prompt": "dog", "seed": 3, "num_inference_steps": 20}
    picture = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    save_png(picture, tmp_path / "new" / "cat.png", png_text(parameters | {"width": 8, "height": 8}))
    with Image.open(tmp_path / "new" / "cat.png") as image:
        assert np.array_equal(np.asarray(image), picture)
        assert image.text["parameters"] == "a cat, 猫 \\udcff\nNegative prompt: dog\nSteps: 20, Seed: 3, Size: 8x8"
        assert json.loads(image.text["convert-pixart"])["seed"] == 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cat.png"]


def test_a_picture_replaces_a_file_only_if_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_text("mine")
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UsageError, match="exists; use `overwrite` to replace it"):
        save_png(picture, path, {})
    assert path.read_text() == "mine"
    save_png(picture, path, {}, overwrite=True)
    with Image.open(path) as image:
        assert image.size == (8, 8)


def test_several_pictures_are_numbered() -> None:
    assert numbered(Path("a/cat.png"), 1) == [Path("a/cat.png")]
    assert numbered(Path("a/cat.v2.png"), 3) == [Path(f"a/cat.v2-{i}.png") for i in (1, 2, 3)]
