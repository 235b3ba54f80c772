"""Text encoders, tokenizer and alpha's VAE in `fixtures/pipeline` are as generated, and fit what was recorded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from makers import ROOT
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, T5EncoderModel

PIPELINE = ROOT / "fixtures" / "pipeline"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pipeline", ROOT / "fixtures" / "make_pipeline.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(generator: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    generator.write(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}


@pytest.mark.parametrize("name", ["text_encoder-alpha", "text_encoder-sigma"])
def test_the_committed_encoders_are_what_is_generated(written: Path, name: str) -> None:
    kept, new = weights(PIPELINE / name), weights(written / name)
    assert kept.keys() == new.keys()
    assert len(kept) == 21
    assert all(torch.equal(kept[key], new[key]) for key in kept)
    assert {file.name for file in (PIPELINE / name).iterdir()} == {file.name for file in (written / name).iterdir()}


def test_the_committed_tokenizer_is_what_is_generated(generator: ModuleType, written: Path) -> None:
    kept, new = (AutoTokenizer.from_pretrained(root / "tokenizer") for root in (PIPELINE, written))
    assert kept.get_vocab() == new.get_vocab()
    assert len(kept) == 300
    texts = [*generator.SENTENCES, "", "Grüße, {5} ~cats~?"]
    assert kept(texts).input_ids == new(texts).input_ids
    assert kept.unk_token_id not in kept("printable ASCII: !#$%&'()*+-/;<=>@[]^_`{|}~").input_ids


def test_the_vae_of_alpha_differs_in_one_field(written: Path) -> None:
    recorded, kept, new = (
        json.loads((folder / "config.json").read_text())
        for folder in (PIPELINE / "vae", PIPELINE / "vae-alpha", written / "vae-alpha")
    )
    assert kept == new == recorded | {"scaling_factor": 0.18215}
    assert weights(PIPELINE / "vae-alpha").keys() == weights(PIPELINE / "vae").keys()
    name = "diffusion_pytorch_model.safetensors"
    assert (PIPELINE / "vae-alpha" / name).read_bytes() == (PIPELINE / "vae" / name).read_bytes()


def test_a_difference_is_told(generator: ModuleType, written: Path, tmp_path: Path) -> None:
    """With the versions that wrote them, byte for byte."""
    version = json.loads((PIPELINE / "text_encoder-sigma/config.json").read_text())["transformers_version"]
    same_version = (
        version == json.loads((written / "text_encoder-sigma/config.json").read_text())["transformers_version"]
    )
    if same_version:
        assert generator.differences(written) == []
    generator.write(tmp_path)
    assert generator.differences(tmp_path, written) == []  # deterministic
    config = tmp_path / "text_encoder-sigma/config.json"
    config.write_text(config.read_text().replace('"d_model": 24', '"d_model": 25'))
    (tmp_path / "tokenizer/spiece.model").unlink()
    assert generator.differences(tmp_path, written) == ["text_encoder-sigma/config.json", "tokenizer/spiece.model"]


@pytest.mark.parametrize("model", ["alpha-ms", "alpha-fixed", "sigma-ms"])
def test_the_encoders_make_captions_of_the_recorded_width(model: str) -> None:
    with safe_open(PIPELINE / f"{model}.golden.safetensors", "pt") as recorded:
        width = recorded.get_slice("caption").get_shape()[-1]
    encoder = T5EncoderModel.from_pretrained(PIPELINE / f"text_encoder-{model.partition('-')[0]}")
    tokenizer: Any = AutoTokenizer.from_pretrained(PIPELINE / "tokenizer")
    with torch.no_grad():
        embeddings = encoder(**tokenizer(["a cat"], return_tensors="pt")).last_hidden_state
    assert embeddings.shape[-1] == width
    assert 0.3 < embeddings.std() < 3
