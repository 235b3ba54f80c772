"""The recorded SANAs: what each is, and what its user has to say of it."""

from __future__ import annotations

from typing import Any

import torch
from makers import GOLDEN, inventories, recorded

from converter.nets import Values

# Of no model does a file show the heads of the cross attention; two have heads of 16 channels, not 32.
GIVEN: dict[str, dict[str, Any]] = {
    "sana-1024": {"trained_in": "bf16"},
    "sana-4k": {"num_attention_heads": 3},
    "sana-1.5": {"timestep_scale": 1.0},
    "sana-sprint": {"num_attention_heads": 3},
    "sana-clip": {"num_attention_heads": 3, "trained_in": "fp16"},
}
GIVEN = {name: {"num_cross_attention_heads": 4} | given for name, given in GIVEN.items()}
NAMES = [*GIVEN]
EXACT = ["sana-1.5", "sana-sprint", "sana-clip"]  # which diffusers' own class computes otherwise


def original(name: str) -> dict[str, torch.Tensor]:
    """The state dict."""
    state: dict[str, torch.Tensor] = torch.load(GOLDEN / f"{name}.pth", weights_only=False)["state_dict"]
    return state


def drawn(**sizes: Any) -> dict[str, torch.Tensor]:
    """Random weights of a small SANA without positions, of such sizes as `inventory` of the generator takes."""
    sizes = {
        "depth": 1,
        "hidden_size": 48,
        "caption_channels": 20,
        "tokens": 12,
        "input_size": 8,
        "in_channels": 8,
    } | sizes
    random = torch.Generator().manual_seed(7)
    shapes = inventories.inventory(family="sana", **sizes)
    state = {key: torch.randn(shape, generator=random) * 0.1 for key, (_, shape) in shapes.items()}
    return state | {"pos_embed": torch.zeros(shapes["pos_embed"][1])}


def inputs(name: str, case: Values) -> Values:
    """Recorded ones, scaled as both nets take them; in diffusers' words see `called`."""
    caption, mask = case["caption"][:, 0], case["caption_mask"][:, 0, 0]
    made = {"latent": case["latent"], "timestep": case["timestep"], "caption": caption, "caption_mask": mask}
    if name == "sana-sprint":
        made |= {"timestep": case["timestep"] / 1000, "guidance": case["guidance"] * 0.1}
    return made


def called(name: str, model: Any, case: Values) -> torch.Tensor:
    """What a model of diffusers makes of recorded inputs. Of timesteps of 1000 the original takes the whole part."""
    given = inputs(name, case)
    with torch.no_grad():
        output: torch.Tensor = model(
            given["latent"],
            encoder_hidden_states=given["caption"],
            encoder_attention_mask=given["caption_mask"],
            timestep=given["timestep"] if "guidance" in given else given["timestep"].trunc(),
            guidance=given.get("guidance"),
        ).sample
    return output


def relative(output: torch.Tensor, truth: torch.Tensor) -> float:
    return float((output - truth).norm() / truth.norm())


def settings(name: str) -> dict[str, Any]:
    """The hyper-parameters that the recorded net was made of."""
    return recorded(name)[0]
