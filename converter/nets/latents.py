"""What the comparisons of nets on patches of a latent have in common."""

from __future__ import annotations

from typing import Any

from ..families import Findings
from .inputs import Array, Case, Draws
from .net import Net, Probe, Stage, Staged, Values
from .patches import LatentShape

AFFORDABLE = 1024  # tokens of one sample in the standard profile; the attention grows with their square
LARGEST = 1024  # latent side that is believed of a config: a table of positions grows with its square


def parts(findings: Findings) -> dict[str, slice]:
    """The halves of the output: the noise, and the variance where the net predicts it."""
    channels, out = findings.value("in_channels"), findings.value("out_channels")
    return {"epsilon": slice(0, channels)} | ({"variance": slice(channels, out)} if out > channels else {})


def believed_size(side: Any, factor: int) -> int | None:
    """The image size of a config's `sample_size`, at `factor` pixels each; None where that is no number, or absurd."""
    return side * factor if isinstance(side, int) and side <= LARGEST else None


class LatentInputs(Draws):
    """Noise for one model of latents, whose sides are counted in patches; `side` is the model's own."""

    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self.patch, self.channels = findings.value("patch_size"), findings.value("in_channels")
        self.side = findings.value("sample_size") // self.patch

    def latent(self, batch: int, rows: int, columns: int) -> Array:
        return self.draw(batch, self.channels, rows * self.patch, columns * self.patch)


def own_size(findings: Findings, stage: str) -> list[tuple[str, Case]]:
    """The stage that makes tokens, on a latent of the model's own size: it shows the table that the original stores, at
    the cost of no block."""
    draws = LatentInputs(findings)
    latent = draws.latent(1, draws.side, draws.side)
    return [(stage, Case("native", {"latent": latent}, "the model's own size"))]


def of_any_size(net: Net, other: Net, shape: LatentShape) -> Staged:
    """A net that takes one size of latents only, run on others too, which are cheaper: there its blocks see the patches
    of `other`, the same net with the table of positions computed for each size. The stored table is tried by itself.
    """
    first, *rest = net.stages

    def embed(values: Values, probe: Probe) -> Values:
        fits = shape.grid(values["latent"]) == (shape.base, shape.base)
        return (first if fits else other.stages[0]).run(values, probe)

    return Staged([Stage(first.name, embed), *rest])


def described(findings: Findings) -> dict[str, Any]:
    """The fields of a `LatentShape` that an original file shows, but for the scale and `multi_scale`."""
    names = {"num_heads": "num_attention_heads", "input_size": "sample_size"}
    same = ("depth", "hidden_size", "patch_size", "out_channels")
    return {field: findings.value(name) for field, name in (names | dict(zip(same, same, strict=True))).items()}
