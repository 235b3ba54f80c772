"""Layouts that are recognised by name and not converted, so that a file is refused for what it is."""

from __future__ import annotations

import re
from collections.abc import Iterable

# First match wins. (what a key must look like, what the file then is)
_LAYOUTS = (
    (
        r"lora_(A|B|up|down)\b|lora_(unet|te\d?)_|\.lora\.|\.dora_scale",
        "LoRA or other adapter weights, not a whole transformer",
    ),
    (
        r"controlnet\.\d+\.(before_proj|after_proj|copied_block)\.",
        "a PixArt ControlNet (base_model. and controlnet. keys), which stock diffusers has no class for",
    ),
    (r"flat_param", "FSDP flat parameters: gather a full state dict first (FullStateDictConfig)"),
    (
        r"(joint_blocks|double_blocks|single_transformer_blocks)\.\d+\.",
        "a multimodal transformer (SD3 or Flux), another model family",
    ),
    (r"(down_blocks|input_blocks)\.\d+\.", "a U-Net (Stable Diffusion), another model family"),
    (r"(encoder|decoder)\.(mid|mid_block|conv_in)\.", "a VAE, not a transformer"),
    (r"encoder\.block\.\d+\.layer\.", "a T5 text encoder, not a diffusion transformer"),
)  # fmt: skip


def adds(keys: Iterable[str]) -> str:
    """What keys beside a model are that change what it computes: an adapter or a ControlNet; '' where there is none."""
    kind = named(keys)
    return kind if kind in (_LAYOUTS[0][1], _LAYOUTS[1][1]) else ""


def named(keys: Iterable[str]) -> str:
    """What a state dict with these keys is, if it is one of the layouts known by name; else ''."""
    keys = list(keys)
    for pattern, what in _LAYOUTS:
        regex = re.compile(pattern)
        if any(regex.search(key) for key in keys):
            return what
    return ""
