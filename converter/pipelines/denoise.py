"""The second stage: from noise to latents, by a scheduler of diffusers (or ours on top of one), with guidance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, UsageError
from ..families.travelling import imported_class
from ..nets import Net
from ..nets.pipeline_spec import SamplerSpec


@dataclass(frozen=True)
class Guidance:
    """What the net is told beside the latents, and how far the prompt leads.

    Attributes:
        prompt, mask: (B, L, C) text embeddings, (B, L) nonzero where a token is kept.
        null, null_mask: what guidance begins at, of 1 or B samples; None where there is none.
        scale: 1 and less: only the prompt.
        conditions: further inputs of the net, the same for every sample.
    """

    prompt: Tensor
    mask: Tensor
    null: Tensor | None = None
    null_mask: Tensor | None = None
    scale: float = 1.0
    conditions: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def guided(self) -> bool:
        return self.scale > 1 and self.null is not None

    def inputs(self, sampler: SamplerSpec, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        """The net's inputs but for latents and timestep; with guidance the null branch comes first."""
        caption, mask, batch = self.prompt, self.mask, len(self.prompt)
        if self.guided:
            assert self.null is not None
            assert self.null_mask is not None
            if self.null.shape[1:] != caption.shape[1:]:
                shapes = f"{list(self.null.shape[1:])}, and that of the prompt {list(caption.shape[1:])}"
                raise UsageError(f"`prompt`: the null caption, at which guidance begins, has the shape {shapes}")
            caption = torch.cat([self.null.expand(batch, -1, -1), caption])
            mask = torch.cat([self.null_mask.expand(batch, -1), mask])
        rows = len(caption)
        values = {name: torch.tensor([list(numbers)]).expand(rows, -1) for name, numbers in self.conditions.items()}
        values |= {"caption": caption} | ({"caption_mask": mask} if sampler.masked else {})
        return {name: value.to(device, dtype) for name, value in values.items()}


def make_scheduler(sampler: SamplerSpec, steps: int, device: str = "cpu") -> Any:
    """The scheduler, with its timesteps set.

    Raises: `UsageError` for a number of steps that it does not take.
    """
    scheduler = imported_class(sampler.scheduler).from_config(dict(sampler.config))
    try:
        scheduler.set_timesteps(steps, device=device)
    except ValueError as error:
        raise UsageError(f"`num_inference_steps` {steps}: {error}") from error
    return scheduler


def denoise(
    net: Net,
    sampler: SamplerSpec,
    guidance: Guidance,
    latents: Tensor,
    *,
    steps: int,
    dtype: torch.dtype = torch.float32,
    float32_latents: bool = True,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[float, Tensor]]:
    """Draw: every timestep, with the latents (B, C, h, w) after it; the last are those of the picture.

    Args:
        latents: the noise to begin with, on the net's device.
        dtype: the net's.
        float32_latents: keep them in float32 whatever the net's dtype is, as the training code does.
        generator: of the noise that some samplers add.

    Raises: `UsageError` for a net that does not predict what the sampler needs; `InputError` where what it predicts is
    not finite.
    """
    device, channels = str(latents.device), latents.shape[1]
    scheduler, inputs = make_scheduler(sampler, steps, device), guidance.inputs(sampler, dtype, device)
    latents = latents.to(torch.float32 if float32_latents else dtype)
    if sampler.discarded_noise:
        torch.randn(latents.shape, generator=generator, device=generator.device if generator else device)
    for timestep in scheduler.timesteps:
        model_input = scheduler.scale_model_input(latents, timestep)
        model_input = torch.cat([model_input, model_input]) if guidance.guided else model_input
        values = inputs | {"latent": model_input.to(dtype), "timestep": timestep.expand(len(model_input))}
        output = net.forward(values)
        if guidance.guided:
            (null, prompt), count = output.chunk(2), sampler.guided or channels
            first = null[:, :count] + guidance.scale * (prompt[:, :count] - null[:, :count])
            output = torch.cat([first, prompt[:, count:]], dim=1)
        if sampler.variance and output.shape[1] != 2 * channels:
            raise UsageError("`sampler`: this one needs the variance, which the model does not predict")
        if not bool(output.isfinite().all()):
            remedy = "are its weights damaged?" if dtype == torch.float32 else "use `dtype` float32"
            raise InputError(f"at timestep {float(timestep):g} the model predicts NaN or infinity in {dtype}: {remedy}")
        output = (output if sampler.variance else output[:, :channels]).to(latents.dtype)
        step = scheduler.step(output, timestep, latents, generator=generator)
        latents = step.prev_sample
        last = timestep == scheduler.timesteps[-1]
        yield float(timestep), getattr(step, sampler.result) if last else latents
