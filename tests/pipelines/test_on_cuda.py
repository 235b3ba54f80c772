"""Drawing on a real device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import HEADS, Result
from parts import PARTS, TEXT, vae_of
from recordings import recording
from safetensors.torch import load_file, save_file

from converter.parity.trajectory import DIVERGED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
Cli = Callable[..., Result]


def test_cuda_draws_what_was_recorded(cli: Cli, tmp_path: Path) -> None:
    """From the same noise, up to what that device rounds; and again, with the memory of the device as the peak."""
    tensors = recording("sigma-ms").tensors
    names = {"prompt_embeds": tensors["caption"][:, 0], "negative_prompt_embeds": tensors["null_caption"]}
    masks = dict.fromkeys(("prompt_attention_mask", "negative_prompt_attention_mask"), tensors["caption_mask"])
    save_file({name: tensor.clone() for name, tensor in (names | masks).items()}, tmp_path / "embeds.safetensors")
    save_file({"latents": tensors["noise"]}, tmp_path / "noise.safetensors")
    begin = ["--prompt_embeds", tmp_path / "embeds.safetensors", "--latents", tmp_path / "noise.safetensors"]
    begin += ["--pipeline", PARTS / "sigma-ms.pth", "--num_attention_heads", HEADS, "--num_inference_steps", 14]
    out = ["--output", tmp_path / "out.safetensors", "--output_type", "latent", "--device", "cuda", "--json"]
    done = cli("pixart", "generate", *begin, *out)
    assert done.returncode == 0, done.stderr
    assert recording("sigma-ms").error("dpm14", load_file(tmp_path / "out.safetensors")["latents"]) < DIVERGED
    assert 0 < json.loads(done.stdout)["peak_memory"]["transformer"] < 100_000_000


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_three_stages_run_on_cuda(dtype: str, cli: Cli, tmp_path: Path) -> None:
    parts = [word for name, folder in (TEXT | {"vae": vae_of("alpha-ms")}).items() for word in (f"--{name}", folder)]
    begin = ["--pipeline", PARTS / "alpha-ms.pth", "--num_attention_heads", HEADS, "--prompt", "a red cat"]
    small = ["--height", 128, "--width", 96, "--use_resolution_binning", "no", "--num_inference_steps", 2]
    out = ["--output", tmp_path / "a.png", "--device", "cuda", "--dtype", dtype]
    done = cli("pixart", "generate", *begin, *parts, *small, *out)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").exists()
