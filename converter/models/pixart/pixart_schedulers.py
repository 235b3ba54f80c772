# Licence: Apache-2.0. From convert-pixart: converter/models/pixart/pixart_schedulers.py. Needs diffusers and torch.
"""diffusers' schedulers at the times of PixArt's training code, which no static config gives for every number of steps.

Only `set_timesteps` differs; the updates are diffusers' own. This file lies in the `scheduler` folder of a pipeline,
beside the `scheduler_config.json` that it needs: `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`.
Source: PixArt-alpha and PixArt-sigma repositories, diffusion/model/dpm_solver.py, sa_solver.py and lcm_scheduler.py.
"""

from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, LCMScheduler, SASolverScheduler

END = 1e-3  # of the schedule, which begins at 1: noise of 1 % is left in the latents


def continuous_times(betas: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Timesteps (steps,) and noise levels sigma / alpha (steps + 1,) at times that are uniform from 1 to `END`.

    Neither is rounded to a level of the training: between these, log alpha is interpolated linearly. All but the sum of
    the levels is float32, as in the original; of the noise at the end of the schedule float32 has only four digits.

    >>> timesteps, sigmas = continuous_times(torch.linspace(1e-4, 0.02, 1000), 6)
    >>> [round(t, 2) for t in timesteps.tolist()], round(sigmas[-1].item(), 4)
    ([999.0, 832.5, 666.0, 499.5, 333.0, 166.5], 0.01)
    """
    count = len(betas)
    levels, level_times = torch.log1p(-betas.double()).cumsum(0).float() / 2, torch.linspace(0, 1, count + 1)[1:]
    times = torch.linspace(1, END, steps + 1)
    above = torch.searchsorted(level_times, times).clamp(1, count - 1)
    share = (times - level_times[above - 1]) / (level_times[above] - level_times[above - 1])
    log_alpha = torch.lerp(levels[above - 1], levels[above], share)
    log_sigma = (1 - (2 * log_alpha).exp()).log() / 2
    return ((times - 1 / count) * count)[:-1], (log_sigma - log_alpha).exp()


class PixArtDPMSolverScheduler(DPMSolverMultistepScheduler):
    """DPM-Solver++ at continuous times, as PixArt-sigma has it.

    The config has `final_sigmas_type="sigma_min"`, `lower_order_final=False` and `euler_at_final=True`.
    """

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **others: Any) -> None:
        super().set_timesteps(num_inference_steps, device=device, **others)
        if num_inference_steps is not None:
            timesteps, self.sigmas = continuous_times(self.betas, num_inference_steps)
            self.timesteps = timesteps.to(device)


class PixArtAlphaDPMSolverScheduler(PixArtDPMSolverScheduler):
    """The same as PixArt-alpha has it: from 10 steps on, the last one is of order 2 too."""

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **others: Any) -> None:
        super().set_timesteps(num_inference_steps, device=device, **others)
        self.register_to_config(euler_at_final=len(self.timesteps) < 10)


class PixArtSASolverScheduler(SASolverScheduler):
    """SA-Solver at continuous times; a step adds noise if the time that it leads to is between 0.2 and 0.8."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device=device)
        timesteps, self.sigmas = continuous_times(self.betas, num_inference_steps)
        self.timesteps = timesteps.to(device)
        targets = torch.linspace(1.0, END, num_inference_steps + 1, dtype=torch.float64)[1:]
        stochastic = dict(zip(timesteps.tolist(), ((targets >= 0.2) & (targets <= 0.8)).tolist(), strict=True))
        self.tau_func = lambda timestep: float(stochastic[float(timestep)])  # of the step that begins there


class PixArtLCMScheduler(LCMScheduler):
    """The times of PixArt-LCM: of those of the distillation every n-th, for 4 steps 999, 759, 519 and 279.

    The config has the betas of PixArt, `beta_schedule="linear"`, and `original_inference_steps=50`.
    """

    def set_timesteps(
        self, num_inference_steps: int = 4, device: Any = None, timesteps: list[int] | None = None, **others: Any
    ) -> None:
        if timesteps is None:
            trained = self.config.original_inference_steps
            if num_inference_steps > trained:
                raise ValueError(f"PixArt-LCM takes at most {trained} steps, not {num_inference_steps}")
            distance = self.config.num_train_timesteps // trained
            every = trained // num_inference_steps
            timesteps = [distance * (i + 1) - 1 for i in range(trained)][::-every][:num_inference_steps]
        super().set_timesteps(timesteps=timesteps, device=device, **others)


class PixArtDMDScheduler(DDPMScheduler):
    """The one step of PixArt-DMD, from timestep 400. The config has `clip_sample=False`."""

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: list[int] | None = None
    ) -> None:
        if num_inference_steps not in (None, 1):
            raise ValueError(f"PixArt-DMD takes 1 step, not {num_inference_steps}")
        super().set_timesteps(timesteps=timesteps or [400], device=device)
