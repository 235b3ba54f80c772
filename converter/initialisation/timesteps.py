"""How far a PixArt is from the DiT that it begins as, at timesteps where they need not agree."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..parity.statistics import relative
from .nets import BothNets, CaseMaker
from .options import T_BLOCKS

if TYPE_CHECKING:
    from .origin import Origin

STEPS = (*range(0, 1000, 50), 999)
GRID = (8, 4)  # patches


@dataclass(frozen=True)
class Distances:
    """Relative L2 of the output at some timesteps, in float32, on one latent, by what `t_block` starts as."""

    timesteps: tuple[int, ...]
    distances: dict[str, list[float]]

    @property
    def mean(self) -> dict[str, float]:
        return {choice: sum(values) / len(values) for choice, values in self.distances.items()}

    @property
    def nearer(self) -> str:
        """The choice that is nearer to the DiT over all timesteps."""
        return min(self.mean, key=self.mean.__getitem__)

    @property
    def words(self) -> str:
        """Which choice is nearer, in one line."""
        mean, nearer = self.mean, self.nearer
        others = ", ".join(f"with {choice} {value:.3g}" for choice, value in mean.items() if choice != nearer)
        return (
            f"over {len(self.timesteps)} timesteps --t_block {nearer} is nearer to the DiT: its output is on average "
            f"{mean[nearer]:.3g} apart (relative L2), {others}"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"mean": self.mean, "nearer": self.nearer, "nearer_words": self.words}


def measure(origin: Origin) -> Distances:
    """Both nets at other timesteps, the PixArt with each `t_block` that can be chosen."""
    case = CaseMaker(origin).case("timesteps", *GRID, list(STEPS), alike=True)
    given = case.tensors(torch.float32)
    theirs = BothNets(origin, {}).dit(torch.float32).forward(given)
    apart = {}
    for choice in T_BLOCKS:
        other = origin.with_t_block(choice)
        ours = BothNets(other, other.state()).pixart(torch.float32).forward(given)
        apart[choice] = [relative(one, truth) for one, truth in zip(ours, theirs, strict=True)]
    return Distances(STEPS, apart)
