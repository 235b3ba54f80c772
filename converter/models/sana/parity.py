"""SANA brought to be compared: where stock diffusers has the stages of its net, inputs, and deliberate faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...families import Findings, evidence
from ...mapping import Plan
from ...nets import shared_faults as shared
from ...nets.faults import BOTH, Fault
from ...nets.inputs import Case
from ...nets.latents import LatentInputs, amended_spec, described, image_size_hint, latent_spec
from ...nets.net import Staged, Weights
from ...nets.patches import FINAL, PATCHES
from ...nets.stock import CROSS_ATTENTION, SELF_ATTENTION, Stock, StockStage, feed_forward
from .amended import AMENDED, BF16, FP16, TRAINED_IN
from .net import SanaShape, sana
from .table import CROSS, GUIDANCE, GUIDANCE_SCALE, SANA, TIME, TIMESTEP_SCALE, VAE_FACTOR

MASK, GUIDED = "caption_mask", "guidance"
UNSEEN = {*SANA.ignorable_config, TIMESTEP_SCALE, GUIDANCE_SCALE}  # the pipeline's, and what no output shows

STOCK = Stock(
    kind=f"diffusers.models.transformers.sana_transformer:{AMENDED.stock}",
    classes=SANA.classes,
    arguments={"hidden_states": "latent", "encoder_hidden_states": "caption", "encoder_attention_mask": MASK}
    | {name: name for name in ("timestep", GUIDED)},
    stages=(
        StockStage(PATCHES, "patch_embed", ("x",)),
        StockStage("timestep embedding", "time_embed", ("t0", "t")),
        StockStage("caption embedding", "caption_projection", ("y",)),
        StockStage("caption norm", "caption_norm", ("y",)),
        StockStage("block {}", "transformer_blocks.{}", ("x",)),
        StockStage(FINAL, "", ("output",)),
    ),
    probes={**SELF_ATTENTION, **CROSS_ATTENTION, **feed_forward("ff.conv_inverted", "ff.conv_point")},
    settle=lambda fields: {TRAINED_IN: BF16} | fields,  # diffusers' own class, which has no such field, never clips
)


def reference(findings: Findings, weights: Weights) -> Staged:
    """The original net, from what its file shows and its user says."""
    asked = ("num_attention_heads", CROSS, evidence.PLACED, TIMESTEP_SCALE, TRAINED_IN)
    linear, cross, _, scale, trained = findings.values_of(*asked)
    own = {"num_heads": cross, "linear_heads": linear, "timestep_scale": scale, "clipped": trained == FP16}
    return sana(weights, SanaShape(**described(findings) | own, scale=evidence.scale_of_positions(findings)))


def cases(findings: Findings, profile: str, left: Mapping[str, Any]) -> list[Case]:
    """The inputs of a profile, scaled as pipelines do it. Of timesteps of 1000 the original takes the whole part."""
    make, width = LatentInputs(findings), findings.value("caption_channels")
    most: int = findings["caption_tokens"].value or 300
    scales = np.array(findings.values_of(TIMESTEP_SCALE, GUIDANCE_SCALE), np.float32)[:, None]

    def case(timesteps: Sequence[int], grid: tuple[int, int], kept: Sequence[int], tokens: int) -> Case:
        """Two different samples; `grid` counts patches, `kept` the tokens of each that are no padding."""
        numbers = np.array([timesteps, [4.5, 1]], np.float32) * scales
        arrays = {"latent": make.latent(2, *grid), "timestep": numbers[0], "caption": make.draw(2, tokens, width)}
        arrays[MASK] = (np.arange(tokens)[None] < np.array(kept)[:, None]).astype(np.float32)
        axes = f"a grid of {grid[0]} x {grid[1]}, captions of {kept[0]} and {kept[1]} tokens"
        guided = {GUIDED: numbers[1]} if findings.value(GUIDANCE) else {}
        return Case("t{}-t{}".format(*timesteps), arrays | guided, axes)

    # The fewest patches and tokens that show every fault.
    first = case((999, 321), (4, 3), (2, 6), min(6, most))
    large = [((998, 20), (8, 6), (5, most)), ((0, 1), (4, 12), (1, 9)), ((700, 1000), (16, 16), (most, 3))]
    return [first] if profile == "quick" else [first, *(case(*how, most) for how in large)]


def config_hints(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` says of what no original file shows, by flag name. What changes the output most is no hint:
    of positions, of the timesteps' scale and, of diffusers' own class, of the clip, the user is asked."""
    have, same = STOCK.resolve_config(config), ("num_attention_heads", CROSS, GUIDANCE_SCALE)
    own = {TRAINED_IN: have[TRAINED_IN]} if TRAINED_IN in config else {}
    own["image_size"] = image_size_hint(have["sample_size"], VAE_FACTOR)
    return {name: have[name] for name in same} | own


def faults(findings: Findings, config: Mapping[str, Any], plan: Plan) -> list[Fault]:
    """Faults of the config, of conventions between the two code bases, and of what only a whole net shows."""
    have, scale = STOCK.resolve_config(config), evidence.scale_of_positions(findings)
    both, sized = shared.BY_BOTH, shared.BY_BOTH if scale else shared.BY_CONFIG  # the size matters to positions alone
    placed = f"scale {scale / 2:g} for {scale:g}" if scale else "positions added"
    embedders = [key for move in plan.moves for key in move.parts if key.startswith(f"{TIME}timestep_embedder.")]
    pairs = [(key, key.replace("timestep", GUIDED)) for key in embedders]  # where there is guidance
    guided = [
        Fault("timestep and guidance embedders swapped", BOTH, cheap=True,
              weights={one: (other, None) for pair in pairs for one, other in (pair, pair[::-1])}),
        Fault("guidance unscaled", shared.BY_NETS,
              inputs=lambda v: v | {GUIDED: v[GUIDED] / findings.value(GUIDANCE_SCALE)}),
    ]  # fmt: skip
    return [
        *shared.field_faults(config, STOCK.resolve_config, [
            shared.fewer_heads(findings, have["num_attention_heads"]),
            shared.fewer_heads(findings, have[CROSS], "cross_"),
            (placed, {evidence.SCALE: scale / 2 if scale else 1.0}, both, True),
            ("positions left out", {evidence.SCALE: None}, both, True),
            ("twice the sample size", {"sample_size": have["sample_size"] * 2}, sized, False),
            ("eps 1e-5 for 1e-6", {"norm_eps": 1e-5}, both, True),
            ("clipped, or not", {TRAINED_IN: BF16 if have[TRAINED_IN] == FP16 else FP16}, shared.BY_CONFIG, False),
        ], UNSEEN),
        *shared.timestep_faults(),
        *(shared.position_faults(findings, scale) if scale else ()),
        *(guided if pairs else ()),
        Fault("mask ignored", shared.BY_NETS, inputs=lambda v: v | {MASK: torch.ones_like(v[MASK])}),
    ]  # fmt: skip


AS_LOADED = latent_spec(
    reference, STOCK, cases, config_hints=config_hints, faults=faults, optional=(MASK,),
    # No softmax sees a shift of all keys, no linear attention a scale; products of channels have no order.
    invisible_biases=("attn2.to_k",), invisible_scales=("attn1.to_q", "attn1.to_k", "attn1.norm_q", "attn1.norm_k"),
    invisible_swaps=(("attn1.norm_q", "attn1.norm_k"), ("attn2.norm_q", "attn2.norm_k")),
)  # fmt: skip
PARITY = amended_spec(AS_LOADED, STOCK, AMENDED)
