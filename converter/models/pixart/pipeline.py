"""How PixArt draws pictures: as its training code does (inference scripts of the PixArt-alpha and PixArt-sigma
repositories), and as diffusers' `PixArtAlphaPipeline` and `PixArtSigmaPipeline` do."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ...families import Findings
from ...nets.pipeline_spec import ORIGINAL, Conventions, PipelineSpec, SamplerSpec
from .hyper_parameters import MICRO, TOKENS, VAE_FACTOR, needs_own_pipeline
from .prompts import clean_prompt, split_size_flags

SCALING = {"alpha": 0.18215, "sigma": 0.13025}  # of sd-vae-ft-ema and sdxl-vae-fp16-fix
# Pipelines on the hub, of whose parts all released models of a version make use.
RELEASED = {"alpha": "PixArt-alpha/PixArt-XL-2-1024-MS", "sigma": "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers"}
STOCK, OURS = "diffusers:", "converter.models.pixart.pixart_schedulers:"
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
PIXELS = (256, 512, 1024)  # at which both versions have a table of sizes


def _alpha(findings: Findings) -> bool:
    return bool(findings.value("version") == "alpha")


def tokens(findings: Findings) -> int:
    shown = findings.get("caption_tokens")
    by_version = {version: count for count, version in TOKENS.items()}
    return int(shown.value if shown and shown.value else by_version[findings.value("version")])


def conventions(findings: Findings, name: str) -> Conventions:
    alpha = _alpha(findings)
    if name != ORIGINAL:
        return Conventions(
            name=name,
            words="as diffusers' pipelines draw", null="the negative prompt or an empty one, with a mask of its own",
            clean_prompt=clean_prompt, size_in_prompt=lambda prompt: (prompt, None), stored_null=False,
            mask_of_prompt=False, ratio_of_table=False, float32_latents=False, float32_vae=False, half_up=False,
            resize=True,
        )  # fmt: skip
    return Conventions(
        name=name,
        words="as the training code draws",
        null=f"{'the null caption of the checkpoint' if alpha else 'an empty prompt'}, with the mask of the prompt",
        clean_prompt=clean_prompt if alpha else str.strip,
        size_in_prompt=split_size_flags,
        stored_null=alpha,
        mask_of_prompt=True,
        ratio_of_table=True,
        float32_latents=True,
        float32_vae=alpha,
        half_up=True,
        resize=False,
        own_size_only=not findings.value("multi_scale_train"),
        scaling_factor=SCALING["alpha"] if alpha else None,
        discarded_draws=30,
    )


def sampler(findings: Findings, how: Conventions, name: str) -> SamplerSpec:
    """One of `SAMPLERS`. The config holds for the stock class too, as well as a static one can."""
    alpha, original = _alpha(findings), how.name == ORIGINAL
    times = "timesteps are whole numbers, and the last step ends without noise"
    if original:
        times = "times lie between whole timesteps, and noise of 1 % is left at the end"
    if name == "lcm":
        return SamplerSpec(
            scheduler=OURS + "PixArtLCMScheduler" if original else STOCK + "LCMScheduler",
            config=BETAS | {"original_inference_steps": 50},
            stock="LCMScheduler", stock_note="pass timesteps=[999, 759, 519, 279], which its config cannot say",
            steps=4, guidance_scale=1.0, result="denoised",
        )  # fmt: skip
    if name == "dmd":
        return SamplerSpec(
            scheduler=OURS + "PixArtDMDScheduler",
            config=BETAS | {"clip_sample": False},
            stock="DDPMScheduler", stock_note="pass timesteps=[400], num_inference_steps=1 and guidance_scale=1",
            steps=1, guidance_scale=1.0, result="pred_original_sample",
        )  # fmt: skip
    if name == "iddpm":
        learned = {"variance_type": "learned_range", "clip_sample": False, "timestep_spacing": "linspace"}
        return SamplerSpec(
            scheduler=STOCK + "DDPMScheduler", config=BETAS | learned,
            stock="DDPMScheduler", stock_note="the stock pipelines drop the predicted variance, which it needs",
            steps=100, variance=True, guided=3 if original else None,
            masked=not (original and alpha and findings.value("multi_scale_train")),
        )  # fmt: skip
    if name == "sa-solver":
        return SamplerSpec(
            scheduler=OURS + "PixArtSASolverScheduler" if original else STOCK + "SASolverScheduler", config=BETAS,
            stock="SASolverScheduler", stock_note="it rounds the timesteps, which changes pictures by 1 to 2 %",
            steps=25, discarded_noise=original, words=times,
        )  # fmt: skip
    ours = "PixArtAlphaDPMSolverScheduler" if alpha else "PixArtDPMSolverScheduler"
    end = {"final_sigmas_type": "sigma_min", "lower_order_final": False, "euler_at_final": not alpha}
    return SamplerSpec(
        scheduler=OURS + ours if original else STOCK + "DPMSolverMultistepScheduler",
        config=BETAS | (end if original else {}),
        stock="DPMSolverMultistepScheduler",
        stock_note="it rounds the timesteps, which changes pictures by about 1 %"
        + (", and below 10 steps the last one is of order 2 where the training code takes 1" if alpha else ""),
        steps=20,
        words=times,
    )


def bins(findings: Findings, how: Conventions) -> Mapping[float, tuple[int, int]]:
    """Aspect ratio -> (height, width): diffusers' tables, which are those of PixArt-alpha's code; the 40 sizes of
    PixArt-sigma's are the ones that diffusers has at 2048 px, scaled."""
    pixels, sigma = findings.value("image_size"), not _alpha(findings)
    module = import_module(f"diffusers.pipelines.pixart_alpha.pipeline_pixart_{findings.value('version')}")
    if sigma and (pixels == 2048 or (how.name == ORIGINAL and pixels in PIXELS)):
        table, factor = module.ASPECT_RATIO_2048_BIN, pixels / 2048
    elif pixels in PIXELS:
        table, factor = getattr(module, f"ASPECT_RATIO_{pixels}_BIN"), 1.0
    else:
        return {}
    return {float(ratio): (int(high * factor), int(wide * factor)) for ratio, (high, wide) in table.items()}


