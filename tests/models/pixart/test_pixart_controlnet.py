"""The classes of a ControlNet that lie beside its weights: they compute what the original does, train, and draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, PixArtTransformer2DModel
from makers import GOLDEN, HEADS, convert, save
from originals import Original, golden, random
from parts import VAE
from PIL import Image

import converter
from converter.models.pixart import pixart_controlnet
from converter.models.pixart.pixart_controlnet import (
    PixArtControlNetAdapterModel,
    PixArtControlNetPipeline,
    PixArtControlNetTransformerModel,
)
from converter.models.pixart.pixart_transformer import PixArtExtendedTransformer2DModel
from converter.pipelines.assemble import Components

SOURCE = Path(pixart_controlnet.__file__)


def loaded(folder: Path) -> PixArtControlNetTransformerModel:
    transformer = PixArtTransformer2DModel.from_pretrained(folder / "transformer")
    adapter = PixArtControlNetAdapterModel.from_pretrained(folder / "controlnet")
    return PixArtControlNetTransformerModel(transformer, adapter).eval()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(GOLDEN / "alpha-controlnet.pth", tmp_path_factory.mktemp("module") / "out").path


@pytest.fixture
def model(out: Path) -> PixArtControlNetTransformerModel:
    return loaded(out)


def arguments(inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The inputs of an original as the module takes them."""
    return {
        "hidden_states": inputs["latent"],
        "encoder_hidden_states": inputs["caption"],
        "timestep": inputs["timestep"],
        "added_cond_kwargs": {"resolution": inputs.get("img_hw"), "aspect_ratio": inputs.get("aspect_ratio")},
        "encoder_attention_mask": inputs["caption_mask"],
        "controlnet_cond": inputs["control"],
    }


# What it computes.


@torch.no_grad()
def test_every_recorded_output_is_reproduced(model: PixArtControlNetTransformerModel) -> None:
    original = golden("alpha-controlnet")
    for number, case in enumerate(original.cases):
        words = arguments(original.inputs(number))
        assert (model(**words).sample - case["output"]).abs().max() < 2e-5
        base = model(**words | {"controlnet_cond": None}).sample
        assert (base - case["output"]).norm() > 0.1 * case["output"].norm()


@torch.no_grad()
@pytest.mark.parametrize("original", [random(copied_blocks=3, depth=4, multi_scale=False, grid=(8, 8))])
def test_the_fixed_class(original: Original, tmp_path: Path) -> None:
    folder = convert(save(original.state, tmp_path / "net.pth"), tmp_path / "out", version="alpha").path
    words = arguments(original.inputs())
    wanted = original.net(torch.float64).forward(original.inputs())
    assert (loaded(folder)(**words).sample - wanted).abs().max() < 2e-5


@torch.no_grad()
def test_without_a_control_it_is_the_base(model: PixArtControlNetTransformerModel) -> None:
    words = arguments(golden("alpha-controlnet").inputs())
    control = words.pop("controlnet_cond")
    base = model.transformer(**words).sample
    assert torch.equal(model(**words).sample, base)
    assert torch.equal(model(**words, controlnet_cond=control, conditioning_scale=0.0).sample, base)
    whole, half = (model(**words, controlnet_cond=control, conditioning_scale=scale).sample for scale in (1.0, 0.5))
    assert torch.equal(whole, model(**words, controlnet_cond=control).sample)
    assert 0 < (half - base).norm() < (whole - base).norm()


def test_it_trains(model: PixArtControlNetTransformerModel) -> None:
    """With gradient checkpointing the gradients are the same; `train` and `eval` chain."""
    assert model.train() is model
    assert model.controlnet.training
    assert model.controlnet.eval() is model.controlnet
    words = arguments(golden("alpha-controlnet").inputs())
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(**words).sample.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    plain, checkpointed = gradients
    assert all(gradient is not None and gradient.any() for gradient in plain.values())
    assert all(torch.equal(checkpointed[name], gradient) for name, gradient in plain.items())


