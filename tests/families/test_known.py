"""Files that are not converted are refused for what they are."""

from __future__ import annotations

import pytest
from shaped import CONTROLNETS, INVENTORIES

from converter import open_checkpoint
from converter.families import named


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("unet.base_model.model.transformer_blocks.0.attn1.to_q.lora_A.weight", "LoRA"),
        ("transformer.transformer_blocks.0.attn1.to_q.lora_B.default.weight", "LoRA"),
        ("lora_unet_transformer_blocks_0_attn1_to_q.alpha", "LoRA"),
        ("lora_transformer_blocks_0_attn1_to_q.lora_down.weight", "LoRA"),
        ("x.lora_up.weight", "LoRA"),
        ("x.to_q.lora.down.weight", "LoRA"),
        ("x.dora_scale", "LoRA"),
        ("controlnet.0.before_proj.weight", "ControlNet"),
        ("controlnet.12.after_proj.bias", "ControlNet"),
        ("controlnet.3.copied_block.attn.qkv.weight", "ControlNet"),
        ("_fsdp_wrapped_module._flat_param", "FSDP flat parameters"),
        ("flat_param_0", "FSDP flat parameters"),
        ("joint_blocks.0.x_block.attn.qkv.weight", "multimodal transformer"),
        ("double_blocks.0.img_attn.qkv.weight", "multimodal transformer"),
        ("single_transformer_blocks.0.attn.to_q.weight", "multimodal transformer"),
        ("down_blocks.0.resnets.0.conv1.weight", "U-Net"),
        ("input_blocks.0.0.weight", "U-Net"),
        ("decoder.mid.block_1.conv1.weight", "VAE"),
        ("encoder.conv_in.weight", "VAE"),
        ("encoder.mid_block.resnets.0.conv1.weight", "VAE"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "T5 text encoder"),
    ],
)
def test_named_by_one_key_among_others(key: str, what: str) -> None:
    assert what in named(["some.weight", key, "other.bias"])


@pytest.mark.parametrize("name", INVENTORIES)
def test_of_the_released_models_only_the_controlnets_are_refused_by_name(name: str) -> None:
    assert ("ControlNet" in named(INVENTORIES[name]["tensors"])) == (name in CONTROLNETS)
    assert bool(named(INVENTORIES[name]["tensors"])) == (name in CONTROLNETS)


def test_the_golden_files(in_root: object) -> None:
    says = {}
    for name in ("dit.pt", "alpha-controlnet.pth", "sigma-kvcompress.pth", "alpha-ms.pth"):
        with open_checkpoint(f"fixtures/golden/{name}") as checkpoint:
            says[name] = named(checkpoint)
    assert "ControlNet" in says.pop("alpha-controlnet.pth")
    assert set(says.values()) == {""}


@pytest.mark.parametrize("keys", [[], ["x"], ["explore.weight"], ["downblocks.0.x"], ["blocks.0.attn.qkv.weight"]])
def test_anything_else_has_no_name(keys: list[str]) -> None:
    assert named(keys) == ""
