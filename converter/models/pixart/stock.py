"""PixArt in stock diffusers: where its `PixArtTransformer2DModel` has the stages of the net."""

from __future__ import annotations

from typing import Any

from ...nets.stock import CROSS_ATTENTION, FEED_FORWARD, SELF_ATTENTION, Stock, StockStage

PATCHES, FINAL = "patch embedding", "final layer"


def settle(fields: dict[str, Any]) -> dict[str, Any]:
    """As the class takes what is None (diffusers 0.42.1, its `__init__`)."""
    # Of a size that is no number the class makes nothing at all.
    if fields["interpolation_scale"] is None and isinstance(fields["sample_size"], int | float):
        fields["interpolation_scale"] = max(fields["sample_size"] // 64, 1)
    if fields["use_additional_conditions"] is None:
        fields["use_additional_conditions"] = fields["sample_size"] == 128
    if fields["out_channels"] is None:
        fields["out_channels"] = fields["in_channels"]
    return fields


STOCK = Stock(
    kind="diffusers.models.transformers.pixart_transformer_2d:PixArtTransformer2DModel",
    arguments={
        "hidden_states": "latent",
        "encoder_hidden_states": "caption",
        "encoder_attention_mask": "caption_mask",
        "timestep": "timestep",
        "added_cond_kwargs": {"resolution": "img_hw", "aspect_ratio": "aspect_ratio"},
    },
    stages=(
        StockStage(PATCHES, "pos_embed", ("x",)),
        StockStage("timestep embedding", "adaln_single", ("t0", "t")),
        StockStage("caption embedding", "caption_projection", ("y",)),
        StockStage("block {}", "transformer_blocks.{}", ("x",)),
        StockStage(FINAL, "", ("output",)),
    ),
    probes={**SELF_ATTENTION, **CROSS_ATTENTION, "after cross-attention": ("norm2", "input"), **FEED_FORWARD},
    shell={"num_layers": 0, "caption_channels": None},
    settle=settle,
)