@torch.no_grad()
def test_a_new_adapter_changes_nothing(model: PixArtControlNetTransformerModel) -> None:
    new = PixArtControlNetAdapterModel(3, 4, 12, 48)
    words = arguments(golden("alpha-controlnet").inputs())
    both = PixArtControlNetTransformerModel(model.transformer, new).eval()
    assert torch.equal(both(**words).sample, model(**words | {"controlnet_cond": None}).sample)
    with pytest.raises(ValueError, match="more blocks than the transformer has after its first"):
        PixArtControlNetTransformerModel(model.transformer, PixArtControlNetAdapterModel(4, 4, 12, 48))


def test_a_base_with_kv_compression_is_refused(model: PixArtControlNetTransformerModel) -> None:
    config = {**model.transformer.config, "kv_compress_sampling": "ave", "kv_compress_factor": 2}
    base = PixArtExtendedTransformer2DModel.from_config({**config, "kv_compress_blocks": [1]})
    with pytest.raises(ValueError, match="KV compression"):
        PixArtControlNetTransformerModel(base, model.controlnet)


# The file.


def test_it_is_short_and_lies_beside_the_weights(out: Path) -> None:
    assert (out / "controlnet" / SOURCE.name).read_bytes() == SOURCE.read_bytes()
    assert len(SOURCE.read_text().splitlines()) < 150
    imports = [line for line in SOURCE.read_text().splitlines() if line.startswith(("import ", "from "))]
    assert {line.split()[1].split(".")[0] for line in imports} == {
        "diffusers",
        "pathlib",
        "torch",
        "typing",
    }


# The pipeline.


@pytest.fixture
def pipeline(model: PixArtControlNetTransformerModel) -> PixArtControlNetPipeline:
    vae = AutoencoderKL.from_pretrained(VAE)
    parts = {"tokenizer": None, "text_encoder": None, "vae": vae, "scheduler": DDPMScheduler(beta_end=0.02)}
    made = PixArtControlNetPipeline(**parts, transformer=model.transformer, controlnet=model.controlnet)
    made.set_progress_bar_config(disable=True)
    return made


def prompts(count: int = 1) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    embeds, negative = torch.randn(2, count, 12, 32, generator=draw)
    mask = torch.ones(count, 12)
    return {
        "prompt_embeds": embeds, "negative_prompt_embeds": negative, "negative_prompt": None,
        "prompt_attention_mask": mask, "negative_prompt_attention_mask": mask,
    }  # fmt: skip


def drawn(pipeline: PixArtControlNetPipeline, seed: int = 1, count: int = 1, **words: Any) -> torch.Tensor:
    how = {
        "num_inference_steps": 2,
        "height": 64,
        "width": 96,
        "use_resolution_binning": False,
        "output_type": "latent",
    }
    generator = torch.Generator().manual_seed(seed)
    latents: torch.Tensor = pipeline(generator=generator, **prompts(count), **how | words).images
    return latents


def picture(seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def test_an_image_controls_what_is_drawn(pipeline: PixArtControlNetPipeline) -> None:
    base = pipeline.transformer
    first = drawn(pipeline, image=picture())
    assert pipeline.transformer is base
    assert first.shape == (1, 4, 8, 12)
    assert torch.equal(drawn(pipeline, image=picture()), first)  # the generator draws the latent of the image as well
    others = [drawn(pipeline, image=picture(1)), drawn(pipeline), drawn(pipeline, image=picture(), guidance_scale=1.0)]
    others.append(drawn(pipeline, image=picture(), conditioning_scale=0.5))
    assert all((first - other).norm() > 1e-3 * first.norm() for other in others)
    unchanged = drawn(pipeline, control_latents=torch.zeros(1, 4, 8, 12), conditioning_scale=0.0)
    assert torch.equal(drawn(pipeline), unchanged)


def test_the_net_gets_what_the_original_got(pipeline: PixArtControlNetPipeline) -> None:
    """In both halves of the guidance the same control, and the size of the picture, whatever the model's own."""
    tokens, sizes = list[torch.Tensor](), list[dict[str, torch.Tensor]]()
    pipeline.controlnet.register_forward_hook(lambda module, inputs, skips: tokens.append(inputs[1]))
    pipeline.transformer.adaln_single.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[1]))
    controls = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    drawn(pipeline, count=2, control_latents=controls, num_images_per_prompt=2)
    assert sizes[0]["resolution"].tolist() == [[64, 96]] * 8
    assert torch.allclose(sizes[0]["aspect_ratio"], torch.tensor([[64 / 96]] * 8))
    wanted = pipeline.transformer.pos_embed(controls)[[0, 0, 1, 1, 0, 0, 1, 1]]
    assert torch.allclose(tokens[0], wanted, atol=1e-6)


