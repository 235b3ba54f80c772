"""What the comparisons of nets on patches of a latent have in common."""

from __future__ import annotations

from typing import Any

from ..families import Findings
from .net import Net, Probe, Stage, Staged, Values
from .patches import Patched, grid_of

AFFORDABLE = 1024  # tokens of one sample in the standard profile; the attention grows with their square
LARGEST = 1024  # latent side that is believed of a config: a table of positions grows with its square


def parts(found: Findings) -> dict[str, slice]:
    """The halves of the output: the noise, and the variance where the net predicts it."""
    channels, out = found.value("in_channels"), found.value("out_channels")
    return {"epsilon": slice(0, channels)} | ({"variance": slice(channels, out)} if out > channels else {})


def believed_size(side: Any, factor: int) -> int | None:
    """The image size of a config's `sample_size`, at `factor` pixels each; None where that is no number, or absurd."""
    return side * factor if isinstance(side, int) and side <= LARGEST else None


def of_any_size(net: Net, other: Net, shape: Patched) -> Staged:
    """A net that takes one size of latents only, run on others too, which are cheaper: there its blocks see the patches
    of `other`, the same net with the table of positions computed for each size. The stored table is tried by itself.
    """
    first, *rest = net.stages
    own = (shape.input_size // shape.patch_size,) * 2

    def embed(values: Values, probe: Probe) -> Values:
        return (first if grid_of(shape, values["latent"]) == own else other.stages[0]).run(values, probe)

    return Staged([Stage(first.name, embed), *rest])
