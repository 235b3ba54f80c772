"""The memory plan against weights and activations that were counted and measured on the full-size parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from makers import ROOT

import converter
from converter.checkpoint import open_checkpoint
from converter.errors import InputError, UsageError
from converter.pipelines import plan as plans
from converter.pipelines.plan import BASE, Request, Sizes, as_bytes, count, plan, sizes_of

PIPELINE = ROOT / "fixtures" / "pipeline"
GB = 1e9
GPU: dict[str, Any] = {"device": "cuda", "text_dtype": "bfloat16", "dtype": "float16", "vae_dtype": "float16"}
LARGE: dict[str, Any] = {"height": 1024, "width": 1024}


def empty_file(path: Path, shapes: Mapping[str, tuple[int, ...]], item: int = 2) -> None:
    """A safetensors file of zeros that takes no space: only its header is written."""
    header, end = dict[str, Any](), 0
    for key, shape in shapes.items():
        start, end = end, end + item * torch.Size(shape).numel()
        header[key] = {"dtype": {2: "BF16", 4: "F32"}[item], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Sizes:
    """Of the published parts: T5-XXL's encoder in bfloat16, the transformer, the VAE."""
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("full-size")
    config = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
    )
    levels: dict[str, Any] = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 1024}
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    with torch.device("meta"):
        empty_file(folder / "text" / "model.safetensors", shapes_of(T5EncoderModel(config)))
        vae = shapes_of(AutoencoderKL(**levels, **kinds))
    empty_file(folder / "vae" / "diffusion_pytorch_model.safetensors", vae)
    (folder / "vae" / "config.json").write_text(json.dumps(levels | kinds))
    inventory = json.loads((ROOT / "fixtures" / "inventories" / "sigma-1024-ms.json").read_text())
    shapes = {key: tuple(shape) for key, (_, shape) in inventory["tensors"].items()}
    empty_file(folder / "sigma.safetensors", shapes)
    with open_checkpoint(folder / "sigma.safetensors") as checkpoint:
        return sizes_of(checkpoint, folder / "vae", folder / "text")


def close(count: float, gigabytes: float, within: float = 0.15) -> bool:
    return abs(count / GB - gigabytes) <= within * gigabytes


@pytest.mark.parametrize(
    ("dtype", "how", "gigabytes"),
    [
        ("bfloat16", "whole", 9.52),
        ("float16", "whole", 11.54),
        ("bfloat16", "8bit", 5.90),
        ("float16", "8bit", 7.91),
        ("bfloat16", "nf4", 4.31),
        ("float16", "nf4", 6.33),
        ("bfloat16", "streamed", 0.39),
    ],
)
def test_the_text_encoder_weighs_what_transformers_loads(sizes: Sizes, dtype: str, how: str, gigabytes: float) -> None:
    assert sizes.text
    staged = max(part[3] for part in sizes.text.parts) if dtype == "float16" else 0  # read in bfloat16, and cast
    assert close(sizes.text.weights(dtype, how) - staged, gigabytes, 0.015)


def test_the_other_parts_weigh_what_they_have_parameters(sizes: Sizes) -> None:
    assert close(sizes.transformer.weights("bfloat16"), 1.22 + 2 * (4096 * 1152 + 300 * 4096) / GB, 0.01)  # buffers
    assert sizes.transformer.weights("bfloat16", "streamed") < 0.05 * GB
    assert close(sizes.vae.weights("bfloat16"), 2 * 49.5e-3, 0.01)
    assert (sizes.transformer.width, sizes.transformer.inner, sizes.transformer.patch) == (1152, 4608, 2)
    assert sizes.text
    assert (sizes.text.width, sizes.text.inner) == (4096, 10240)


@pytest.mark.parametrize(
    ("request_", "gigabytes"),
    [
        # By shapes.
        ({"device": "cuda", "dtype": "float16"}, 0.23),
        ({"device": "cuda", "dtype": "float16", "guided": False}, 0.11),
        ({"device": "cuda"}, 0.46),
        ({"device": "cuda", "guided": False}, 0.23),
    ],
)
def test_a_step_takes_what_was_counted(sizes: Sizes, request_: dict[str, Any], gigabytes: float) -> None:
    assert close(sizes.step(Request(**LARGE | request_)), gigabytes)