@pytest.mark.parametrize(("controls", "count"), [(2, 1), (3, 2), (4, 2)])
@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_there_is_one_control_or_one_for_each_prompt(
    pipeline: PixArtControlNetPipeline, controls: int, count: int, guidance: float
) -> None:
    base, words = pipeline.transformer, f"{controls} controls, {count} prompts: give one, or one for each"
    for each in ({"control_latents": torch.randn(controls, 4, 8, 12)}, {"image": [picture()] * controls}):
        with pytest.raises(ValueError, match=words):
            drawn(pipeline, count=count, num_images_per_prompt=2, guidance_scale=guidance, **each)
    assert pipeline.transformer is base


def test_the_image_is_encoded_as_in_training(pipeline: PixArtControlNetPipeline) -> None:
    """In [-1, 1] at the size of the latents, sampled, and scaled; so its latent can be given instead."""
    pixels = torch.from_numpy(np.array(picture().resize((96, 64), Image.Resampling.LANCZOS)))
    pixels = pixels.permute(2, 0, 1)[None] / 127.5 - 1
    generator = torch.Generator().manual_seed(1)
    torch.randn(1, 4, 8, 12, generator=generator)  # the latents are drawn first
    with torch.no_grad():
        latent = pipeline.vae.encode(pixels).latent_dist.sample(generator) * pipeline.vae.config.scaling_factor
    words = {"guidance_scale": 1.0, "timesteps": [999]}
    pipeline.scheduler = DDPMScheduler(beta_end=0.02, variance_type="fixed_small")
    seen: list[torch.Tensor] = []
    pipeline.controlnet.register_forward_hook(lambda module, inputs, skips: seen.append(inputs[1]))
    drawn(pipeline, image=picture(), num_inference_steps=1, **words)
    drawn(pipeline, control_latents=latent, num_inference_steps=1, **words)
    assert torch.allclose(seen[0], seen[1], atol=1e-4)


def test_the_components_of_another_pipeline_draw_with_a_control(
    model: PixArtControlNetTransformerModel, tmp_path: Path
) -> None:
    """Of one whose class and scheduler travel."""
    given, beside = {"num_attention_heads": HEADS}, Components(vae=VAE)
    converter.convert(GOLDEN / "alpha-ms.pth", tmp_path / "pipe", hyper_parameters=given, components=beside)
    words = {"transformer": model.transformer, "trust_remote_code": True}
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "pipe", **words)
    assert type(loaded).__name__ == "PixArtAlphaMSPipeline"
    controlled = PixArtControlNetPipeline(**loaded.components, controlnet=model.controlnet)
    controlled.set_progress_bar_config(disable=True)
    assert controlled.transformer is model.transformer
    assert not torch.equal(drawn(controlled, image=picture()), drawn(controlled))


def test_a_pipeline_is_saved_with_both_and_loads(pipeline: PixArtControlNetPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "pipe")
    assert {path.name for path in (tmp_path / "pipe").iterdir()} >= {"transformer", "controlnet", "vae", "scheduler"}
    parts = {"transformer": pipeline.transformer, "controlnet": pipeline.controlnet}
    again = PixArtControlNetPipeline.from_pretrained(tmp_path / "pipe", **parts)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(drawn(again, image=picture()), drawn(pipeline, image=picture()))
