"""Every golden adapter merged: the stock diffusers class computes what the tool's own forward did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_makers import HEADS, LORA, D, Recording, added, apart, named, recordings
from safetensors.numpy import load_file

from converter import convert, inspect, merge_lora

LIMIT = 2e-5
ALL = recordings()
# Fused rows, split ones, DoRA on both axes, LoHa, LoKr, whole modules, biases.
KINDS = (
    "d-ot-kohya", "d-patterns", "d-ot-dora-in", "d-ot-dora-out-kohya", "d-peft-loha", "d-ot-lokr", "d-save", "d-layers",
)  # fmt: skip


def test_all_recordings_are_there() -> None:
    assert len(ALL) == 31
    files = {path for path in LORA.rglob("*") if path.name.startswith("adapter_model") or path.suffix == ".safetensors"}
    golden = {path for path in files if path.name.endswith(".golden.safetensors") or "refuse" in path.parts}
    assert files - golden == {recording.file for recording in ALL}


@pytest.mark.parametrize("recording", ALL, ids=named)
def test_merged_into_the_original(recording: Recording, tmp_path: Path) -> None:
    from diffusers import PixArtTransformer2DModel

    merge_lora(recording.base, [recording.file], tmp_path / "m", weights=recording.weights, hyper_parameters=HEADS)
    model = PixArtTransformer2DModel.from_pretrained(tmp_path / "m", subfolder="transformer").eval()
    without, compared = [], 0
    for case in recording.cases():
        caption = case["caption"].reshape(len(case["latent"]), -1, case["caption"].shape[-1])
        mask = case["caption_mask"].reshape(1, -1) if "caption_mask" in case else None
        micro = model.config.use_additional_conditions
        with torch.no_grad():
            output = model(
                case["latent"],
                encoder_hidden_states=caption,
                timestep=case["timestep"],
                encoder_attention_mask=None if mask is None else mask.reshape(len(caption), -1),
                added_cond_kwargs={
                    "resolution": case["img_hw"] if micro else None,
                    "aspect_ratio": case["aspect_ratio"] if micro else None,
                },
                return_dict=False,
            )[0]
        assert (output - case["output"]).abs().max() < LIMIT
        without.append(float(case["output"].std()))
        compared += 1
    assert compared
    assert min(without) > 0.1


@pytest.mark.parametrize("recording", [one for one in ALL if named(one).startswith(KINDS)], ids=named)
def test_the_layout_of_the_base_does_not_matter(recording: Recording, tmp_path: Path) -> None:
    options = {"weights": recording.weights, "hyper_parameters": HEADS}
    merge_lora(recording.base, [recording.file], tmp_path / "one", **options)
    convert(recording.base, tmp_path / "base", **options)
    merge_lora(tmp_path / "base", [recording.file], tmp_path / "other", hyper_parameters=HEADS)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    one, other = (load_file(tmp_path / name / weights) for name in ("one", "other"))
    assert apart(one, other) < 2e-7


def test_alpha_given_by_hand_is_what_was_trained() -> None:
    """A diffusers file without metadata: scale 1 by convention, the trained strength with `lora_alpha`."""
    file = LORA / "d-diffusers-bare" / "pytorch_lora_weights.safetensors"
    recording = next(one for one in ALL if one.file == file)
    plain, stated = added(recording.base, file), added(recording.base, file, lora_alpha=3)
    key = "blocks.0.attn.qkv.weight"
    assert apart({key: plain[key] * 3 / 5}, {key: stated[key]}) < 1e-12
    keys = "blocks.0.cross_attn.kv_linear.weight"  # of which the keys have rank 2
    assert apart({keys: plain[keys][:D] * 3 / 2}, {keys: stated[keys][:D]}) < 1e-12
    report = inspect(LORA / "d-train-hf")
    assert report["adapter"]["scales"] == [{"scale": 2.0, "rank": 4, "alpha": 8.0, "source": "config", "modules": 41}]
