"""The golden DiT, small choices, and what comes of them: what the tests of an initialisation share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from makers import GOLDEN, HEADS

from converter.checkpoint import open_checkpoint
from converter.conversion.analysis import analyse
from converter.initialisation import Options, init_from_dit
from converter.initialisation.origin import Origin
from converter.nets.layers import sinusoid

DIT = GOLDEN / "dit.pt"
SMALL = Options(caption_tokens=12, caption_channels=32)
DEPTH, HIDDEN = 3, 48
State = dict[str, torch.Tensor]


def golden() -> State:
    return dict(torch.load(DIT, weights_only=True))


@contextmanager
def origin(options: Options = SMALL, path: Path = DIT, heads: int = HEADS) -> Iterator[Origin]:
    with open_checkpoint(path) as checkpoint:
        yield Origin(analyse(checkpoint, {"num_attention_heads": heads}), options)


def begun(tmp: Path, options: Options = SMALL, name: str = "init.pth", path: Path = DIT) -> State:
    """The state dict of what was written, as torch reads it."""
    done = init_from_dit(path, tmp / name, options, num_attention_heads=HEADS)
    assert done.written, done.proof.words
    return dict(torch.load(tmp / name, weights_only=True)["state_dict"])


def embedded(state: State, timestep: float) -> torch.Tensor:
    """e(t) in float64, layer by layer."""
    waves = sinusoid(torch.tensor([timestep])).double()
    first, second = (
        (state[f"t_embedder.mlp.{i}.weight"].double(), state[f"t_embedder.mlp.{i}.bias"].double()) for i in (0, 2)
    )
    return F.linear(F.silu(F.linear(waves, *first)), *second)[0]


def layer(state: State, name: str, heard: torch.Tensor) -> torch.Tensor:
    """A layer on silu of what it hears, in float64."""
    return F.linear(F.silu(heard), state[f"{name}.weight"].double(), state[f"{name}.bias"].double())
