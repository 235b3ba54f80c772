"""The spellings of adapters: before the name of a module, how it is written, after it, and where alpha stands.

Established by running the tools themselves: PEFT 0.21, diffusers 0.42, OneTrainer, LyCORIS 4.1, ComfyUI and the PixArt
training scripts. A new one is one row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..families import Family
from .names import DIFFUSERS, ORIGINAL, PARTS, Names

PEFT_STYLE, KOHYA_STYLE = "lora_A", "lora_down"  # what the first factor is called


@dataclass(frozen=True)
class Spelling:
    """One way to write an adapter's keys.

    Attributes:
        name: as an option says it; title: for people, with the tool that writes it.
        prefix: before the name of a module; names_as, flat: how that is written, as of `Names`.
        style: how the factors are called; alpha: where it stands, 'tensor', 'config', 'header' or 'nowhere'.
        holds: what can be written in it: products by their names, a `core` between factors, `DoRA` and `input` (per
            input), `difference` (all of one), `bias` (of the up factor), `whole` (modules in place of the model's).
        assumed: the alpha of a file that says none, where it is known what wrote it; else the scale is 1.
    """

    name: str
    title: str
    prefix: str
    names_as: str
    flat: bool
    style: str
    alpha: str
    holds: frozenset[str] = frozenset()
    assumed: int | None = None

    def names(self, family: Family) -> Names:
        return Names(family, self.names_as, self.flat)


_NONE = frozenset[str]()
_PEFT, _LYCORIS = frozenset({"LoRA", "DoRA", "bias"}), frozenset({"LoRA", "LoHa", "LoKr", "core", "DoRA", "input"})
_ALL = _LYCORIS | {"difference"}
# In the order in which they are tried: of two that know as many keys, the first.
_ROWS: tuple[Any, ...] = (
    ("peft", "PEFT", "base_model.model.", DIFFUSERS, False, PEFT_STYLE, "config", _PEFT | {"whole"}),
    ("scripts", "PixArt's scripts", "unet.base_model.model.", DIFFUSERS, False, PEFT_STYLE, "nowhere", _NONE, 8),
    ("diffusers", "diffusers", "transformer.", DIFFUSERS, False, PEFT_STYLE, "header", _PEFT),
    ("onetrainer", "OneTrainer until 2026-07", "lora_transformer_", DIFFUSERS, True, KOHYA_STYLE, "tensor", _LYCORIS),
    ("kohya", "kohya, as OneTrainer from 2026-07", "lora_unet_", ORIGINAL, True, KOHYA_STYLE, "tensor", _ALL),
    ("comfyui", "ComfyUI", "diffusion_model.", ORIGINAL, False, PEFT_STYLE, "tensor", _ALL),
    ("original", "OneTrainer, the original's names", "", ORIGINAL, False, PEFT_STYLE, "tensor", _ALL),
    ("omi", "OneTrainer's backups (OMI)", "transformer.", PARTS, False, KOHYA_STYLE, "tensor", frozenset({"LoRA"})),
    ("lycoris", "LyCORIS", "lycoris_", DIFFUSERS, True, KOHYA_STYLE, "tensor", _ALL),
    ("kohya-diffusers", "kohya's prefix, diffusers' names", "lora_unet_", DIFFUSERS, True, KOHYA_STYLE, "tensor", _ALL),
    ("bare", "PEFT's state dict without a prefix", "", DIFFUSERS, False, PEFT_STYLE, "nowhere"),
)  # fmt: skip
SPELLINGS = tuple(Spelling(*row) for row in _ROWS)
WRITTEN = tuple(spelling.name for spelling in SPELLINGS if spelling.holds)
BY_NAME = {spelling.name: spelling for spelling in SPELLINGS}

# What follows the name of a module -> what it is, '' for what it says itself. All spellings are read with all of them.
_ADAPTER = r"(?:\.(?!weight$|bias$)\w+)?"  # PEFT's name of the adapter, in the state dict of a model
_ENDINGS = [
    (re.compile(ending.replace("@", _ADAPTER) + "$", re.ASCII), kind)
    for ending, kind in (
        (r"\.(?:lora_A|lora_down)@\.weight", "down"),
        (r"\.(?:lora_B|lora_up)@\.weight", "up"),
        (r"\.lora_mid\.weight", "mid"),
        (r"\.(?:lora_B|lora_up)@\.bias", "up_bias"),
        (r"\.(?:lora_magnitude_vector@(?:\.weight)?|dora_scale)", "magnitude"),
        (r"\.(alpha)", ""),
        (r"\.(hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))@", ""),
        (r"\.(?:diff|w_norm)", "diff"),
        (r"\.(?:diff_b|b_norm)", "diff_b"),
        (r"\.(set_weight)", ""),
        (r"(?:\.base_layer)?\.(weight|bias)", ""),
    )
]


_NAMED = re.compile(r"\.(?:lora_[AB]|lora_magnitude_vector|hada_w[12]_[ab]|hada_t[12]|lokr_\w+)\.(\w+)", re.ASCII)


def adapter_name(key: str) -> str:
    """PEFT's name of the adapter in a key of a model's state dict, '' where it has none.

    >>> adapter_name("transformer_blocks.0.attn1.to_q.lora_A.default.weight"), adapter_name("proj_out.lora_A.weight")
    ('default', '')
    """
    found = _NAMED.search(key)
    return found[1] if found and found[1] not in ("weight", "bias") else ""


def parted(key: str) -> tuple[str, str] | None:
    """(the part with the module's name, what it is of the module), None where the key has no such end.

    >>> parted("transformer.transformer_blocks.0.attn1.to_q.lora_A.default.weight")
    ('transformer.transformer_blocks.0.attn1.to_q', 'down')
    >>> parted("lycoris_proj_out.lokr_w1"), parted("base_model.model.proj_out.bias")
    (('lycoris_proj_out', 'lokr_w1'), ('base_model.model.proj_out', 'bias'))
    """
    for pattern, kind in _ENDINGS:
        if match := pattern.search(key):
            return key[: match.start()], kind or match[1]
    return None


def ending(spelling: Spelling, role: str) -> str:
    """What follows a module's name where a tensor of this role is written."""
    if role in ("down", "up"):
        names = {"down": ("lora_A", "lora_down"), "up": ("lora_B", "lora_up")}[role]
        return f".{names[spelling.style == KOHYA_STYLE]}.weight"
    if role == "magnitude":
        return ".dora_scale" if spelling.alpha == "tensor" else ".lora_magnitude_vector"
    return {"mid": ".lora_mid.weight", "up_bias": ".lora_B.bias"}.get(role, f".{role}")


# Keys that belong to a text encoder, or are embeddings: no part of the transformer.
BESIDE = re.compile(r"(lora_te\d?_|lora_prior_te|text_encoders?[._\d]|text_model\.|te\d?\.|bundle_emb\.|emb_params\.)")
