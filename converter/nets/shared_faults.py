"""Deliberate faults of any net on patches of a latent that no table of keys has in it: what families have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..families import Findings
from ..families.sincos import SinCosTable
from ..mapping import Plan
from .faults import BOTH, CONFIG, FUNCTION, Fault
from .net import Values

SEEN, SAID = frozenset({FUNCTION}), frozenset({CONFIG})
STATED = frozenset({CONFIG, FUNCTION})
Wrong = tuple[str, dict[str, Any], frozenset[str], bool]  # name, fields, phases that have to notice, cheap


def targets_of(plan: Plan, axis: int, extent: str) -> list[str]:
    """The targets of the tensors whose shape pattern has this extent, such as "256" or "R", on an axis."""
    patterned = [move for move in plan.moves if move.row.pattern and str(move.row.pattern[axis]) == extent]
    return [target for move in patterned for target in move.targets]


def field_faults(
    config: Mapping[str, Any],
    resolve_config: Callable[[Mapping[str, Any]], dict[str, Any]],
    wrong: Sequence[Wrong],
    ignorable: Collection[str],
) -> list[Fault]:
    """A field that is wrong, or missing where the class would take it for something else.

    Args:
        resolve_config: config -> what the class takes each field for.
        ignorable: fields that change no output.
    """

    def replaced(fields: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        return {**own, **fields}

    def without(field: str, own: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in own.items() if key != field}

    have = resolve_config(config)
    faults = [
        Fault(name, expected, config=partial(replaced, fields), cheap=cheap)
        for name, fields, expected, cheap in wrong
        if resolve_config(replaced(fields, config)) != have
    ]
    for field in sorted(have.keys() & config.keys() - set(ignorable)):
        if not field.startswith("_") and resolve_config(without(field, config)) != have:
            faults.append(Fault(f"{field} missing from the config", SAID, config=partial(without, field)))
    return faults


def more_heads(findings: Findings, heads: int, of: str = "") -> Wrong:
    """Another number of heads, as near as it can be. `of`: in the names of the fields, such as "cross_"."""
    hidden = findings.value("hidden_size")
    more = heads * 2 if hidden % (heads * 2) == 0 else max(heads // 2, 1)
    fields = {f"num_{of}attention_heads": more, f"{of}attention_head_dim": hidden // more}
    return f"{more} {of.replace('_', ' ')}heads for {heads}", fields, STATED, True


def timestep_faults(name: str = "timestep") -> list[Fault]:
    """What a pipeline or a scheduler does wrong to the timestep, the input `name`."""
    return [
        Fault("timestep one too late", SEEN, inputs=lambda v: v | {name: v[name] + 1}),
        Fault("timestep one too early", SEEN, inputs=lambda v: v | {name: v[name] - 1}),
        Fault("timestep from 0 to 1", SEEN, inputs=lambda v: v | {name: v[name] / 1000}),
    ]


def position_faults(findings: Findings, scale: float, stage: str) -> list[Fault]:
    """What goes wrong in the positional table, seen after the stage that adds it."""
    hidden, patch = findings.value("hidden_size"), findings.value("patch_size")
    side = findings.value("sample_size") // patch

    def table(wrong: Callable[[Tensor], Tensor], values: Values) -> Values:
        """Tokens with a wrong table of this grid instead of the right one."""
        rows, columns = (size // patch for size in values["latent"].shape[-2:])
        n = max(rows, columns)
        whole = SinCosTable(hidden, n, scale * n / side)
        right = torch.from_numpy(whole.rows(0, n * n, whole.axis())).reshape(n, n, hidden)[:rows, :columns]
        right, put = (part.reshape(-1, hidden).to(values["x"]) for part in (right, wrong(right)))
        return values | {"x": values["x"] - right + put}

    def chunks(order: Sequence[int], tensor: Tensor) -> Tensor:
        parts = tensor.chunk(len(order), dim=-1)
        return torch.cat([parts[i] for i in order], dim=-1)

    return [
        Fault(name, SEEN, stage=stage, values=partial(table, wrong))
        for name, wrong in (
            ("positional table transposed", partial(chunks, (1, 0))),
            ("positional table left out", torch.zeros_like),
            ("cosines before sines in the positional table", partial(chunks, (1, 0, 3, 2))),
        )
    ]


def output_faults(findings: Findings, rows: Sequence[str], stage: str) -> list[Fault]:
    """What goes wrong between the last tokens and the output, in the stage of that name.

    Args:
        rows: the converted tensors whose rows are patch positions times channels.
    """
    patch, out = findings.value("patch_size"), findings.value("out_channels")

    def pixels_transposed(values: Values) -> Values:
        n, c, h, w = values["output"].shape
        pixels = values["output"].reshape(n, c, h // patch, patch, w // patch, patch).transpose(3, 5)
        return values | {"output": pixels.reshape(n, c, h, w)}

    def halves_swapped(values: Values) -> Values:
        return values | {"output": torch.cat(values["output"].chunk(2, dim=1)[::-1], dim=1)}

    def channels_first(tensor: Tensor) -> Tensor:
        return tensor.reshape(patch * patch, out, -1).transpose(0, 1).reshape(tensor.shape)

    both = findings.value("pred_sigma")
    return [
        Fault("pixels of every patch transposed", SEEN, stage=stage, values=pixels_transposed, cheap=patch > 1),
        Fault("epsilon and variance swapped", SEEN, stage=stage, values=halves_swapped, cheap=both),
        *([Fault("output rows with the channel before the patch position", BOTH,
                 {target: (target, channels_first) for target in rows})] if patch > 1 else []),
    ]  # fmt: skip
