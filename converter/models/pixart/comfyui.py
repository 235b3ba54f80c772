"""What ComfyUI takes a PixArt file for: it guesses the model from the keys, and not every guess is right.

comfyanonymous/ComfyUI, `comfy/model_detection.py` (the branch that asks for `t_block.1.weight`),
`comfy/supported_models.py` (which latents a model has) and `comfy/ldm/pixart/pixartms.py` (the rest).
"""

from __future__ import annotations

from ...families.base import Findings

# What its detection does not read off a file but takes for granted.
_FIXED = {
    "hidden_size": 1152,
    "num_attention_heads": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,  # the variance too
    "caption_channels": 4096,
}
_NATIVE = 64  # latent side whose scale it takes for 1; other scales are whole multiples


def comfyui_warnings(found: Findings, micro: str) -> list[str]:
    """In words, everything that ComfyUI would take for something else.

    Args:
        micro: the name of the hyper-parameter that says whether there are micro-conditions.
    """
    warnings = []
    version = found["version"].value
    if version != "sigma" and not found[micro].value:
        warnings.append(
            ("" if version else "if this is an alpha, which nothing in the model shows (--version): ")
            + "ComfyUI takes an alpha without micro-conditions for a sigma, and so its latents for SDXL's (scaling "
            "0.13025 in place of 0.18215): images will be wrong until that is overridden there"
        )
    side, scale = found["sample_size"].value, found["interpolation_scale"].value
    if side and scale and side // _NATIVE != scale:
        guess = side // _NATIVE
        warnings.append(
            f"ComfyUI guesses the scale of the positions as latent side / {_NATIVE}, which is {guess} for {side}, and "
            f"this model was trained with {scale:g}: "
            + ("its positions will be off" if guess else "it divides by that, and no image comes of it")
        )
    for name, fixed in _FIXED.items():
        value = found[name].value if name in found else None
        if value is not None and value != fixed:
            warnings.append(f"ComfyUI has {name} = {fixed} fixed, and this model has {value}: it will not run there")
    return warnings
