"""Does the initialised PixArt compute at t = 500 what the DiT does? Both nets are run, block by block, on fixed noise.

The measure is that of the parity checker: the DiT's own rounding, float32 against float64. The PixArt's tables are
stored in float32, so that float64 has no closer measure to offer. Both nets are fed the same embedded patches: those of
the PixArt, whose positions may be others than the DiT's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoint import LazyTensor
from ..parity.gates import FLOOR_LIMIT
from ..parity.inputs import noise
from ..parity.statistics import relative
from ..reference import DiTShape, Net, PixArtShape, Values, Weights, dit, pixart, unheard
from .options import MEAN, PAPER, TIMESTEP, ZERO

if TYPE_CHECKING:
    from .assemble import Origin

SHAPES = ((16, 16), (24, 16))  # of latents: square, and not
TOKENS = 8  # of the caption: what they say must not matter
STEPS = (*range(0, 1000, 50), 999)  # at which the two are compared for a report


def prove(origin: Origin, state: Mapping[str, LazyTensor], *, timesteps: bool = False) -> dict[str, Any]:
    """Run both nets, and say how far apart they are.

    Returns: `passed`; `worst`, the largest multiple of the noise floor, and `limit`; `stages`, a row for every block
    and the output with `name`, `error` (PixArt in float32 against the DiT in float64), `floor` (the DiT in float32
    against itself in float64), `apart` (both in float32) and `float64` (both in it), the worst of all latents; with
    `timesteps` also `timesteps`, `distances` (relative L2 of the outputs by t_block, float32) and `nearer`.
    """
    rows: dict[str, dict[str, Any]] = {}
    for seed, (height, width) in enumerate(SHAPES):
        latent = torch.from_numpy(noise(seed, 2, origin.dims["C"], height, width))
        runs = {
            precision: _both(origin, state, latent.to(precision), torch.full((2,), TIMESTEP))
            for precision in (torch.float64, torch.float32)
        }
        truth, exact = runs[torch.float64]
        theirs, ours = runs[torch.float32]
        for name in truth:
            found = {
                "error": relative(ours[name], truth[name]),
                "floor": relative(theirs[name], truth[name]),
                "apart": relative(ours[name], theirs[name]),
                "float64": relative(exact[name], truth[name]),
            }
            worse = rows.get(name, {"error": -1.0})
            rows[name] = found if found["error"] > worse["error"] else worse
    stages = [{"name": name, **row} for name, row in rows.items()]
    worst = max(max(row["error"], row["apart"]) / max(row["floor"], 1e-30) for row in stages)
    made = {"passed": bool(worst <= FLOOR_LIMIT), "worst": worst, "limit": FLOOR_LIMIT, "stages": stages}
    return made | (_distances(origin) if timesteps else {})


def _distances(origin: Origin) -> dict[str, Any]:
    """How far the PixArt is from the DiT at other timesteps, by what its `t_block` starts as."""
    from .assemble import Origin as Another

    one = torch.from_numpy(noise(len(SHAPES), 1, origin.dims["C"], *SHAPES[-1]))
    latent = one.expand(len(STEPS), -1, -1, -1)
    distances = {}
    for choice in (MEAN, PAPER):
        other = Another(origin.looked, replace(origin.options, t_block=choice))
        theirs, ours = (run["output"] for run in _both(other, other.state(), latent, torch.tensor(STEPS)))
        distances[choice] = [relative(ours[i], theirs[i]) for i in range(len(STEPS))]
    mean = {choice: sum(values) / len(values) for choice, values in distances.items()}
    return {"timesteps": list(STEPS), "distances": distances, "mean": mean, "nearer": min(mean, key=mean.__getitem__)}


def _both(
    origin: Origin, state: Mapping[str, LazyTensor], latent: Tensor, timestep: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What each block and the output of the DiT and of the PixArt gives, in the precision of the latent."""
    found, dtype, count = origin.looked.found, latent.dtype, len(latent)
    sizes = {name: found.value(name) for name in ("depth", "hidden_size", "patch_size", "out_channels")}
    heads = found.value("num_attention_heads")
    before: Mapping[str, Any] = origin.looked.checkpoint
    last = origin.looked.plan.dims["Y"] - 1
    if origin.options.none == ZERO:
        table = "y_embedder.embedding_table.weight"
        before = {key: before[key] for key in before} | {table: torch.zeros(before[table].shape)}
    own = DiTShape(num_heads=heads, input_size=found.value("sample_size"), multi_scale=True, **sizes)
    new = PixArtShape(
        num_heads=heads, in_channels=origin.dims["C"], input_size=origin.side, scale=origin.scale, multi_scale=True,
        micro_condition=origin.options.micro_condition, **sizes,
    )  # fmt: skip
    theirs, ours = dit(Weights(before, dtype), own), pixart(Weights(state, dtype), new)
    height, width = latent.shape[-2:]
    inputs = {
        "latent": latent,
        "timestep": timestep,
        "class_label": torch.full((count,), last),
        "caption": torch.from_numpy(noise(7, count, TOKENS, origin.options.caption_channels)).to(dtype),
        "img_hw": torch.tensor([[8.0 * height, 8.0 * width]] * count, dtype=dtype),
        "aspect_ratio": torch.tensor([[height / width]] * count, dtype=dtype),
    }
    with torch.inference_mode():
        x = ours.stages[0].run(inputs, unheard)
        return _followed(theirs, inputs | x), _followed(ours, inputs | x)


def _followed(net: Net, values: Values) -> dict[str, Tensor]:
    """What the stages after the embedded patches make of `values`: "block 0" and so on, and "output"."""
    seen = {}
    for stage in net.stages[1:]:
        made = stage.run(values, unheard)
        values = values | made
        if stage.name.startswith("block "):
            seen[stage.name] = made["x"]
    return seen | {"output": values["output"]}
