"""PixArt-delta's ControlNet (arXiv 2401.05252): the base and copies of its first blocks, of one file to two folders.

The original's file has `base_model.` before the keys of a PixArt, and `controlnet.{}.copied_block.` in place of
`blocks.{}.`; a file, or a folder, may also hold the copies alone. In the target these have the keys of diffusers'
examples/research_projects/pixart/controlnet_pixart_alpha.py, which SimpleTuner's adapters have too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ...errors import UsageError, printable
from ...families import evidence
from ...families.base import Family, Findings, State
from ...families.sincos import DRIFT
from ...mapping import KeyMapping, Plan, ZeroInit
from ...parts import below, joined
from . import hyper_parameters, table

BASE, COPIES = "base_model", "controlnet"  # in the original; BASE is also the optional group, and the finding
FOLDERS = TRANSFORMER, CONTROLNET = "transformer", "controlnet"  # in the target
BLOCKS = f"{CONTROLNET}.controlnet_blocks"
COPY, BLOCK = f"{COPIES}.{{}}.", f"{BLOCKS}.{{}}."
COPIED_BLOCKS, HEADS = "copied_blocks", evidence.NUM_ATTENTION_HEADS.name
ADAPTER = "PixArtControlNetAdapterModel"
CLASSES = (f"converter.models.pixart.pixart_controlnet:{ADAPTER}",)

KEYS = (
    table.KEYS.renamed(("", f"{BASE}."), ("", f"{TRANSFORMER}."), group=BASE)
    | table.KEYS.renamed((table.B, f"{COPY}copied_block."), (table.T, f"{BLOCK}transformer_block."))
    | KeyMapping({
        f"{COPIES}.0.before_proj [D D]": ZeroInit(f"{BLOCKS}.0.before_proj"),
        f"{COPY}after_proj [D D]": ZeroInit(f"{BLOCK}after_proj"),
    })
)  # fmt: skip


class _BaseState:
    """What a PixArt may see of the whole file."""

    def __init__(self, whole: State, part: str) -> None:
        self._whole, self.recorded_integers, self.config = whole, whole.recorded_integers, below(whole.config, part)

    def elements(self, key: str, *positions: int) -> tuple[tuple[float, ...], float]:
        return self._whole.elements(f"{BASE}.{key}", *positions)

    def rows(self, key: str) -> Iterator[tuple[int, Any]]:
        return self._whole.rows(f"{BASE}.{key}")


def describe(plan: Plan, state: State, findings: Findings) -> None:
    """Of the base all that a PixArt shows by itself; of the copies their number, and alone their width and heads."""
    there, copies = BASE in plan.groups, plan.stacks.get(COPIES, 0)
    findings.file(BASE, there, f"keys that begin with {BASE}. are {'' if there else 'not '}there")
    findings.file(COPIED_BLOCKS, copies or None, f"{COPIES}.0 to {COPIES}.{copies - 1}" if copies else "there are none")
    if there:
        base = replace(plan, stacks=below(plan.stacks, f"{BASE}."), computed=below(plan.computed, f"{BASE}."))
        hyper_parameters.describe(base, _BaseState(state, f"{TRANSFORMER}."), findings)
        findings.diffusers_notes.clear()  # of a pipeline that takes no control
        findings.unused_buffers = {f"{BASE}.{key}" for key in findings.unused_buffers}
        if does := [name for name in (hyper_parameters.QK_NORM, hyper_parameters.KV_COMPRESS) if findings[name].value]:
            findings.problems.append(
                f"{does[0]}: no copied block does it, in the original's code or in the class to write"
            )
        depth = findings["depth"].value or 0
        if copies >= depth > 0:
            findings.problems.append(f"{copies} copied blocks: a base of {depth} blocks has room for {depth - 1}")
    else:
        for name, value in findings.given.items():
            if value is not False and name != HEADS:
                why = f"copied blocks alone, which have no such thing: only `{HEADS}` is theirs"
                raise UsageError(f"`{name}` {printable(value)} contradicts the file, which says {why}")
        hyper_parameters.describe_blocks(plan, _BaseState(state, f"{CONTROLNET}."), findings)


def config(findings: Findings) -> dict[str, Any]:
    """Both `config.json`s; of the adapter's fields the research project reads the number alone, and has 16 heads."""
    if findings.stock:
        raise UsageError("`stock`: this is a ControlNet, for which diffusers has no class: leave it out")
    base = table.config(findings) if findings[BASE].value else {}
    hidden, heads = findings.value("hidden_size"), findings.value(HEADS)
    own = {
        "_class_name": ADAPTER,
        "_diffusers_version": evidence.DIFFUSERS,
        "attention_head_dim": hidden // heads,
        "cross_attention_dim": hidden,
        HEADS: heads,
        "num_layers": findings.value(COPIED_BLOCKS),
    }
    return joined({f"{TRANSFORMER}.": base, f"{CONTROLNET}.": own})


IGNORABLE_ADAPTER = {"_class_name": ("PixArtSigmaControlNetAdapterModel",), "_diffusers_version": None}

PIXART_CONTROLNET = Family(
    "pixart-controlnet", "PixArt ControlNet", KEYS, describe, config=config, flags=hyper_parameters.FLAGS,
    classes=CLASSES, subfolder=FOLDERS, buffer_mismatch=table.buffer_mismatch, storing=DRIFT,
    ignorable_config=joined({f"{TRANSFORMER}.": table.IGNORABLE_CONFIG, f"{CONTROLNET}.": IGNORABLE_ADAPTER}),
    marks=(f"{COPY}copied_block.attn.qkv", f"{BLOCK}transformer_block.attn1.to_q"),
    parity="converter.models.pixart.controlnet_parity:PARITY",
)  # fmt: skip
