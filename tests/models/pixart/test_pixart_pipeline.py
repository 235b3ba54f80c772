"""The pipeline of PixArt-alpha that tells every model the size of the image."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from makers import HEADS, ROOT

import converter
from converter.models.pixart.pixart_pipeline import PixArtAlphaMSPipeline

PARTS = ROOT / "fixtures" / "pipeline"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a small alpha of 1024 px with micro-conditions."""
    out = tmp_path_factory.mktemp("alpha") / "out"
    converter.convert(PARTS / "alpha-ms.pth", out, hyper_parameters={"num_attention_heads": HEADS})
    return {
        "tokenizer": None,
        "text_encoder": None,
        "vae": AutoencoderKL.from_pretrained(PARTS / "vae-alpha"),
        "transformer": PixArtTransformer2DModel.from_pretrained(out, subfolder="transformer"),
        "scheduler": DPMSolverMultistepScheduler(),
    }


def of_512_px(model: PixArtTransformer2DModel) -> PixArtTransformer2DModel:
    """The very same function under the config of a 512 px model: half the size at half the scale, so that positions
    are the same, and with them the output."""
    config = dict(model.config) | {"sample_size": 64, "interpolation_scale": model.config.interpolation_scale / 2}
    same = PixArtTransformer2DModel.from_config(config)
    same.load_state_dict(model.state_dict())
    return same.to(model.dtype).eval()


def draw(pipeline: PixArtAlphaPipeline, **words: Any) -> torch.Tensor:
    """Latents after two steps, from embeddings."""
    pipeline.set_progress_bar_config(disable=True)
    random = torch.Generator().manual_seed(0)
    caption, null = torch.randn(2, 2, 20, 32, generator=random)
    mask = torch.ones(2, 20)
    embeddings = {"prompt_embeds": caption, "prompt_attention_mask": mask, "negative_prompt_embeds": null}
    how = {"num_inference_steps": 2, "height": 128, "width": 96, "use_resolution_binning": False}
    prompts = embeddings | {"negative_prompt_attention_mask": mask, "negative_prompt": None}
    latents: torch.Tensor = pipeline(**prompts, **how | words, generator=random, output_type="latent").images
    return latents


WAYS: dict[str, dict[str, Any]] = {
    "guided": {},
    "not guided": {"guidance_scale": 1.0},
    "two of each": {"num_images_per_prompt": 2, "width": 160},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_at_every_size_what_the_stock_pipeline_does_at_1024_px(way: str, dtype: Any, parts: dict[str, Any]) -> None:
    parts = parts | {"transformer": deepcopy(parts["transformer"]).to(dtype)}
    wanted = draw(PixArtAlphaPipeline(**parts), **WAYS[way])
    assert wanted.dtype == dtype
    assert torch.equal(draw(PixArtAlphaMSPipeline(**parts), **WAYS[way]), wanted)
    small = parts | {"transformer": of_512_px(parts["transformer"])}
    assert torch.equal(draw(PixArtAlphaMSPipeline(**small), **WAYS[way]), wanted)


def test_the_stock_pipeline_fails(parts: dict[str, Any]) -> None:
    """Which this one is for, and after which nothing of it is left."""
    small = parts | {"transformer": of_512_px(parts["transformer"])}
    draw(PixArtAlphaMSPipeline(**small))
    with pytest.raises(AttributeError):
        draw(PixArtAlphaPipeline(**small))
    with pytest.raises(ValueError, match="divisible by 8"):
        draw(PixArtAlphaMSPipeline(**small), height=127)
    with pytest.raises(AttributeError):
        draw(PixArtAlphaPipeline(**small))


def test_a_model_without_micro_conditions(parts: dict[str, Any]) -> None:
    config = dict(parts["transformer"].config) | {"sample_size": 64, "use_additional_conditions": False}
    model = PixArtTransformer2DModel.from_config(config)
    model.load_state_dict(parts["transformer"].state_dict(), strict=False)
    model = model.eval()
    both = [kind(**parts | {"transformer": model}) for kind in (PixArtAlphaPipeline, PixArtAlphaMSPipeline)]
    assert torch.equal(draw(both[0]), draw(both[1]))
