"""SANA brought to be compared: where stock diffusers has the stages of its net, inputs, and deliberate faults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...families import Findings, evidence, positions
from ...mapping import Plan
from ...nets import shared_faults as shared
from ...nets.faults import BOTH, Fault
from ...nets.latents import amended_spec, described, image_size_hint, latent_spec
from ...nets.net import Staged, Weights
from ...nets.patches import FINAL, PATCHES
from ...nets.stock import CROSS_ATTENTION, SELF_ATTENTION, Stock, StockStage, feed_forward
from .cases import GUIDED, MASK, cases
from .conventions import AMENDED, BF16, CROSS_HEADS, FP16, GUIDANCE_SCALE, TIMESTEP_SCALE, TRAINED_IN
from .net import SanaShape, sana
from .table import OF_GUIDANCE, OF_TIMESTEP, SANA, VAE_FACTOR

CROSS, TRAINED = CROSS_HEADS.name, TRAINED_IN.name
# Fields that change no output of the model: its pipelines read two of them.
UNSEEN = {*SANA.ignorable_config, TIMESTEP_SCALE.name, GUIDANCE_SCALE.name}


def settle(fields: dict[str, Any]) -> dict[str, Any]:
    """Diffusers' own class, which has no such field, never clips; and ratios that make layers of one width are one."""
    heads, channels, ratio = (fields[name] for name in ("num_attention_heads", "attention_head_dim", "mlp_ratio"))
    if all(type(number) in (int, float) and evidence.sensible(number) for number in (heads, channels, ratio)):
        fields["mlp_ratio"] = evidence.mlp_ratio_of(int(heads * channels * ratio), heads * channels)
    return {TRAINED: BF16} | fields


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
    settle=settle,
)


def reference(findings: Findings, weights: Weights) -> Staged:
    """The original net, from what its file shows and its user says."""
    asked = (CROSS, positions.POSITIONS, TIMESTEP_SCALE.name, TRAINED, "num_attention_heads")
    cross, _, timestep_scale, trained_in, linear = findings.values_of(*asked)
    shape = described(findings) | {"num_heads": cross, "linear_heads": linear, "timestep_scale": timestep_scale}
    scale, clipped = positions.scale_in_use(findings), trained_in == FP16
    return sana(weights, SanaShape(**shape, scale=scale, clipped=clipped))


def config_hints(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` says of what no original file shows, by flag name. What may change the output most is no
    hint: of positions, of the timesteps' scale and of the clip, the user is asked."""
    have = STOCK.resolve_config(config)
    hints = {name: have[name] for name in ("num_attention_heads", CROSS, GUIDANCE_SCALE.name)}
    return hints | {"image_size": image_size_hint(have["sample_size"], VAE_FACTOR)}


def faults(findings: Findings, config: Mapping[str, Any], plan: Plan) -> list[Fault]:
    """Faults of the config, of conventions between the two code bases, and of what only a whole net shows."""
    have, scale = STOCK.resolve_config(config), positions.scale_in_use(findings)
    both, sized = shared.BY_BOTH, shared.BY_BOTH if scale else shared.BY_CONFIG  # the size matters to positions alone
    placed = f"scale {scale / 2:g} for {scale:g}" if scale else "positions added"
    embedders = [key for move in plan.moves for key in move.parts if key.startswith(OF_TIMESTEP)]
    pairs = [(key, key.replace(OF_TIMESTEP, OF_GUIDANCE)) for key in embedders]  # where there is guidance
    guided = [
        Fault("timestep and guidance embedders swapped", BOTH, cheap=True,
              weights={one: (other, None) for pair in pairs for one, other in (pair, pair[::-1])}),
        Fault("guidance unscaled", shared.BY_NETS,
              inputs=lambda v: v | {GUIDED: v[GUIDED] / findings.value(GUIDANCE_SCALE.name)}),
    ]  # fmt: skip
    return [
        *shared.field_faults(config, STOCK.resolve_config, [
            shared.other_heads(findings, have["num_attention_heads"], fewer=True),
            shared.other_heads(findings, have[CROSS], "cross_", fewer=True),
            (placed, {positions.SCALE: scale / 2 if scale else 1.0}, both, True),
            ("positions left out", {positions.SCALE: None}, both, True),
            ("twice the sample size", {"sample_size": have["sample_size"] * 2}, sized, False),
            ("eps 1e-5 for 1e-6", {"norm_eps": 1e-5}, both, True),
            ("clipped, or not", {TRAINED: BF16 if have[TRAINED] == FP16 else FP16}, shared.BY_CONFIG, False),
        ], UNSEEN),
        *shared.timestep_faults(),
        *(shared.position_faults(findings, scale) if scale else ()),
        *(guided if pairs else ()),
        *shared.output_faults(findings, plan),
        Fault("mask ignored", shared.BY_NETS, inputs=lambda v: v | {MASK: torch.ones_like(v[MASK])}),
    ]  # fmt: skip


# No sampler: the trajectory of the checker is that of a net that predicts noise, and this one predicts a velocity.
AS_LOADED = latent_spec(
    reference, STOCK, cases, config_hints=config_hints, faults=faults, optional=(MASK,),
    # No softmax sees a shift of all keys, no linear attention a scale; products of channels have no order.
    invisible_biases=("attn2.to_k",), invisible_scales=("attn1.to_q", "attn1.to_k", "attn1.norm_q", "attn1.norm_k"),
    invisible_swaps=(("attn1.norm_q", "attn1.norm_k"), ("attn2.norm_q", "attn2.norm_k")),
)  # fmt: skip
PARITY = amended_spec(AS_LOADED, STOCK, AMENDED)
