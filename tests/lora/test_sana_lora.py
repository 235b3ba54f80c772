"""A family that is no package yet: its adapters are read and merged by the same code, from its table alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lora_makers import BASES, apart, pair, write
from makers import ROOT
from safetensors.torch import load_file

from converter import convert, convert_lora, inspect_lora, merge_lora

FAMILY = str(ROOT / "tests" / "models" / "sana_like" / "family.py")
SANA = BASES / "sana-1.5.pth"
HEADS = {"num_cross_attention_heads": 4}


def test_an_adapter_of_sana(tmp_path: Path) -> None:
    """Layers without a bias, pointwise convolutions, q, k and v in one."""
    state = torch.load(SANA, weights_only=False)["state_dict"]
    modules = ("blocks.0.attn.qkv", "blocks.1.cross_attn.kv_linear", "blocks.0.mlp.point_conv.conv", "t_block.1")
    tensors: dict[str, Any] = {}
    for module in modules:
        out, width = state[f"{module}.weight"].shape[:2]
        name = f"lora_unet_{module.replace('.', '_')}"
        tensors |= pair(name, 2, out, width, ends="du") | {f"{name}.alpha": np.array(3.0, "f4")}
        if state[f"{module}.weight"].ndim == 4:
            for end in ("down", "up"):
                tensors[f"{name}.lora_{end}.weight"] = tensors[f"{name}.lora_{end}.weight"][..., None, None]
    source = write(tmp_path / "kohya.safetensors", tensors)
    report = inspect_lora(source, family=FAMILY)
    assert (report["family"], report["adapter"]["kinds"], report["problems"]) == ("sana", {"LoRA": 4}, [])
    options = {"family": FAMILY, "hyper_parameters": HEADS}
    done = merge_lora(SANA, [source], tmp_path / "m.safetensors", to="original", **options)
    assert done.record["family"] == "sana"
    merged = load_file(tmp_path / "m.safetensors")
    for module in modules:
        name = f"lora_unet_{module.replace('.', '_')}"
        up, down = (torch.from_numpy(tensors[f"{name}.lora_{end}.weight"]).flatten(1) for end in ("up", "down"))
        weight = state[f"{module}.weight"]
        torch.testing.assert_close(merged[f"{module}.weight"], weight + (1.5 * up @ down).reshape(weight.shape))
    # Split, in PEFT's words, on a folder for diffusers: the same.
    convert_lora(source, tmp_path / "peft", "peft", family=FAMILY)
    convert(SANA, tmp_path / "folder", **options)
    merge_lora(tmp_path / "folder", [tmp_path / "peft"], tmp_path / "other", **options)
    convert(tmp_path / "m.safetensors", tmp_path / "one", **options)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    one, other = ({k: v.numpy() for k, v in load_file(tmp_path / name / weights).items()} for name in ("one", "other"))
    assert apart(one, other) < 2e-7
