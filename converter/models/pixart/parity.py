"""PixArt brought to be compared: where stock diffusers has the stages of its net, inputs on every axis where the two
could part, and deliberate faults that no table of keys has in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...families import Findings
from ...mapping import Plan
from ...nets import Net, Values, Weights
from ...nets.faults import Fault
from ...nets.inputs import Case
from ...nets.latents import STANDARD_TOKENS, LatentInputs, described, image_size_hint, latent_spec
from ...nets.patches import FINAL, PATCHES, of_any_size
from ...nets.sampler import Sampler
from ...nets.shared_faults import BY_BOTH, BY_CONFIG, BY_NETS, field_faults, latent_faults, other_heads
from ...nets.stock import CROSS_ATTENTION, FEED_FORWARD, SELF_ATTENTION, Stock, StockStage
from .attention_parity import attention_faults, divisible
from .compression import FIELD
from .hyper_parameters import MICRO, QK_NORM, TOKENS, VAE_FACTOR, compression
from .net import PixArtShape, pixart
from .table import CLASSES, IGNORABLE_CONFIG

GUIDED = "guidance"


def settle(fields: dict[str, Any]) -> dict[str, Any]:
    """What the class makes of None (diffusers 0.42.1, its `__init__`)."""
    # Of a size that is no number the class makes nothing at all.
    if fields["interpolation_scale"] is None and isinstance(fields["sample_size"], int | float):
        fields["interpolation_scale"] = max(fields["sample_size"] // 64, 1)
    if fields["use_additional_conditions"] is None:
        fields["use_additional_conditions"] = fields["sample_size"] == 128
    return fields


STOCK = Stock(
    kind="diffusers.models.transformers.pixart_transformer_2d:PixArtTransformer2DModel",
    classes=CLASSES,
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
    shell={"num_layers": 0, "caption_channels": None, FIELD("blocks"): []},
    settle=settle,
)


def shape(findings: Findings) -> PixArtShape:
    """The architecture, from what the original file shows."""
    return PixArtShape(
        **described(findings),
        in_channels=findings.value("in_channels"),
        scale=findings.value("interpolation_scale"),
        multi_scale=findings.value("multi_scale_train"),
        micro_condition=findings.value(MICRO),
        qk_norm=findings.value(QK_NORM),
        compression=compression(findings),
    )


def reference(findings: Findings, weights: Weights) -> Net:
    """The original net. The fixed class takes one size only; of another, which is cheaper to run, its blocks see the
    table of that size, as in the multi-scale class, and the stored table is tried by itself (`own_size`).

    In float64 its tables are rounded to float32, as diffusers' class does: in float32 both have the same bits, and in
    float64, which nobody trains in, the original's own would be 1e-8 off, which outliers make 1e-6 of.
    """
    own = replace(shape(findings), float64_tables=weights.dtype is not torch.float64)
    net = pixart(weights, own)
    return net if own.multi_scale else of_any_size(net, pixart(weights, replace(own, multi_scale=True)), own)


def cases(findings: Findings, profile: str, left: Mapping[str, Any]) -> list[Case]:
    """The inputs of a profile.

    Args:
        left: what the original holds and the converted model does not: the null caption, to run it as guidance does.
    """
    null = next((tensor.numpy() for tensor in left.values() if len(tensor.shape) == 2), None)
    make, width, how = LatentInputs(findings), findings.value("caption_channels"), compression(findings)
    shown, by_version = findings.get("caption_tokens"), {version: count for count, version in TOKENS.items()}
    tokens: int = (shown and shown.value) or by_version.get(findings["version"].value, min(TOKENS))

    def case(
        name: str,
        axes: str,
        grid: tuple[int, int] = (12, 8),
        timesteps: Sequence[float] = (999.0, 321.0),
        lengths: Sequence[int] | None = (17, 0),
        tokens: int = tokens,
    ) -> Case:
        """A batch of different samples, one per timestep. `grid` counts patches, `lengths` caption tokens (0: all; a
        third, where there are not so many; None: no mask)."""
        batch, grid = len(timesteps), divisible(grid, how)
        arrays = {"latent": make.latent(batch, *grid), "timestep": np.array(timesteps, np.float32)}
        arrays["caption"] = make.draw(batch, tokens, width)
        if lengths is not None:
            kept = [tokens if not n else n if n < tokens else max(1, tokens // 3) for n in lengths]
            arrays["caption_mask"] = (np.arange(tokens)[None] < np.array(kept)[:, None]).astype(np.float32)
        if findings.value(MICRO):
            sizes = np.array([[512, 768], [1280, 832], [1024, 1536], [704, 1344]][:batch])
            arrays["img_hw"] = sizes.astype(np.float32)
            arrays["aspect_ratio"] = (sizes[:, :1] / sizes[:, 1:]).astype(np.float32)
        return Case(name, arrays, f"{' x '.join(map(str, arrays['latent'].shape[2:]))} latents, {axes}")

    def garbled(name: str, grid: tuple[int, int], few: int, tokens: int) -> Case:
        """One batch of four: every weight is read once for all of them."""
        words = f"timesteps 999 and 321 with captions of {few} and of all tokens; garbage in the padding"
        batch = case(name, words, grid, (999, 321, 999, 321), lengths=(few, 0, 0, few), tokens=tokens)
        batch.arrays["caption"][batch.arrays["caption_mask"] == 0] *= 50
        return batch

    # The fewest patches and tokens that show every fault; of compressed keys too there have to be several.
    fold = how.factor if how else 1
    first = garbled("t999-t321", (2 * fold + 1, fold + 1), 2, min(tokens, 6))
    if profile == "quick":
        return [first]
    most = max(tokens - 1, 1)
    words = "timesteps 0 and 1, captions of 1 token and of all but one"
    listed = [
        first,
        garbled("t999-t321-large", (12, 8), 17, tokens),
        case("t0-t1", words, (8, 12), (0, 1), lengths=(1, most)),
        case("t20-t500", "no mask", (4, 4), (20, 500), lengths=None),
        case("t998-t431.5", "a timestep between two", (16, 4), (998, 431.5), lengths=(most, 17)),
        loud := case("x3", "of three times the amplitude"),
        outliers := case("outliers", "with channels far above the others, and in the caption too"),
    ]
    loud.arrays["latent"][:] *= 3
    outliers.arrays["latent"][:, 0] *= 10
    outliers.arrays["caption"][:, :, :: max(width // 4, 1)] *= 20  # as text encoders have
    if null is not None:
        listed.append(case(GUIDED, "with the null caption, unmasked, and a text, as for guidance", lengths=(0, 17)))
        listed[-1].arrays["caption"][0] = null
    side = make.side
    large = (side * 5 // 4, side * 4 // 5)
    if profile == "standard":
        large = (min(large[0], 40), min(large[1], 25))
    if min(large) > 0:
        listed.append(case("bin", "a large bin of another aspect ratio", large, (700, 100)))
    if side * side <= STANDARD_TOKENS or profile == "full":
        pixels = side * make.patch * VAE_FACTOR
        listed.append(case("native", f"the model's own size, {pixels} px", (side, side), (600, 40)))
    return listed


def config_hints(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` says of what an original file may not show, by flag name."""
    fields = STOCK.resolve_config(config)
    return {
        "num_attention_heads": fields["num_attention_heads"],
        "image_size": image_size_hint(fields["sample_size"], VAE_FACTOR),
        "interpolation_scale": fields["interpolation_scale"],
        "multi_scale_train": True,
    }


