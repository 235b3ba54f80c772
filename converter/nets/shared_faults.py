"""Deliberate faults of any net on patches of a latent that no table of keys can show: what families have in common."""

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
from .patches import FINAL, PATCHES

BY_NETS, BY_CONFIG, BY_BOTH = frozenset({FUNCTION}), frozenset({CONFIG}), frozenset({CONFIG, FUNCTION})
Fields = dict[str, Any]
Wrong = tuple[str, Fields, frozenset[str], bool]  # name, fields, phases that have to notice, cheap


def targets_of(plan: Plan, axis: int, extent: str) -> list[str]:
    """The targets of the tensors whose shape pattern has this extent, such as "256" or "R", on an axis."""
    patterned = [move for move in plan.moves if move.row.pattern and str(move.row.pattern[axis]) == extent]
    return [target for move in patterned for target in move.targets]


def field_faults(
    config: Mapping[str, Any],
    resolve_config: Callable[[Mapping[str, Any]], Fields],
    wrong: Sequence[Wrong],
    ignorable: Collection[str],
) -> list[Fault]:
    """A field that is wrong, or missing where the class would take it for something else.

    Args:
        resolve_config: config -> what the class takes each field for.
        ignorable: fields that change no output.
    """
    have = resolve_config(config)

    def stating(fields: Fields, own: Fields) -> Fields:
        return own | fields

    def without(field: str, own: Fields) -> Fields:
        return {key: value for key, value in own.items() if key != field}

    changes = [(name, partial(stating, fields), seen, cheap) for name, fields, seen, cheap in wrong]
    for field in sorted(have.keys() & config.keys() - set(ignorable)):
        if not field.startswith("_"):
            changes.append((f"{field} missing from the config", partial(without, field), BY_CONFIG, False))
    return [
        Fault(name, seen, config=change, cheap=cheap)
        for name, change, seen, cheap in changes
        if resolve_config(change(dict(config))) != have
    ]


def latent_faults(findings: Findings, plan: Plan, scale: float) -> list[Fault]:
    """What goes wrong with timesteps, positions (of that scale) and output."""
    return [*timestep_faults(), *position_faults(findings, scale), *output_faults(findings, plan)]


def other_heads(findings: Findings, heads: int, of: str = "", *, fewer: bool = False) -> Wrong:
    """Twice as many heads, or half, or, if neither can be, one.

    Args:
        of: in the names of the fields, such as "cross_".
        fewer: half as many before twice.
    """
    hidden, others = findings.value("hidden_size"), (heads * 2, heads // 2)
    other = next((count for count in others[:: -1 if fewer else 1] if count and hidden % count == 0), 1)
    fields = {f"num_{of}attention_heads": other, f"{of}attention_head_dim": hidden // other}
    return f"{other} {of.replace('_', ' ')}heads for {heads}", fields, BY_BOTH, True


def timestep_faults(name: str = "timestep") -> list[Fault]:
    """What a pipeline or a scheduler does wrong to the timestep, the input `name`."""
    return [
        Fault("timestep one too late", BY_NETS, inputs=lambda v: v | {name: v[name] + 1}),
        Fault("timestep one too early", BY_NETS, inputs=lambda v: v | {name: v[name] - 1}),
        Fault("timestep from 0 to 1", BY_NETS, inputs=lambda v: v | {name: v[name] / 1000}),
    ]


def position_faults(findings: Findings, scale: float) -> list[Fault]:
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
        Fault(name, BY_NETS, stage=PATCHES, values=partial(table, wrong))
        for name, wrong in (
            ("positional table transposed", partial(chunks, (1, 0))),
            ("positional table left out", torch.zeros_like),
            ("cosines before sines in the positional table", partial(chunks, (1, 0, 3, 2))),
        )
    ]


def output_faults(findings: Findings, plan: Plan) -> list[Fault]:
    """What goes wrong between the last tokens and the output, whose layer has R rows in the shape patterns of the
    table: patch positions times channels."""
    patch, out = findings.value("patch_size"), findings.value("out_channels")

    def pixels_transposed(values: Values) -> Values:
        pixels = values["output"].unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        return values | {"output": pixels.transpose(3, 5).flatten(4, 5).flatten(2, 3)}

    def halves_swapped(values: Values) -> Values:
        return values | {"output": torch.cat(values["output"].chunk(2, dim=1)[::-1], dim=1)}

    def channels_first(tensor: Tensor) -> Tensor:
        return tensor.reshape(patch * patch, out, -1).transpose(0, 1).reshape(tensor.shape)

    title = "output rows with the channel before the patch position"
    both = findings.value("pred_sigma")
    swapped = Fault("epsilon and variance swapped", BY_NETS, stage=FINAL, values=halves_swapped, cheap=both)
    if patch == 1:  # whose pixel has no place among others
        return [swapped]
    return [
        Fault("pixels of every patch transposed", BY_NETS, stage=FINAL, values=pixels_transposed, cheap=True),
        swapped,
        Fault(title, BOTH, {target: (target, channels_first) for target in targets_of(plan, 0, "R")}),
    ]
