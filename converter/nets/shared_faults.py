"""Deliberate faults of any net on patches of a latent that no table of keys has in it: what families have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..families import Findings
from ..families.sincos import SinCosTable
from ..mapping import Plan
from .faults import BOTH, CONFIG, FUNCTION, Fault
from .net import Values

OUTPUT_ROWS = "R"  # as the shape patterns of the tables call them
SEEN, SAID = frozenset({FUNCTION}), frozenset({CONFIG})
STATED = frozenset({CONFIG, FUNCTION})
ResolveConfig = Callable[[Mapping[str, Any]], dict[str, Any]]
Wrong = tuple[str, dict[str, Any], frozenset[str], bool]  # name, fields, phases that have to notice, cheap


def field_faults(
    config: Mapping[str, Any], resolve_config: ResolveConfig, wrong: Sequence[Wrong], unheeded: Sequence[str]
) -> list[Fault]:
    """A field that is wrong, or missing where the class would take it for something else.

    Args:
        resolve_config: config -> what the class takes each field for.
        unheeded: fields that change no output.
    """
    have = resolve_config(config)
    made = [
        Fault(name, expected, config=_with(change), cheap=cheap)
        for name, change, expected, cheap in wrong
        if resolve_config({**config, **change}) != have
    ]
    for field in sorted(have):
        missed = not field.startswith("_") and resolve_config({k: v for k, v in config.items() if k != field}) != have
        if field in config and missed and field not in unheeded:
            made.append(Fault(f"{field} missing from the config", SAID, config=_without(field)))
    return made


def more_heads(found: Findings, heads: int) -> Wrong:
    """Another number of heads, as near as it can be."""
    hidden = found.value("hidden_size")
    more = heads * 2 if hidden % (heads * 2) == 0 else max(heads // 2, 1)
    fields = {"num_attention_heads": more, "attention_head_dim": hidden // more}
    return f"{more} heads for {heads}", fields, STATED, True


def _with(change: Mapping[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {**config, **change}


def _without(field: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {key: value for key, value in config.items() if key != field}


def timestep_faults() -> list[Fault]:
    """What a pipeline or a scheduler does wrong to the timestep."""

    def later(inputs: Values) -> Values:
        return inputs | {"timestep": inputs["timestep"] + 1}

    def earlier(inputs: Values) -> Values:
        return inputs | {"timestep": inputs["timestep"] - 1}

    def unscaled(inputs: Values) -> Values:
        return inputs | {"timestep": inputs["timestep"] / 1000}

    return [
        Fault("timestep one too late", SEEN, inputs=later),
        Fault("timestep one too early", SEEN, inputs=earlier),
        Fault("timestep from 0 to 1", SEEN, inputs=unscaled),
    ]


def position_faults(found: Findings, scale: float) -> list[Fault]:
    """What goes wrong in the positional table, seen after the stage "patch embedding"."""
    hidden, patch = found.value("hidden_size"), found.value("patch_size")
    side = found.value("sample_size") // patch

    def table(values: Values) -> tuple[Tensor, Tensor]:
        """The table of this grid, and the same with height and width the other way round."""
        rows, columns = (size // patch for size in values["latent"].shape[-2:])
        n = max(rows, columns)
        whole = SinCosTable(hidden, n, scale * n / side)
        tokens = torch.from_numpy(whole.rows(0, n * n, whole.axis())).reshape(n, n, hidden)[:rows, :columns]
        turned = torch.cat(tokens.chunk(2, dim=-1)[::-1], dim=-1)
        return tokens.reshape(-1, hidden).to(values["x"]), turned.reshape(-1, hidden).to(values["x"])

    def turned(values: Values) -> Values:
        right, wrong = table(values)
        return values | {"x": values["x"] - right + wrong}

    def bare(values: Values) -> Values:
        return values | {"x": values["x"] - table(values)[0]}

    def cosine_first(values: Values) -> Values:
        right, _ = table(values)
        quarters = right.chunk(4, dim=-1)
        wrong = torch.cat([quarters[i] for i in (1, 0, 3, 2)], dim=-1)
        return values | {"x": values["x"] - right + wrong}

    embedding = "patch embedding"
    return [
        Fault("positional table transposed", SEEN, stage=embedding, values=turned),
        Fault("positional table left out", SEEN, stage=embedding, values=bare),
        Fault("cosines before sines in the positional table", SEEN, stage=embedding, values=cosine_first),
    ]


def output_faults(found: Findings, plan: Plan) -> list[Fault]:
    """What goes wrong between the last tokens and the output."""
    patch, final = found.value("patch_size"), "final layer"
    return [
        Fault(
            "pixels of every patch transposed", SEEN, stage=final, values=lambda v: v | {"output": _within(v, patch)},
            cheap=patch > 1,
        ),
        Fault("epsilon and variance swapped", SEEN, stage=final, values=_halves, cheap=found.value("pred_sigma")),
        *_order_faults(found, plan),
    ]  # fmt: skip


def _within(values: Values, patch: int) -> Tensor:
    output = values["output"]
    n, c, h, w = output.shape
    return output.reshape(n, c, h // patch, patch, w // patch, patch).transpose(3, 5).reshape(n, c, h, w)


def _halves(values: Values) -> Values:
    return values | {"output": torch.cat(values["output"].chunk(2, dim=1)[::-1], dim=1)}


def _order_faults(found: Findings, plan: Plan) -> list[Fault]:
    """The rows of the output layer in another order of patch position and channel."""
    patch, out = found.value("patch_size"), found.value("out_channels")
    # The only layer whose rows are patch positions times channels.
    targets = [m.targets[0] for m in plan.moves if m.row.pattern and m.row.pattern[0].symbol == OUTPUT_ROWS]

    def channels_first(tensor: Tensor) -> Tensor:
        return tensor.reshape(patch * patch, out, -1).transpose(0, 1).reshape(tensor.shape)

    changed = {target: (target, channels_first) for target in targets}
    return [Fault("output rows with the channel before the patch position", BOTH, changed)] if patch > 1 else []
