"""`converter.load_pipeline` gives the pipeline that a whole conversion gives, without the conversion."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from makers import HEADS
from parts import PARTS, TEXT, TEXT_ENCODER, TOKENIZER, VAE, assemble, vae_of

import converter

GIVEN = {"num_attention_heads": HEADS}


def load(name: str, **words: Any) -> Any:
    return converter.load_pipeline(PARTS / f"{name}.pth", **{"vae": vae_of(name), "hyper_parameters": GIVEN} | words)


def drawn(pipeline: Any, **words: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    inputs = {"num_inference_steps": 2, "height": 64, "width": 64, "use_resolution_binning": False, "output_type": "pt"}
    picture: torch.Tensor = pipeline(**inputs, **words, generator=torch.Generator().manual_seed(1)).images
    return picture


@pytest.mark.parametrize("name", ["alpha-fixed", "alpha-ms", "sigma-ms"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_it_draws_what_the_converted_pipeline_draws(name: str, dtype: torch.dtype | None, tmp_path: Path) -> None:
    text = {} if name == "sigma-ms" else TEXT
    assemble(name, tmp_path / "out", **text)
    wanted = DiffusionPipeline.from_pretrained(
        tmp_path / "out", trust_remote_code=True, torch_dtype=dtype or torch.float32
    )
    pipeline = load(name, **text, torch_dtype=dtype)
    assert type(pipeline).__name__ == type(wanted).__name__
    assert type(pipeline.scheduler).__name__ == type(wanted.scheduler).__name__
    own = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    assert own == {key: value for key, value in wanted.scheduler.config.items() if not key.startswith("_")}
    if text:
        prompt: dict[str, Any] = {"prompt": "a red cat"}
    else:
        tokens, channels = 300, pipeline.transformer.config.caption_channels
        embeddings = torch.randn(1, tokens, channels, generator=torch.Generator().manual_seed(2))
        prompt = {"prompt": None, "negative_prompt": None}
        for kind in ("prompt", "negative_prompt"):
            prompt |= {f"{kind}_embeds": embeddings.to(pipeline.transformer.dtype)}
            prompt |= {f"{kind}_attention_mask": torch.ones(1, tokens)}
    assert {part.dtype for part in (pipeline.vae, pipeline.transformer)} == {dtype or torch.float32}
    assert torch.equal(drawn(pipeline, **prompt), drawn(wanted, **prompt))


def test_schedulers(tmp_path: Path) -> None:
    assert type(load("sigma-ms", scheduler="dmd").scheduler).__name__ == "PixArtDMDScheduler"
    assert type(load("sigma-ms", stock=True).scheduler) is DPMSolverMultistepScheduler
    assemble("sigma-ms", tmp_path / "out")
    code = tmp_path / "out" / "scheduler" / "pixart_schedulers.py"
    code.write_text("raise SystemExit('run')\n" + code.read_text())
    scheduler = load("sigma-ms", scheduler=tmp_path / "out").scheduler
    assert type(scheduler).__module__ == "converter.models.pixart.pixart_schedulers"


def test_it_is_said_how_to_call_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "converter"):
        load("sigma-ms")
    assert any("without a text encoder the pipeline draws from embeddings" in message for message in caplog.messages)


def broken(path: Path) -> Path:
    path.mkdir()
    for file in VAE.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    weights = path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    return path


@pytest.mark.parametrize(("words", "error", "rule"), [
    ({"vae": 5}, converter.UsageError, "`vae`: must be a folder or a hub id, not int"),
    ({"vae": None}, converter.UsageError, "`vae` is needed for a whole pipeline"),
    ({"vae": PARTS / "vae"}, converter.InputError, "it is the VAE of another model"),
    ({"vae": TOKENIZER}, converter.InputError, "holds no config.json: not a vae"),
    ({"tokenizer": TOKENIZER}, converter.UsageError, "`tokenizer` requires `text_encoder`"),
    ({"text_encoder": VAE, "tokenizer": TOKENIZER}, converter.InputError, "not a text_encoder but a AutoencoderKL"),
    ({"scheduler": "euler"}, converter.UsageError, "`scheduler` euler: one of dpm-solver, "),
    ({"prompt": "a cat"}, converter.UsageError, "prompt: not an option; hyper-parameters of the model go into"),
    ({"overwrite": True}, converter.UsageError, "overwrite: not an option of loading, which are torch_dtype, "),
    ({"weights": "ema"}, converter.UsageError, "ema"),
])  # fmt: skip
def test_a_call_that_is_refused(words: dict[str, Any], error: type[Exception], rule: str) -> None:
    with pytest.raises(error, match=rule) as caught:
        load("alpha-fixed", **words)
    assert "\n" not in str(caught.value)


def test_a_component_that_its_library_cannot_load(tmp_path: Path) -> None:
    with pytest.raises(converter.InputError) as caught:
        load("alpha-fixed", vae=broken(tmp_path / "vae"))
    assert str(caught.value).startswith(str(tmp_path / "vae"))
    assert "\n" not in str(caught.value)


def test_a_family_without_pictures() -> None:
    with pytest.raises(converter.UsageError, match="does not say how pictures are drawn"):
        converter.load_pipeline("fixtures/golden/dit.pt", vae=VAE, hyper_parameters=GIVEN)


def test_the_text_encoder_is_the_components_own(tmp_path: Path) -> None:
    pipeline = load("alpha-ms", text_encoder=TEXT_ENCODER, tokenizer=TOKENIZER, disable_mmap=True)
    assert not pipeline.text_encoder.training
    assert type(pipeline.tokenizer).__name__.startswith("T5Tokenizer")
