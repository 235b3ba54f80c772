"""Layouts that are recognised by name and not converted, so that a file is refused for what it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

from ..errors import UNQUANTISED

ADAPTER = "LoRA or other adapter weights, not a whole transformer"
# What PEFT calls its own weights in a layer: LoRA and its kin (DoRA, AdaLoRA, VeRA), LoHa, LoKr, OFT, BOFT, IA3, HRA,
# FourierFT. Kohya and LyCORIS share some of them.
_IN_A_LAYER = (
    r"lora_(?:[ABE]|embedding_[AB]|magnitude_vector|ranknum)|vera_\w+|hada_\w+|lokr_\w+|b?oft_\w+|ia3_l|hra_u"
    r"|fourierft_\w+"
)
_ADAPTED = re.compile(rf"\.(?:{_IN_A_LAYER})(?:\.|$)")
_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
FORM_LIMIT = 10_000  # keys that differ in more than an index; a model has a few dozen, adapters of some kinds one each


def _with_adapters(keys: Collection[str]) -> bool:
    """Whether every layer with PEFT weights of its own has its base weight too: a whole model, and no adapter alone.

    PEFT wraps a layer, so that its weight is at `.base_layer` (up to 0.5 it stayed where it was), and keeps a module
    that is trained whole beside the `.original_module`; of both, an adapter that was saved alone has nothing.
    """
    adapted = {key[: match.start()].partition(".base_layer")[0] for key in keys if (match := _ADAPTED.search(key))}
    wrapped = {key.partition(".base_layer.")[0] for key in keys if ".base_layer." in key}
    plain = {key.removesuffix(".weight") for key in keys if key.endswith(".weight")}
    layers = adapted | wrapped
    return any(".original_module." in key for key in keys) or (bool(layers) and adapted <= wrapped | plain)


# (what one of the keys must look like, or what has to hold for all of them; what the file then is)
_Rows = tuple[tuple[str | Callable[[Collection[str]], bool], str], ...]

_QUANTISED = {
    "quanto": r"\.weight\._(data|scale|shift)(\.|$)",
    "torchao": r"(^|\.)_weight_(qdata|scale|zero_point)$|:(_data|qdata|scale|zero_point)$",
    "bitsandbytes": r"\.(nested_)?(absmax|quant_map)$|\.quant_state\.|\.SCB$|\.weight_format$",
    "SVDQuant": r"\.(w(c|t)?scales?|wzeros|smooth_(factor|orig)(_orig)?)$",
    "GPTQ or AWQ": r"\.(qweight|qzeros|g_idx)$",
    "compressed-tensors": r"\.weight_(packed|shape|zero_point|global_scale)$",
    "HQQ": r"\.W_q(\.|$)",
    "torch.ao": r"_packed_params(\.|$)",
    "with scales beside them, such as fp8": (
        r"(^|\.)(scaled_fp8|comfy_quant|scale_(weight|input)|(weight|input|output)_scales?(_inv|_2)?)$"
    ),
}
_UNLIKE = (
    "diffusers' SanaControlNetModel computes something else than the original (its copies start from the patches and "
    "not from the first block's output: relative error 0.3)"
)
SANA_CONTROLNET = (
    f"a SANA ControlNet: its file holds two models, and {_UNLIKE}; without the keys that begin with controlnet. it is "
    "its base model"
)
SANA_CONTROLNET_OF_DIFFUSERS = f"a SANA ControlNet in diffusers' layout, which is converted neither way: {_UNLIKE}"


def _sana_controlnet(keys: Collection[str]) -> bool:
    """Whether layers of `SanaControlNetModel` are there: other ControlNets have a first layer of the same name."""
    return {"input_block", "conv_depth"} <= {key.removesuffix(".weight").rpartition(".")[2] for key in keys}


# Weights of the model itself, but not as they are: what lies beside them says what they mean.
_MODIFIED: _Rows = (
    *((pattern, f"quantised weights ({name}): {UNQUANTISED}") for name, pattern in _QUANTISED.items()),
    (
        _with_adapters,
        "a whole model with LoRA layers or other adapters (PEFT), and a file does not show whether they are merged: "
        "call merge_and_unload() first (in diffusers fuse_lora() and unload_lora()), then save state_dict(); `to` peft "
        "takes the adapter alone",
    ),
    (
        rf"\.({_IN_A_LAYER})(\.|$)|lora_(A|B|up|mid|down)\b|lora_(unet|te\d?|transformer|prior)_|^lycoris_|_lora\."
        r"|\.lora(_layer)?\.|\.dora_scale",
        ADAPTER,
    ),
    (r"controlnet\.\d+\.copied_block\.mlp\.(inverted|depth|point)_conv\.", SANA_CONTROLNET),
    (_sana_controlnet, SANA_CONTROLNET_OF_DIFFUSERS),
    (r"flat_param", "FSDP flat parameters: gather a full state dict first (FullStateDictConfig)"),
)
# What is part of a model that is known, and not of one that it lies beside.
_BESIDE: _Rows = (
    (
        r"controlnet\.\d+\.(before_proj|after_proj|copied_block)\.",
        "the copied blocks of a PixArt ControlNet, whose base has base_model. before its keys",
    ),
)
# Weights of another model, by keys that it alone has: descendants of DiT share most of their names.
_ANOTHER_FAMILY = {
    "a SANA transformer": (
        r"(^|\.)(attention_y_norm|caption_norm)\.weight$|\.mlp\.(inverted|depth|point)_conv\."
        r"|\.ff\.conv_(inverted|depth|point)\."
    ),
    "a video transformer (Open-Sora or Latte)": (
        r"(^|\.)((spatial|temporal)_blocks|temporal_transformer_blocks)\.\d+\.|\.attn_temp\.|(^|\.)temp_embed$"
    ),
    "a masked diffusion transformer (MDT or MaskDiT)": r"(^|\.)(mask_token|decoder_pos_embed)$|(^|\.)sideblocks\.\d+\.",
    "a mixture of experts (DiT-MoE)": r"\.(moe|mlp)\.(experts|gate)\.",
    "a vision transformer (ViT)": r"(^|\.)(cls_token|patch_embed\.proj\.weight)$",
    "a Hunyuan-DiT": r"(^|\.)text_embedding_padding$|\.(default_modulation|skip_linear)\.",
    "a HunyuanVideo transformer": r"(^|\.)individual_token_refiner\.",
    "an AuraFlow transformer": r"(^|\.)(cond_seq_linear|(double_layers|joint_transformer_blocks)\.\d+)\.",
    "a Lumina transformer": r"(^|\.)(cap_embedder|noise_refiner|context_refiner)\.\d+\.",
    "an LTX-Video transformer": r"(^|\.)(patchify_proj|time_embed\.emb)\.",
    "a Mochi transformer": r"\.attn\.qkv_[xy]\.",
    "a Chroma transformer": r"(^|\.)distilled_guidance_layer\.",
    "a HiDream transformer": r"(^|\.)(double|single)_stream_blocks\.\d+\.",
    "a Wan transformer": r"(^|\.)head\.modulation$",
    "a multimodal transformer (SD3 or Flux)": r"(joint_blocks|double_blocks|single_transformer_blocks)\.\d+\.",
    "a U-Net (Stable Diffusion)": r"(down_blocks|input_blocks)\.\d+\.",
}
_OTHERS: _Rows = (
    (r"(encoder|decoder)\.(mid|mid_block|conv_in)\.", "a VAE, not a transformer"),
    (r"^heads\.\d+\.", "a discriminator, as SANA-Sprint's training writes one: the generator is another file"),
    (r"encoder\.block\.\d+\.layer\.", "a T5 text encoder, not a diffusion transformer"),
    *((pattern, f"{name}, another model family") for name, pattern in _ANOTHER_FAMILY.items()),
)


def named(keys: Collection[str], own: Callable[[str], bool] = lambda key: False) -> str:
    """What a state dict with these keys is, if it is one of the layouts known by name; else ''.

    Args:
        own: whether a key is one that the family in question knows: it is no sign of another.
    """
    return _first(keys, _MODIFIED) or _first((key for key in keys if not own(key)), _OTHERS)


def modified_weights(keys: Iterable[str], *, beside: bool = False) -> str:
    """The same for only those keys that change what the weights beside them mean: adapters,
    the scales of quantised weights. Such keys can never be left out.

    Args:
        beside: none of them is part of the model in question.
    """
    return _first(keys, (*_MODIFIED, *_BESIDE) if beside else _MODIFIED)


def _first(keys: Iterable[str], rows: _Rows) -> str:
    """The first row that matches; keys that differ in an index count once, so that the time is bounded."""
    forms: dict[str, None] = {}
    for key in keys:
        forms[_INDEX.sub("0", key)] = None
        if len(forms) == FORM_LIMIT:
            break
    for looks_like, what in rows:
        if looks_like(forms) if callable(looks_like) else any(map(re.compile(looks_like).search, forms)):
            return what
    return ""
