"""The golden checkpoints: what is converted computes what the original net computed; what cannot be is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from makers import (
    GOLDEN,
    convert,
    diffusers_keyed,
    expected_weights,
    pixart,
    recorded,
    save,
    sincos,
    tree,
)
from safetensors.torch import load_file

TOLERANCE = 2e-5
MODELS = ("alpha-ms", "alpha-fixed", "sigma-ms")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=MODELS)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(name, the folder that it was converted to)."""
    out = tmp_path_factory.mktemp("golden") / request.param
    convert(GOLDEN / f"{request.param}.pth", out)
    return request.param, out


def load(folder: Path) -> torch.nn.Module:
    """The model as stock diffusers loads it, and nothing missing or left over (which it would only warn about)."""
    model, info = PixArtTransformer2DModel.from_pretrained(
        folder, subfolder="transformer", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert {name: list(keys) for name, keys in info.items() if keys} == {}
    return model.eval()


def run(model: torch.nn.Module, case: dict[str, torch.Tensor], micro: bool) -> torch.Tensor:
    with torch.no_grad():
        return model(
            case["latent"],
            encoder_hidden_states=case["caption"][:, 0],
            encoder_attention_mask=case["caption_mask"][:, 0, 0],
            timestep=case["timestep"],
            added_cond_kwargs={
                "resolution": case["img_hw"] if micro else None,
                "aspect_ratio": case["aspect_ratio"] if micro else None,
            },
        ).sample


def test_every_recorded_output_is_reproduced(golden: tuple[str, Path]) -> None:
    name, out = golden
    model = load(out)
    _, cases = recorded(name)
    micro = bool(json.loads((out / "transformer/config.json").read_text())["use_additional_conditions"])
    assert micro == (name == "alpha-ms")
    assert len(cases) == (1 if name == "alpha-fixed" else 2)
    for case in cases:
        error = (run(model, case, micro) - case["output"]).abs().max().item()
        assert error < TOLERANCE, f"{name}: off by {error}"
    # The recordings can tell: with the positions of another scale the outputs are others.
    config = dict(model.config) | {"interpolation_scale": model.config.interpolation_scale * 2}
    wrong = PixArtTransformer2DModel.from_config(config).eval()
    wrong.load_state_dict(model.state_dict())
    assert (run(wrong, cases[0], micro) - cases[0]["output"]).abs().max() > 100 * TOLERANCE


def test_the_config_is_what_the_original_net_was_made_of(golden: tuple[str, Path]) -> None:
    name, out = golden
    settings, _ = recorded(name)
    config = json.loads((out / "transformer/config.json").read_text())
    wanted = {
        "_class_name": "PixArtTransformer2DModel",
        "num_layers": settings["depth"],
        "num_attention_heads": settings["num_heads"],
        "attention_head_dim": settings["hidden_size"] // settings["num_heads"],
        "cross_attention_dim": settings["hidden_size"],
        "caption_channels": settings["caption_channels"],
        "sample_size": settings["input_size"],
        "interpolation_scale": settings.get("lewei_scale", settings.get("pe_interpolation")),
        "in_channels": 4,
        "out_channels": 8,
        "patch_size": 2,
    }
    assert {key: config[key] for key in wanted} == wanted
    # Nothing is left for diffusers to guess: every argument of the class is written, and no other.
    written = {key for key in config if not key.startswith("_")}
    arguments = signature(PixArtTransformer2DModel.__init__).parameters
    assert written == set(arguments) - {"self"}


def test_the_weights_are_the_bytes_that_safetensors_writes(golden: tuple[str, Path], tmp_path: Path) -> None:
    name, out = golden
    loaded = torch.load(GOLDEN / f"{name}.pth", weights_only=True)
    state = loaded.get("state_dict", loaded)
    assert (out / WEIGHTS).read_bytes() == expected_weights(state, tmp_path / "by-safetensors")
    extras = load_file(out / "original_extras.safetensors")
    assert list(extras) == ["y_embedder.y_embedding"]
    # The maker that other tests rest on makes the very table.
    settings, _ = recorded(name)
    scale = settings.get("lewei_scale", settings.get("pe_interpolation"))
    assert torch.equal(sincos(48, settings["input_size"] // 2, scale), state["pos_embed"])
    assert torch.equal(extras["y_embedder.y_embedding"], state["y_embedder.y_embedding"])


def test_raw_is_the_default_and_ema_another_model(tmp_path: Path) -> None:
    path = GOLDEN / "alpha-ms.pth"
    loaded = torch.load(path, weights_only=True)
    for weights, key in ((None, "state_dict"), ("raw", "state_dict"), ("ema", "state_dict_ema")):
        done = convert(path, tmp_path / str(weights), weights=weights)
        assert (done.path / WEIGHTS).read_bytes() == expected_weights(loaded[key], tmp_path / "by-safetensors")
        assert done.record["source"]["weights"] == (weights or "raw")
        assert any("--weights ema" in note for note in done.notes) == (weights is None)
    # The outputs were recorded with the raw weights, so the EMA's must differ: else nothing was chosen.
    _, cases = recorded("alpha-ms")
    assert (run(load(done.path), cases[0], True) - cases[0]["output"]).abs().max() > 100 * TOLERANCE


# What stock diffusers cannot hold: known by name, refused, and nothing written.


REFUSED: dict[str, tuple[Any, str]] = {
    "qk-norm in one block": (
        pixart() | {f"blocks.1.attn.{n}_norm.{s}": torch.ones(24) for n in "qk" for s in ("weight", "bias")},
        "the qk_norm group is incomplete",
    ),
    "a convolution without its norm": (
        {key: tensor for key, tensor in pixart(kv_compress=(1,)).items() if ".attn.norm." not in key},
        "kv_compress: blocks.{}.attn.sr in 1: a block that compresses has a convolution and its norm",
    ),
    "another model's lora": ({f"some_blocks.0.attn1.to_q.lora_{ab}.weight": torch.ones(4, 4) for ab in "AB"}, "LoRA"),
    "relative positions": (
        pixart() | {f"blocks.0.attn.rel_pos_{axis}": torch.zeros(15, 6) for axis in "hw"},
        "relative positions",
    ),
    "another transformer": (
        {key.replace("transformer_blocks", "joint_blocks"): t for key, t in diffusers_keyed(pixart()).items()},
        "another model family",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_is_refused_by_name(name: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
    made, word = REFUSED[name]
    path = made if isinstance(made, Path) else save(made, tmp_path / "forged.pth")
    before = tree(tmp_path)
    result = cli("convert-pixart", "--orig_ckpt_path", path, "--dump_path", tmp_path / "out", "--num_attention_heads=4")
    assert result.returncode == 3
    assert word in result.stderr
    assert str(path) in result.stderr
    assert result.stderr.count("\n") == 1
    assert tree(tmp_path) == before
