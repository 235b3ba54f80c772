"""Deliberate faults of PixArt that no table of keys has in it: conventions, configs, what is done to inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..families import Findings
from ..families.pixart_evidence import MICRO
from ..families.sincos import SinCosTable
from ..mapping import Plan
from ..reference import Values
from .faults import BOTH, CONFIG, FUNCTION, Fault
from .pixart_stock import effective

OUTPUT_ROWS = "R"  # as the shape patterns of the table call them
UNHEEDED = ("dropout", "norm_num_groups", "num_embeds_ada_norm", "upcast_attention")  # change no output
SEEN, SAID = frozenset({FUNCTION}), frozenset({CONFIG})
STATED = frozenset({CONFIG, FUNCTION})


def faults(found: Findings, config: Mapping[str, Any], plan: Plan) -> list[Fault]:
    """Faults of the config, of conventions between the two code bases, and of what only a whole net shows."""
    return [*_config_faults(found, config), *_input_faults(found), *_value_faults(found), *_order_faults(found, plan)]


def _config_faults(found: Findings, config: Mapping[str, Any]) -> list[Fault]:
    """A field that is wrong, or missing where the class would take it for something else."""
    have = effective(config)
    heads, size, scale = have["num_attention_heads"], have["sample_size"], have["interpolation_scale"]
    hidden = found.value("hidden_size")
    more = heads * 2 if hidden % (heads * 2) == 0 else max(heads // 2, 1)
    conditioned = found.value(MICRO)
    wrong: list[tuple[str, dict[str, Any], frozenset[str], bool]] = [
        (
            f"{more} heads for {heads}",
            {"num_attention_heads": more, "attention_head_dim": hidden // more},
            STATED,
            True,
        ),
        ("eps 1e-5 for 1e-6", {"norm_eps": 1e-5}, STATED, False),
        ("exact GELU for tanh", {"activation_fn": "gelu"}, STATED, True),
        (f"scale {scale * 1.01:g} for {scale:g}", {"interpolation_scale": scale * 1.01}, STATED, False),
        ("half the scale", {"interpolation_scale": scale / 2}, STATED, False),
        ("twice the sample size", {"sample_size": size * 2}, STATED, False),
        (
            "micro-conditions off" if conditioned else "micro-conditions where the model has none",
            {"use_additional_conditions": not conditioned},
            STATED if conditioned else SAID,
            False,
        ),
    ]
    made = [
        Fault(name, expected, config=_with(change), cheap=cheap)
        for name, change, expected, cheap in wrong
        if effective({**config, **change}) != have
    ]
    for field in sorted(have):
        missed = not field.startswith("_") and effective({k: v for k, v in config.items() if k != field}) != have
        if field in config and missed and field not in UNHEEDED:
            made.append(Fault(f"{field} missing from the config", SAID, config=_without(field)))
    return made


def _with(change: Mapping[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {**config, **change}


def _without(field: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {key: value for key, value in config.items() if key != field}


def _input_faults(found: Findings) -> list[Fault]:
    """What a pipeline does wrong before the net is called."""

    def maskless(inputs: Values) -> Values:
        return {name: value for name, value in inputs.items() if name != "caption_mask"}

    def later(inputs: Values) -> Values:
        return inputs | {"timestep": inputs["timestep"] + 1}

    def earlier(inputs: Values) -> Values:
        return inputs | {"timestep": inputs["timestep"] - 1}

    def longer(inputs: Values) -> Values:
        mask = inputs["caption_mask"]
        return inputs | {"caption_mask": torch.maximum(mask, mask.roll(1, dims=1))}

    def unscaled(inputs: Values) -> Values:
        return inputs | {"timestep": inputs["timestep"] / 1000}

    made = [
        Fault("mask ignored", SEEN, inputs=maskless, cheap=True),
        Fault("mask one token too long", SEEN, inputs=longer),
        Fault("timestep one too late", SEEN, inputs=later),
        Fault("timestep one too early", SEEN, inputs=earlier),
        Fault("timestep from 0 to 1", SEEN, inputs=unscaled),
    ]
    if found.value(MICRO):
        made += [
            Fault("height and width swapped", SEEN, inputs=lambda v: v | {"img_hw": v["img_hw"].flip(1)}),
            Fault("aspect ratio upside down", SEEN, inputs=lambda v: v | {"aspect_ratio": 1 / v["aspect_ratio"]}),
            Fault(
                "one size for the whole batch",
                SEEN,
                inputs=lambda v: v | {"img_hw": v["img_hw"][:1].expand_as(v["img_hw"])},
            ),
        ]
    return made


def _value_faults(found: Findings) -> list[Fault]:
    """What goes wrong inside the net though every weight is right."""
    hidden, patch = found.value("hidden_size"), found.value("patch_size")
    side, scale = found.value("sample_size") // patch, found.value("interpolation_scale")

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

    embedding, final = "patch embedding", "final layer"
    return [
        Fault("positional table transposed", SEEN, stage=embedding, values=turned),
        Fault("positional table left out", SEEN, stage=embedding, values=bare),
        Fault("cosines before sines in the positional table", SEEN, stage=embedding, values=cosine_first),
        Fault(
            "pixels of every patch transposed", SEEN, stage=final, values=lambda v: v | {"output": _within(v, patch)},
            cheap=patch > 1,
        ),
        Fault("epsilon and variance swapped", SEEN, stage=final, values=_halves, cheap=found.value("pred_sigma")),
        Fault("t_block's output where the final layer wants t", SEEN, stage="timestep embedding",
              values=lambda v: v | {"t": v["t0"][:, : v["t"].shape[1]]}),
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
