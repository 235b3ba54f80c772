"""What a path says of its part of the net, in the words that the field's code bases have for it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import pairwise

# What a tensor is part of, by whole segments of its path; the first group with one that matches decides.
_AREAS = (
    {
        "cross attention": r"cross(_?attn\d?|_?attention)?|attn2|xattn|encoder_attn|multihead_attn|context_attn",
        "self attention": r"(img_|txt_)?attn|attn1|self_?attn|attention|self_?attention",
    },
    {
        "time": r"t_embedder|time|time_?embed\w*|timestep_embed\w*|time_in|time_mlp|t_emb|time_proj\w*",
        "caption": r"y_proj|caption_\w+|context_embed\w*|text_(?!encoder)\w+|txt_in|cap_embedder|cond_proj|prompt_\w+",
        "class": r"class_\w+|label_\w+|embedding_table",
        "size": r"csize_embedder|resolution_embed\w*|size_embed\w*",
        "aspect": r"ar_embedder|aspect_ratio_embed\w*",
        "patch": r"x_embedder|patch_embed\w*|patchify|img_in|patch_proj|pos_embed\.proj|conv_in|x_proj",
    },
    {
        "caption": r"y_embedder",
        "modulation": r"t_block|(img_|txt_)?mod|ada_?ln_(?!single\.emb)\w+|\w*modulation|norm\d?(_context)?\.linear",
    },
    {"output": r"final\w*|proj_out\w*|output_proj\w*|out_layer|conv_out|head|linear_out"},
    {"feed-forward": r"(img_|txt_)?mlp|ff|ff_context|ffn|feed_?forward"},
)
# What a list of layers may be called.
_SEQUENCE = r"((img_|txt_)?mlp|net|ff|layers|time|\w*embed\w*)"
# Which of its tensors. Tried from left to right at the end of the path.
_PARTS = (
    ("qkv", r"\w*qkv\w*|in_proj\w*"),
    ("kv", r"(to_)?kv(_\w+)?|w_?kv|kv"),
    ("q", r"(to_)?q|(add_)?q_(linear|proj|lin)|wq|query|q_norm|norm_q"),
    ("k", r"(to_)?k|(add_)?k_(linear|proj|lin)|wk|key|k_norm|norm_k"),
    ("v", r"(to_)?v|(add_)?v_(linear|proj|lin)|wv|value"),
    ("table", r"scale_shift_table|modulation_table"),
    ("out", r"to_out\.0|to_out|to_add_out|out_proj|o_proj|wo|out|o"),
    ("middle", r"depth_conv(\.conv)?|conv_depth"),
    (
        "first",
        rf"fc_?1|net\.0\.proj|linear_?1|w_?1|up|up_proj|lin_?1|c_fc|in_layer|{_SEQUENCE}\.0"
        r"|inverted_conv(\.conv)?|conv_inverted",
    ),
    (
        "second",
        rf"fc_?2|net\.2|linear_?2|w_?2|down|down_proj|lin_?2|c_proj|out_layer|{_SEQUENCE}\.[23]"
        r"|point_conv(\.conv)?|conv_point",
    ),
)
# In blocks with two streams, what belongs to that of the text.
_TEXT = r"context_block|txt_\w+|add_\w+|\w+_context|to_add_\w+|norm_added_\w+|\w+_added_\w+"
_POSITIONS = r"pos\w*|\w*positions?|\w*pos_emb\w*|rope\w*|freqs\w*|\w*grid\w*"


@dataclass(frozen=True)
class Words:
    """What a path means; '' where it does not say. `text`: of two streams in a block, it is of that one."""

    area: str
    part: str
    text: bool = False


@lru_cache(maxsize=1 << 14)
def words(path: str) -> Words:
    """What a path says.

    >>> words("blocks.{}.cross_attn.kv_linear")
    Words(area='cross attention', part='kv', text=False)
    """
    path = re.sub(r"\.(weight|bias)$", "", path)
    area = next((area for group in _AREAS for area, pattern in group.items() if _has(path, pattern)), "")
    part = next((part for part, pattern in _PARTS if _has(path, pattern, end=True)), "")
    if area.endswith("attention") and not part and _has(path, r"proj|linear|dense", end=True):
        part = "out"
    return Words(area, part, "{}" in path and _has(path, _TEXT))


def _has(path: str, pattern: str, end: bool = False) -> bool:
    after = "$" if end else r"(\.|$)"
    return re.search(rf"(^|\.)({pattern}){after}", path, re.ASCII | re.IGNORECASE) is not None


def positional(path: str) -> bool:
    """Whether a buffer looks like a table of positions."""
    return _has(path, _POSITIONS, end=True)


@lru_cache(maxsize=1 << 16)
def similarity(one: str, other: str) -> float:
    """How alike two paths look, 0 to 1: their segments without the numbers of blocks, and their letters."""
    a, b = (re.split(r"[._]", path.replace("{}.", "")) for path in (one, other))
    return (SequenceMatcher(None, a, b, autojunk=False).ratio() + _letters(one, other)) / 2


def _letters(one: str, other: str) -> float:
    """How much two texts share, 0 to 1. Looking for the longest runs takes more than the square of the length where
    few letters repeat, as in no path that people write: of such texts, the pairs of letters are counted."""
    if len(one) * len(other) <= 256 * len({*one}):
        return SequenceMatcher(None, one, other).ratio()
    pairs, others = (Counter(map("".join, pairwise(text))) for text in (one, other))
    return 2 * (pairs & others).total() / max(pairs.total() + others.total(), 1)


def agreement(one: str, other: str) -> float:
    """1 where two words agree, 0 where they contradict each other, in between where one is missing."""
    return 1.0 if one and one == other else 0.0 if one and other else 0.4
