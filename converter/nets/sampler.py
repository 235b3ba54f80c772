"""How an image is sampled with a net: deterministic DDIM with classifier-free guidance, on its model's schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .inputs import Case
from .net import Net

TRAINED_STEPS = 1000


@dataclass(frozen=True)
class Sampler:
    """Deterministic DDIM (arXiv 2010.02502, eq. 12 with sigma 0)."""

    # The case to begin with: no condition in its first sample, a condition in its second; "latent" and "timestep" are
    # replaced.
    case: str
    betas: tuple[float, float] = (1e-4, 0.02)  # of the linear schedule of 1000 steps that the model is trained with
    timesteps: tuple[int, ...] = (999, 749, 499, 249)  # from the noisiest on
    guidance: float = 4.5  # how far beyond the unconditioned prediction
    latent: str = "latent"  # the names of the inputs that it fills in
    timestep: str = "timestep"

    @property
    def alphas(self) -> list[float]:
        """The cumulative products of the schedule, by timestep."""
        products: list[float] = np.cumprod(1 - np.linspace(*self.betas, TRAINED_STEPS, dtype=np.float64)).tolist()
        return products

    def sample(
        self, net: Net, case: Case, channels: int, *, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> Iterator[tuple[int, Tensor]]:
        """Draw: each timestep with the latents after it. The null branch is the case's first sample as it stands, with
        a mask of its own, say.

        Args:
            channels: of the output, the first ones, which predict the noise.
        """
        alphas, values = self.alphas, case.tensors(dtype, device)
        x = values[self.latent][1:2]
        for timestep, following in zip(self.timesteps, (*self.timesteps[1:], -1), strict=True):
            times = torch.full_like(values[self.timestep], timestep)
            inputs = values | {self.latent: x.expand(2, *x.shape[1:]).clone(), self.timestep: times}
            null, conditioned = net.forward(inputs)[:, :channels].chunk(2)
            epsilon = null + self.guidance * (conditioned - null)
            now, then = alphas[timestep], alphas[following] if following >= 0 else 1.0
            start = (x - (1 - now) ** 0.5 * epsilon) / now**0.5
            x = then**0.5 * start + (1 - then) ** 0.5 * epsilon
            yield timestep, x