def conditions(findings: Findings, height: int, width: int, ratio: float) -> dict[str, list[float]]:
    """The micro-conditions of one sample."""
    return {"img_hw": [height, width], "aspect_ratio": [ratio]} if findings.value(MICRO) else {}


CLASSES = {version: f"PixArt{version.title()}Pipeline" for version in SCALING}
MICRO_CONDITIONED = "converter.models.pixart.pixart_pipeline:PixArtAlphaMSPipeline"


def pipeline(findings: Findings) -> str:
    """The class: diffusers' own, where that tells the model all it needs."""
    if needs_own_pipeline(findings) and not findings.stock:
        return MICRO_CONDITIONED
    return STOCK + CLASSES[findings.value("version")]


def shown_by(name: str) -> dict[str, Any]:
    """The version; and of which class the released ones are that have no micro-conditions, which show theirs."""
    if name == MICRO_CONDITIONED.partition(":")[2]:
        return {"version": "alpha"}
    return {k: v for version, known in CLASSES.items() if known == name
            for k, v in (("version", version), ("multi_scale_train", version == "sigma"))}  # fmt: skip


PIPELINE = PipelineSpec(
    pipeline=pipeline,
    shown_by=shown_by,
    tokens=tokens,
    scaling_factor=lambda findings: SCALING[findings.value("version")],
    released=lambda findings: RELEASED[findings.value("version")],
    vae_factor=VAE_FACTOR,
    conventions=conventions,
    samplers=("dpm-solver", "sa-solver", "iddpm", "lcm", "dmd"),
    sampler=sampler,
    bins=bins,
    conditions=conditions,
)
