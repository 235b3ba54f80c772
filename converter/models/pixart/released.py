"""The released PixArt models, by which a file is measured: what is odd in one that is otherwise, and who takes all
PixArts for them."""

from __future__ import annotations

from ...families.base import Findings

MICRO = "micro_condition"  # the hyper-parameter that says whether there are micro-conditions
VAE_FACTOR, MLP_RATIO = 8, 4  # pixels per latent position; the feed-forward layers over the hidden size
TOKENS = {120: "alpha", 300: "sigma"}  # caption length -> which PixArt
# (version, pixels) -> positional scale of the released models. Sources disagree on alpha at 256: its training
# configs say 1.
RELEASED = {("alpha", 256): 1.0, ("alpha", 512): 1.0, ("alpha", 1024): 2.0,
            ("sigma", 256): 0.5, ("sigma", 512): 1.0, ("sigma", 1024): 2.0, ("sigma", 2048): 4.0}  # fmt: skip
# The sizes at which an alpha has micro-conditions; at 512 px there is one with and one without. Sigma has none.
WITH_MICRO, WITHOUT_MICRO = {("alpha", 512), ("alpha", 1024)}, RELEASED.keys() - {("alpha", 1024)}
HEAD_SIZE = 72  # 1152 / 16, in every released model
WIDTH, DEPTHS = 1152, (28, 42)  # of XL/2, and of a published model made deeper
PIPELINE_SIDE = 128  # the only `sample_size` at which the stock alpha pipeline passes micro-conditions on
# OneTrainer writes the table of this latent side and scale into every PixArt file, whatever the model is.
PLACEHOLDER = (128, 1.0)
# What ComfyUI does not read off a file but takes for granted; the output has the variance too.
_FIXED = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 2, "in_channels": 4, "out_channels": 8,
          "caption_channels": 4096}  # fmt: skip
_NATIVE = 64  # latent side whose scale it takes for 1; other scales are whole multiples


def remarks(findings: Findings) -> list[str]:
    """What is unlike every released model, and may mean that part of the file is lost; no reason to refuse it."""
    notes = []
    version, pixels, depth = (findings[name].value for name in ("version", "image_size", "depth"))
    conditioned = findings[MICRO].value
    if version and pixels and (version, pixels) not in (WITH_MICRO if conditioned else WITHOUT_MICRO):
        notes.append(
            f"no released {version} model of {pixels} px is {'with' if conditioned else 'without'} micro-conditions"
            + (": part of the file may be missing" if (version, pixels) in WITH_MICRO else "")
        )
    if findings["hidden_size"].value == WIDTH and depth not in (None, *DEPTHS):
        notes.append(
            f"it has {depth} blocks, where the released models of hidden size {WIDTH} have "
            f"{' or '.join(map(str, DEPTHS))}: blocks at the end may be missing"
        )
    return notes


def stock(findings: Findings) -> list[str]:
    """What diffusers' own pipelines do with such a model."""
    side = findings["sample_size"].value
    if not findings[MICRO].value or side in (None, PIPELINE_SIDE):
        return []
    return [
        f"the stock PixArtAlphaPipeline passes micro-conditions on at sample_size {PIPELINE_SIDE} only, and this "
        f"model has {side}: it has to be called with added_cond_kwargs by other means"
    ]


def comfyui_warnings(findings: Findings) -> list[str]:
    """In words, everything that ComfyUI would take for something else: it guesses the model from the keys.

    comfyanonymous/ComfyUI, `comfy/model_detection.py` (the branch that asks for `t_block.1.weight`),
    `comfy/supported_models.py` (which latents a model has) and `comfy/ldm/pixart/pixartms.py` (the rest).
    """
    warnings = []
    version = findings["version"].value
    if version != "sigma" and not findings[MICRO].value:
        warnings.append(
            ("" if version else "if this is an alpha, which nothing in the model shows (--version): ")
            + "ComfyUI takes an alpha without micro-conditions for a sigma, and so its latents for SDXL's (scaling "
            "0.13025 in place of 0.18215): images will be wrong until that is overridden there"
        )
    side, scale = findings["sample_size"].value, findings["interpolation_scale"].value
    if side and scale and side // _NATIVE != scale:
        guess = side // _NATIVE
        warnings.append(
            f"ComfyUI guesses the scale of the positions as latent side / {_NATIVE}, which is {guess} for {side}, and "
            f"this model was trained with {scale:g}: "
            + ("its positions will be off" if guess else "it divides by that, and no image comes of it")
        )
    for name, fixed in _FIXED.items():
        value = findings[name].value if name in findings else None
        if value not in (None, fixed):
            warnings.append(f"ComfyUI has {name} = {fixed} fixed, and this model has {value}: it will not run there")
    return warnings
