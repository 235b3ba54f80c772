"""PixArt-delta's ControlNet brought to be compared: a PixArt's inputs and faults, with a control and its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ...families import Findings
from ...mapping import Plan
from ...nets import Net, Weights
from ...nets.faults import BOTH, Fault, zeroed
from ...nets.inputs import Case, noise
from ...nets.patches import PATCHES, of_any_size
from ...nets.shared_faults import BY_BOTH, BY_NETS, field_faults, other_heads
from ...nets.stock import Stock, StockFolders, StockStage
from ...parts import below, joined
from . import parity as base
from .controlnet import controlnet
from .controlnet_table import BASE, CLASSES, CONTROLNET, COPIED_BLOCKS, COPIES, IGNORABLE_ADAPTER, TRANSFORMER

CONTROL = "control"
SEED = 1 << 20  # of the controls, far above those of a PixArt's own inputs

_, *EMBEDDINGS, BLOCKS, FINAL = base.STOCK.stages
ADAPTER = Stock(CLASSES[0], {}, ())
STOCK = StockFolders(
    kind=CLASSES[0].partition(":")[0] + ":PixArtControlNetTransformerModel",
    arguments={**base.STOCK.arguments, "controlnet_cond": CONTROL},
    stages=(
        StockStage(PATCHES, f"{TRANSFORMER}.pos_embed", ("x", "c"), batched=True),
        *(replace(stage, path=f"{TRANSFORMER}.{stage.path}") for stage in EMBEDDINGS),
        # All copies run after the base's block 0, whose place among the stages is where it is named first.
        StockStage("block 0", f"{TRANSFORMER}.{BLOCKS.path}".format(0), BLOCKS.values),
        StockStage(
            "control block {}", f"{CONTROLNET}.controlnet_blocks.{{}}", ("skip {}", "c"), block="transformer_block."
        ),
        replace(BLOCKS, path=f"{TRANSFORMER}.{BLOCKS.path}"),
        FINAL,
    ),
    probes=base.STOCK.probes,
    folders={TRANSFORMER: base.STOCK, CONTROLNET: ADAPTER},
)


def reference(findings: Findings, weights: Weights) -> Net:
    """The original net, of sizes and in float64 as that of a PixArt."""
    own = replace(base.shape(findings), float64_tables=weights.dtype is not torch.float64)
    any_size = replace(own, multi_scale=True)
    net = controlnet(weights, own, findings.value(COPIED_BLOCKS))
    return (
        net if own.multi_scale else of_any_size(net, controlnet(weights, any_size, findings.value(COPIED_BLOCKS)), own)
    )


def cases(findings: Findings, profile: str, left: Mapping[str, Any]) -> list[Case]:
    """Those of a PixArt, each with a control like its latent."""
    return [_controlled(i, case) for i, case in enumerate(base.cases(findings, profile, left))]


def own_size(findings: Findings) -> list[tuple[str, Case]]:
    """The stage that makes tokens of latent and control, on the model's own size."""
    return [(stage, _controlled(-1, case)) for stage, case in base.PARITY.stages(findings)]


def _controlled(number: int, case: Case) -> Case:
    control = noise(SEED + number, *case.arrays["latent"].shape)
    return replace(case, arrays={**case.arrays, CONTROL: control}, axes=f"{case.axes}; a control of its own")


def faults(findings: Findings, config: Mapping[str, Any], plan: Plan) -> list[Fault]:
    """Those of the base, of the adapter's config, and what a port does wrong between the two."""
    configs, copies = STOCK.by_folder(config), findings.value(COPIED_BLOCKS)
    of_base = base.faults(findings, configs[TRANSFORMER], plan)
    heads = configs[CONTROLNET]["num_attention_heads"]
    of_copies = field_faults(configs[CONTROLNET], ADAPTER.resolve_config, [
        other_heads(findings, heads),
        ("copied blocks one fewer", {"num_layers": copies - 1}, BY_BOTH, True),
    ], IGNORABLE_ADAPTER)  # fmt: skip
    moves = {move.origin: move for move in plan.moves}
    before = [
        key for origin, move in moves.items() if origin.startswith(f"{COPIES}.0.before_proj.") for key in move.parts
    ]
    copied, block = below(moves, f"{COPIES}.0.copied_block."), below(moves, f"{BASE}.blocks.1.")
    another = {
        key: (other, None)
        for name, move in copied.items()
        for key, other in zip(move.parts, block[name].parts, strict=True)
    }
    return [
        *(_in_part(f"{TRANSFORMER}.", fault, "") for fault in of_base),
        *(_in_part(f"{CONTROLNET}.", fault, " in the copied blocks") for fault in of_copies),
        Fault("control ignored", BY_NETS, cheap=True, inputs=lambda v: {n: v[n] for n in v if n != CONTROL}),
        Fault("control not scaled", BY_NETS, inputs=lambda v: v | {CONTROL: v[CONTROL] / 0.18215}),
        Fault("controls of the other samples", BY_NETS, inputs=lambda v: v | {CONTROL: v[CONTROL].flip(0)}),
        Fault("skip added one block late", BY_NETS, cheap=True, model=partial(_changed_skips, _late)),
        Fault("before_proj left out", BOTH, {key: (key, zeroed) for key in before}, cheap=True),
        Fault("a copy of the wrong base block", BOTH, another, cheap=True),
    ]  # fmt: skip


def _in_part(part: str, fault: Fault, where: str) -> Fault:
    """A fault of the config of a part, as one of the whole's."""
    change = fault.config
    if change is None:
        return fault

    def changed(config: dict[str, Any]) -> dict[str, Any]:
        others = {name: value for name, value in config.items() if not name.startswith(part)}
        return others | joined({part: change(below(config, part))})

    return replace(fault, name=fault.name + where, config=changed)


def _changed_skips(change: Callable[[list[torch.Tensor]], list[torch.Tensor]], model: Any) -> None:
    model.controlnet.register_forward_hook(lambda module, arguments, skips: change(skips))


def _late(skips: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.zeros_like(skips[0]), *skips]


def obstacle(findings: Findings) -> str:
    """Why nothing can be run."""
    alone = "the copied blocks of a ControlNet compute nothing without their base, which this file does not hold"
    return "" if findings[BASE].value else alone


PARITY = replace(
    base.PARITY,
    reference=reference,
    converted=STOCK.net,
    cases=cases,
    resolve_config=STOCK.resolve_config,
    config_hints=lambda config: base.config_hints(STOCK.by_folder(config)[TRANSFORMER]),
    faults=faults,
    obstacle=obstacle,
    stages=own_size,
    loaded=STOCK.loaded,
)