def faults(findings: Findings, config: Mapping[str, Any], plan: Plan) -> list[Fault]:
    """Faults of the config, of conventions between the two code bases, and of what only a whole net shows."""
    have, conditioned = STOCK.resolve_config(config), findings.value(MICRO)
    of_attention, wrong = attention_faults(findings)
    scale = have["interpolation_scale"]
    micro = "micro-conditions off" if conditioned else "micro-conditions where the model has none"

    def longer(inputs: Values) -> Values:
        mask = inputs["caption_mask"]
        return inputs | {"caption_mask": torch.maximum(mask, mask.roll(1, dims=1))}

    conditions = [
        Fault("height and width swapped", BY_NETS, inputs=lambda v: v | {"img_hw": v["img_hw"].flip(1)}),
        Fault("aspect ratio upside down", BY_NETS, inputs=lambda v: v | {"aspect_ratio": 1 / v["aspect_ratio"]}),
        Fault("one size for the whole batch", BY_NETS,
              inputs=lambda v: v | {"img_hw": v["img_hw"][:1].expand_as(v["img_hw"])}),
    ]  # fmt: skip
    return [
        *of_attention,
        *field_faults(config, STOCK.resolve_config, [
            other_heads(findings, have["num_attention_heads"]),
            ("eps 1e-5 for 1e-6", {"norm_eps": 1e-5}, BY_BOTH, False),
            ("exact GELU for tanh", {"activation_fn": "gelu"}, BY_BOTH, True),
            (f"scale {scale * 1.01:g} for {scale:g}", {"interpolation_scale": scale * 1.01}, BY_BOTH, False),
            ("half the scale", {"interpolation_scale": scale / 2}, BY_BOTH, False),
            ("twice the sample size", {"sample_size": have["sample_size"] * 2}, BY_BOTH, False),
            *wrong,
            (micro, {"use_additional_conditions": not conditioned}, BY_BOTH if conditioned else BY_CONFIG, False),
        ], IGNORABLE_CONFIG),
        Fault("mask ignored", BY_NETS, cheap=True, inputs=lambda v: {n: v[n] for n in v if n != "caption_mask"}),
        Fault("mask one token too long", BY_NETS, inputs=longer),
        *(conditions if conditioned else ()),
        Fault("t_block's output where the final layer wants t", BY_NETS, stage="timestep embedding",
              values=lambda v: v | {"t": v["t0"][:, : v["t"].shape[1]]}),
        *latent_faults(findings, plan, findings.value("interpolation_scale")),
    ]  # fmt: skip


PARITY = latent_spec(
    reference,
    STOCK,
    cases,
    config_hints=config_hints,
    faults=faults,
    # A shift of all keys by one vector changes every score of a query alike, and softmax none of them.
    invisible_biases=("attn1.to_k", "attn2.to_k"),
    optional=("caption_mask",),
    sampler=Sampler(GUIDED),
)