@pytest.mark.parametrize(
    ("request_", "gigabytes"),
    [({}, 0.539), ({"dtype": "bfloat16"}, 0.754), ({"height": 768, "width": 1280}, 0.457)],
)
def test_a_step_on_the_cpu_is_planned_with_no_less_than_it_took(
    sizes: Sizes, request_: dict[str, Any], gigabytes: float
) -> None:
    assert gigabytes <= sizes.step(Request(**LARGE | request_)) / GB <= 1.25 * gigabytes


@pytest.mark.parametrize(("dtype", "gigabytes"), [("float32", 1.650), ("bfloat16", 1.017)])
def test_a_streamed_text_encoder_is_planned_with_no_less_than_it_took(
    sizes: Sizes, dtype: str, gigabytes: float
) -> None:
    assert sizes.text
    planned = BASE + sizes.text.weights(dtype, "streamed") + sizes.encoding(Request(**LARGE, text_dtype=dtype))
    assert gigabytes <= planned / GB <= 1.25 * gigabytes


@pytest.mark.parametrize(
    ("request_", "how", "gigabytes"),
    [
        ({"device": "cuda", "vae_dtype": "float16"}, "whole", 1.61),
        ({"device": "cuda"}, "whole", 3.22),
        ({"device": "cuda", "vae_dtype": "float16"}, "tiled", 0.41),
        ({"device": "cuda"}, "tiled", 0.82),
        ({"device": "cuda", "vae_dtype": "float16", "height": 512, "width": 512}, "whole", 0.40),
        ({"device": "cuda", "height": 512, "width": 512}, "whole", 0.81),
        ({"device": "cuda", "vae_dtype": "float16", "height": 2048, "width": 2048}, "whole", 6.44),
        ({"device": "cuda", "vae_dtype": "float16", "height": 2048, "width": 2048}, "tiled", 0.44),
        ({"device": "cuda", "height": 2048, "width": 2048}, "whole", 12.9),
        ({"device": "cuda", "height": 2048, "width": 2048}, "tiled", 0.88),
        ({"device": "cuda", "vae_dtype": "float16", "images": 2}, "whole", 3.22),
        ({"device": "cuda", "vae_dtype": "float16", "images": 2}, "sliced", 1.62),
        # Measured on the CPU.
        ({}, "whole", 3.86),
        ({}, "tiled", 1.06),
        ({"height": 512, "width": 512}, "whole", 1.02),
    ],
)
def test_decoding_takes_what_was_counted_and_measured(
    sizes: Sizes, request_: dict[str, Any], how: str, gigabytes: float
) -> None:
    assert close(sizes.decoding(Request(**LARGE | request_), how), gigabytes)


def test_what_is_exact_comes_first_and_only_as_much_is_given_up_as_has_to_be(
    sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "available", lambda device: int(40 * GB) - BASE)
    request = Request(**LARGE | GPU)

    def hows(budget: int | None, request: Request = request, **options: Any) -> list[str]:
        result = plan(sizes, request, budget, **options)
        for stage in result.stages:
            assert stage.total == BASE + stage.weights_bytes + stage.activation_bytes <= (budget or 40 * GB)
        return [stage.how for stage in result.stages]

    assert hows(None) == ["whole", "whole", "whole"]
    assert hows(as_bytes("11GB")) == ["whole", "whole", "whole"]
    assert hows(as_bytes("8GB")) == ["streamed", "whole", "whole"]
    assert hows(as_bytes("8GB"), quantize="8bit") == ["8bit", "whole", "whole"]
    assert hows(as_bytes("5GB"), quantize="nf4") == ["nf4", "whole", "whole"]
    assert hows(as_bytes("2GB")) == ["streamed", "whole", "tiled"]
    assert hows(as_bytes("1.1GB")) == ["streamed", "streamed", "tiled"]
    pair = Request(**LARGE | GPU, images=2)
    assert hows(as_bytes("3GB"), pair) == ["streamed", "whole", "sliced"]
    assert hows(as_bytes("3GB"), Request(**LARGE, text_dtype="bfloat16", dtype="bfloat16")) == [
        "streamed", "whole", "tiled",
    ]  # fmt: skip


