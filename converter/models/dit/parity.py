"""DiT brought to be compared: where stock diffusers has the stages of its net, as loaded or amended, inputs on every
axis, and deliberate faults that no table of keys has in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...families import Findings
from ...mapping import Plan
from ...nets import Net, Weights
from ...nets.faults import BOTH, Fault
from ...nets.inputs import Case
from ...nets.latents import STANDARD_TOKENS, LatentInputs, amended_spec, described, image_size_hint, latent_spec
from ...nets.patches import FINAL, PATCHES, of_any_size
from ...nets.sampler import Sampler
from ...nets.shared_faults import BY_BOTH, BY_NETS, field_faults, latent_faults, other_heads, targets_of
from ...nets.stock import FEED_FORWARD, SELF_ATTENTION, Stock, StockStage
from .net import DiTShape, dit
from .table import AMENDED, CLASSES, IGNORABLE_CONFIG, VAE_FACTOR

GUIDED = "guidance"
# Patches on a side of a latent that most cases have, and the fewest that show every fault: of squares stock diffusers
# takes any.
SMALL, SMALLEST = 8, 2
EMBEDDERS = "transformer_blocks.{}.norm1.emb"  # each block has its own; those of block 0 serve the last layer as well


STOCK = Stock(
    kind="diffusers.models.transformers.dit_transformer_2d:DiTTransformer2DModel",
    classes=CLASSES,
    arguments={"hidden_states": "latent", "timestep": "timestep", "class_labels": "class_label"},
    stages=(
        StockStage(PATCHES, "pos_embed", ("x",)),
        StockStage("timestep embedding", f"{EMBEDDERS}.timestep_embedder", ("t{}",)),
        StockStage("class embedding", f"{EMBEDDERS}.class_embedder", ("y{}",)),
        StockStage("block {}", "transformer_blocks.{}", ("x",)),
        StockStage(FINAL, "", ("output",)),
    ),
    probes={**SELF_ATTENTION, "after self-attention": ("norm3", "input"), **FEED_FORWARD},
)


def shape(findings: Findings) -> DiTShape:
    """The architecture, from what the original file shows."""
    return DiTShape(**described(findings))


def reference(findings: Findings, weights: Weights) -> Net:
    """The original net, and on latents of another size than its own what it would be with the table of that size."""
    own = shape(findings)
    return of_any_size(dit(weights, own), dit(weights, replace(own, multi_scale=True)), own)


def cases(findings: Findings, profile: str, left: Mapping[str, Any]) -> list[Case]:
    """The inputs of a profile."""
    make, null = LatentInputs(findings), findings.value("num_classes")
    usual = min(make.side, SMALL)

    def case(
        name: str,
        axes: str,
        timesteps: Sequence[int] = (999, 321),
        labels: Sequence[int] = (3, -1),
        side: int = usual,
    ) -> Case:
        """A batch of different samples, one per timestep. `labels` count from the last, which is no class, if they are
        negative, and begin anew behind it; `side` counts patches."""
        label = np.array(labels, np.int64) % (null + 1)
        latent = make.latent(len(timesteps), side, side)
        return Case(name, {"latent": latent, "timestep": np.array(timesteps, np.int64), "class_label": label}, axes)

    # One batch of four: every weight is read once for all of them.
    batch = "timesteps 999 and 321, each with a class and with none", (999, 321, 999, 321), (3, -1, -1, 3)
    listed = [case("t999-t321", *batch, side=min(make.side, SMALLEST))]
    if profile == "quick":
        return listed
    listed += [
        case("t999-t321-large", *batch),
        case("t0-t1", "timesteps 0 and 1, the first class and the last", (0, 1), (0, -2)),
        case("t20-t500", "a quarter of the latents' side", (20, 500), (-1, 7), side=max(usual // 4, 1)),
        case("t998-t431", "two classes far apart", (998, 431), (1, null // 2)),
        loud := case("x3", "latents of three times the amplitude"),
        outliers := case("outliers", "a channel far above the others"),
        case(GUIDED, "no class, and a class, as for guidance", labels=(-1, 3)),
    ]
    loud.arrays["latent"][:] *= 3
    outliers.arrays["latent"][:, 0] *= 10
    if make.side > SMALL and (make.side**2 <= STANDARD_TOKENS or profile == "full"):
        pixels = make.side * make.patch * VAE_FACTOR
        listed.append(case("native", f"the model's own size, {pixels} px", (600, 40), side=make.side))
    return listed


def config_hints(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` says of what an original file may not show, by flag name."""
    fields = STOCK.resolve_config(config)
    size = image_size_hint(fields["sample_size"], VAE_FACTOR)
    return {"num_attention_heads": fields["num_attention_heads"], "image_size": size}


def faults(findings: Findings, config: Mapping[str, Any], plan: Plan) -> list[Fault]:
    """Faults of the config, of conventions between the two code bases, and of what only a whole net shows."""
    have, null, name = STOCK.resolve_config(config), findings.value("num_classes"), "class_label"
    last = f"block {findings.value('depth') - 1}"
    waves = targets_of(plan, -1, "256")  # the sinusoids, in the shape pattern of the table

    def halves(tensor: Tensor) -> Tensor:
        return torch.cat(tensor.chunk(2, dim=1)[::-1], dim=1)

    classes = [
        Fault("classes off by one", BY_NETS, inputs=lambda v: v | {name: (v[name] + 1) % (null + 1)}),
        Fault("no class for any sample", BY_NETS, inputs=lambda v: v | {name: v[name] * 0 + null}),
        Fault("classes of the samples mixed up", BY_NETS, inputs=lambda v: v | {name: v[name].roll(1)}),
    ]
    return [
        *field_faults(config, STOCK.resolve_config, [
            other_heads(findings, have["num_attention_heads"]),
            ("eps 1e-5 for 1e-6", {"norm_eps": 1e-5}, BY_BOTH, True),
            ("exact GELU for tanh", {"activation_fn": "gelu"}, BY_BOTH, True),
            ("twice the sample size", {"sample_size": have["sample_size"] * 2}, BY_BOTH, False),
            ("a class more", {"num_embeds_ada_norm": have["num_embeds_ada_norm"] + 1}, BY_BOTH, False),
        ], IGNORABLE_CONFIG),
        *(classes if null else ()),  # where there is one row, it is the class of everything
        Fault("sines before cosines of the timestep", BOTH,
              {target: (target, halves) for target in waves if not target.endswith(".bias")}),
        Fault("last layer not told of the class", BY_NETS, stage=last, cheap=True,
              values=lambda v: v | {"y0": torch.zeros_like(v["y0"])}),
        Fault("last layer not told of the timestep", BY_NETS, stage=last, cheap=True,
              values=lambda v: v | {"t0": torch.zeros_like(v["t0"])}),
        *latent_faults(findings, plan, 1.0),
    ]  # fmt: skip


AS_LOADED = latent_spec(
    reference,
    STOCK,
    cases,
    config_hints=config_hints,
    faults=faults,
    # A shift of all keys by one vector changes every score of a query alike, and softmax none of them.
    invisible_biases=("attn1.to_k",),
    sampler=Sampler(GUIDED),
)
PARITY = amended_spec(AS_LOADED, STOCK, AMENDED)
