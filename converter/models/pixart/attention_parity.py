"""The self attention of a PixArt brought to be compared: the sizes that its compression takes, and what a port of
qk-norm and KV compression gets wrong."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ...families import Findings
from ...nets.faults import Fault
from ...nets.shared_faults import BY_BOTH, BY_NETS, Wrong
from .compression import AVE, CONV, EVERY, FIELD, UNIFORM, Compression
from .hyper_parameters import QK_NORM, compression


def divisible(grid: tuple[int, int], how: Compression | None) -> tuple[int, int]:
    """A grid of patches that a net takes: one as large where its compression leaves no remainder, else a larger one."""
    factor = how.factor if how and how.sampling in (UNIFORM, EVERY) else 1
    rows, columns = (-(-count // factor) * factor for count in grid)
    return rows, columns


def attention_faults(findings: Findings) -> tuple[list[Fault], list[Wrong]]:
    """What a port of qk-norm and KV compression gets wrong: in its module, and in its config."""
    how, faults, wrong = compression(findings), list[Fault](), list[Wrong]()
    if findings.value(QK_NORM):
        wrong.append(("no norm of queries and keys", {"qk_norm": False}, BY_BOTH, True))
        faults.append(Fault("queries and keys normalised after the split into heads", BY_NETS, model=norm_by_head))
    if how:
        depth = findings.value("depth")
        later = sorted({min(index + 1, depth - 1) for index in how.blocks} ^ {depth - 1} - how.blocks)
        other = {CONV: AVE, EVERY: UNIFORM}.get(how.sampling, EVERY)
        wrong += [
            ("no KV compression", {FIELD("sampling"): None}, BY_BOTH, True),
            ("KV compression in other blocks", {FIELD("blocks"): later}, BY_BOTH, True),
            (f"KV compression by {how.factor * 2}", {FIELD("factor"): how.factor * 2}, BY_BOTH, True),
            (f"KV compression {other} for {how.sampling}", {FIELD("sampling"): other}, BY_BOTH, True),
        ]
    return faults, wrong


def norm_by_head(model: Any) -> None:
    """Normalise queries and keys as diffusers' processors do, head by head."""

    def by_head(heads: int, norm: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        each = arguments[0].unflatten(-1, (heads, -1))
        normed = F.layer_norm(each, each.shape[-1:], eps=norm.eps).flatten(-2)
        scaled: torch.Tensor = normed * norm.weight + norm.bias
        return scaled

    for block in model.transformer_blocks:
        for norm in (block.attn1.q_norm, block.attn1.k_norm):
            norm.register_forward_hook(partial(by_head, block.attn1.heads))
