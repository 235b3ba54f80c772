"""How pictures are drawn with a model: its samplers, and where its training code and diffusers' pipelines differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..families import Findings


ORIGINAL, DIFFUSERS = CONVENTIONS = ("original", "diffusers")


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """How pictures are drawn beside the net itself: as the training code does, or as diffusers' pipelines do."""

    name: str  # one of `CONVENTIONS`
    words: str  # that, in words
    null: str  # what guidance begins at, in words
    clean_prompt: Callable[[str], str]  # as captions were
    # A prompt -> (what is encoded of it, the ratio of height to width or both in pixels where it asks for that).
    size_in_prompt: Callable[[str], tuple[str, float | tuple[int, int] | None]]
    stored_null: bool  # guidance begins at the checkpoint's null caption, and not at the encoded negative prompt
    mask_of_prompt: bool  # the null caption is masked as the prompt is, and not by its own length
    ratio_of_table: bool  # the aspect ratio that the net is told is the table's key, of two decimals
    float32_latents: bool  # whatever the net's dtype
    float32_vae: bool  # likewise
    half_up: bool  # how 8 bits are rounded; else half to even, in float32
    resize: bool  # the picture, to the size that was asked for
    own_size_only: bool = False  # the net takes squares of its own size
    scaling_factor: float | None = None  # of the latents, fixed in the code; None: that of the VAE's config
    discarded_draws: int = 0  # samples of noise that are drawn and thrown away after the seed, on the CPU


@dataclass(frozen=True, kw_only=True)
class SamplerSpec:
    """A scheduler with its config, and what the loop does for it."""

    scheduler: str  # "package.module:Class"; one of this package travels with the weights
    config: Mapping[str, Any]
    words: str = ""  # of its times, where the training code and diffusers differ in them
    stock: str  # the class of diffusers to be had without such code, with the same config
    stock_note: str  # what that one does otherwise, or has to be called with
    steps: int  # the number that is usual
    guidance_scale: float = 4.5  # the usual one; 1 where guidance is distilled into the net
    variance: bool = False  # a step takes what the net predicts of it as well
    guided: int | None = None  # only the first so many channels of the latents are guided; None: all
    discarded_noise: bool = False  # one draw is thrown away before the first step
    masked: bool = True  # the padding of captions is masked
    result: str = "prev_sample"  # what of the last step's output is the picture


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """What a family says of pictures. Everything is called with what the model's files show."""

    pipeline: Callable[[Findings], str]  # diffusers' class
    # What the name of a pipeline's class says of the model in it: hyper-parameters by name.
    shown_by: Callable[[str], Mapping[str, Any]]
    tokens: Callable[[Findings], int]  # of a prompt
    scaling_factor: Callable[[Findings], float]  # of the VAE that it was trained with
    released: Callable[[Findings], str]  # a repository on the hub with the components that it was trained with
    vae_factor: int  # pixels per latent position
    conventions: Callable[[Findings, str], Conventions]
    samplers: tuple[str, ...]  # their names, the usual one first
    sampler: Callable[[Findings, Conventions, str], SamplerSpec]
    # Aspect ratio (height / width, two decimals) -> (height, width) in pixels; none where the model has no such table.
    bins: Callable[[Findings, Conventions], Mapping[float, tuple[int, int]]]
    # (findings, height, width, aspect ratio) -> what the net is told beside latents, timestep and caption, per sample.
    conditions: Callable[[Findings, int, int, float], Mapping[str, list[float]]]
