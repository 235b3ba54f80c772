"""How a picture is drawn with a net: deterministic DDIM with classifier-free guidance, by a schedule of its model's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .inputs import Case
from .net import Net, Values

TRAINED_STEPS = 1000


@dataclass(frozen=True)
class Sampler:
    """Deterministic DDIM (arXiv 2010.02502, eq. 12 with sigma 0).

    Attributes:
        case: the name of the case to begin with: no condition in its first sample, a condition in its second.
        betas: first and last of the linear schedule of 1000 steps that the model is trained with.
        timesteps: from the noisiest on.
        guidance: how far beyond the unconditioned prediction.
        latent, timestep: what these inputs are called.
    """

    case: str
    betas: tuple[float, float] = (1e-4, 0.02)
    timesteps: tuple[int, ...] = (999, 749, 499, 249)
    guidance: float = 4.5
    latent: str = "latent"
    timestep: str = "timestep"

    @property
    def alphas(self) -> list[float]:
        """The cumulative products of the schedule, by timestep."""
        products: list[float] = np.cumprod(1 - np.linspace(*self.betas, TRAINED_STEPS, dtype=np.float64)).tolist()
        return products

    def sample(
        self,
        net: Net,
        case: Case,
        channels: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
    ) -> Iterator[tuple[int, Tensor]]:
        """Draw: each timestep with the latents after it. The null branch is the case's first sample as it stands, with
        a mask of its own, say.

        Args:
            channels: of the output, the first ones, which predict the noise.
        """
        alphas, values = self.alphas, case.tensors(dtype, device)
        x = values[self.latent][1:2]
        for timestep, following in zip(self.timesteps, (*self.timesteps[1:], -1), strict=True):
            epsilon = self._guided(net, values, x, timestep)[:, :channels]
            now, then = alphas[timestep], alphas[following] if following >= 0 else 1.0
            start = (x - (1 - now) ** 0.5 * epsilon) / now**0.5
            x = then**0.5 * start + (1 - then) ** 0.5 * epsilon
            yield timestep, x

    def _guided(self, net: Net, values: Values, x: Tensor, timestep: int) -> Tensor:
        inputs = values | {
            self.latent: x.expand(2, -1, -1, -1).clone(),
            self.timestep: torch.full_like(values[self.timestep], timestep),
        }
        null, conditioned = net.forward(inputs).chunk(2)
        return null + self.guidance * (conditioned - null)