def test_the_plan_is_printed_with_its_arithmetic(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "available", lambda device: int(16 * GB) - BASE)
    first, text, step, picture = plan(sizes, Request(**LARGE | GPU), as_bytes("3GB")).lines()
    assert first == "memory: `memory_budget` 3.00 GB"
    assert text.startswith("text encoder: streamed from its files: largest part 386 MB + activations 90.9 MB + ")
    assert text.endswith("the process itself 500 MB = 977 MB")
    assert step.startswith("transformer: whole: weights 1.25 GB + activations 226 MB")
    assert picture.startswith("VAE: whole: weights 104 MB + activations 1.6")


def test_what_cannot_fit_is_refused_with_the_least_that_would_do(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "available", lambda device: int(3 * GB) - BASE)
    request = Request(**LARGE | GPU)
    with pytest.raises(
        UsageError, match=r"`memory_budget` 900 MB, and 1.02 GB is the least that would do: VAE: in tiles"
    ):
        plan(sizes, request, as_bytes("900MB"))
    with pytest.raises(UsageError, match=r"is the least that would do: text encoder: in 8 bits"):
        plan(sizes, request, quantize="8bit")
    with pytest.raises(UsageError, match="`quantize` int3: one of 8bit, nf4"):
        plan(sizes, request, quantize="int3")
    # Without a budget, or with a larger one, it is what there is that counts.
    assert [stage.how for stage in plan(sizes, request).stages] == ["streamed", "whole", "whole"]
    capped = plan(sizes, request, as_bytes("80GB"))
    assert [stage.how for stage in capped.stages] == ["streamed", "whole", "whole"]
    assert capped.room == "`memory_budget` 80.00 GB, but only 3.00 GB available"


def test_embeddings_need_no_text_encoder_and_small_pictures_no_tiles() -> None:
    with converter.open_checkpoint(PIPELINE / "sigma-ms.pth") as checkpoint:
        sizes = sizes_of(checkpoint, PIPELINE / "vae")
        assert count(checkpoint).total == sum(tensor.numel for tensor in checkpoint.values())
    result = plan(sizes, Request(height=112, width=144))
    assert [(stage.name, stage.how) for stage in result.stages] == [("transformer", "whole"), ("VAE", "whole")]
    with pytest.raises(UsageError, match="VAE: whole"):
        plan(sizes, Request(height=112, width=144), BASE + 60_000_000)


def test_a_decoder_beside_the_encoder_is_not_counted_and_shards_are(tmp_path: Path) -> None:
    block = {
        f"{side}.block.{i}.layer.0.SelfAttention.q.weight": (8, 8) for side in ("encoder", "decoder") for i in (0, 1)
    }
    empty_file(tmp_path / "model.safetensors", block | {"shared.weight": (100, 8), "lm_head.weight": (100, 8)}, 4)
    with converter.open_checkpoint(PIPELINE / "sigma-ms.pth") as checkpoint:
        both = sizes_of(checkpoint, PIPELINE / "vae", tmp_path).text
        shards = sizes_of(checkpoint, PIPELINE / "vae", PIPELINE / "text_encoder-alpha").text
    assert both
    assert (both.total, both.dtype, max(both.parts)) == (928, "float32", (800, 0, 0, 3200))
    assert both.weights("bfloat16", "streamed") == 2 * 800 + 4 * 800  # one tensor as it is in the file, and cast
    assert shards
    assert any(kept for _, _, kept, _ in shards.parts)


def test_what_is_no_vae_and_no_size_is_refused(tmp_path: Path) -> None:
    with (
        converter.open_checkpoint(PIPELINE / "sigma-ms.pth") as checkpoint,
        pytest.raises(InputError, match="block_out_channels is no list of numbers"),
    ):
        sizes_of(checkpoint, tmp_path)
    for text in ("8", "eight", "-3GB", "8 TB", "0x8GB"):
        with pytest.raises(UsageError, match="`memory_budget`"):
            as_bytes(text)
    assert as_bytes("500MB") == 500_000_000
