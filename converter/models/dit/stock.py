"""DiT in stock diffusers: where its `DiTTransformer2DModel` has the stages of the net."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...nets.stock import FEED_FORWARD, SELF_ATTENTION, Stock, StockStage

EMBEDDERS = "transformer_blocks.{}.norm1.emb"  # each block has its own; those of block 0 serve the last layer as well

PATCHES, FINAL = "patch embedding", "final layer"


def settle(fields: dict[str, Any]) -> dict[str, Any]:
    """As the class takes what is None (diffusers 0.42.1, its `__init__`)."""
    if fields["out_channels"] is None:
        fields["out_channels"] = fields["in_channels"]
    return fields


def exact_timesteps(model: Any) -> Any:
    """The model with the timestep frequencies of the original, which is `EXACT_LINE` carried out."""
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return model


STOCK = Stock(
    kind="diffusers.models.transformers.dit_transformer_2d:DiTTransformer2DModel",
    arguments={"hidden_states": "latent", "timestep": "timestep", "class_labels": "class_label"},
    stages=(
        StockStage(PATCHES, "pos_embed", ("x",)),
        StockStage("timestep embedding", f"{EMBEDDERS}.timestep_embedder", ("t{}",)),
        StockStage("class embedding", f"{EMBEDDERS}.class_embedder", ("y{}",)),
        StockStage("block {}", "transformer_blocks.{}", ("x",)),
        StockStage(FINAL, "", ("output",)),
    ),
    probes={**SELF_ATTENTION, "after self-attention": ("norm3", "input"), **FEED_FORWARD},
    settle=settle,
)
AMENDED = replace(STOCK, amend=exact_timesteps)
