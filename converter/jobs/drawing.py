"""One picture under way: all that it is drawn with, found and checked before anything is loaded."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import open_checkpoint
from ..conversion.record import find_record
from ..conversion.remarks import differences_from_record
from ..errors import InputError, UsageError, printable
from ..families.travelling import CLASS
from ..nets.pipeline_spec import CONVENTIONS, DIFFUSERS, Conventions, SamplerSpec
from ..pipelines import plan
from ..pipelines.checks import fitting
from ..pipelines.components import SCHEDULER, TEXT_ENCODER, TOKENIZER, VAE, find_component
from ..pipelines.denoise import make_scheduler
from ..pipelines.embeddings import Embeddings, kept_conventions
from ..pipelines.model import PictureModel
from ..pipelines.plan import MemoryPlan
from ..pipelines.sizes import Asked, picture_size
from ..pipelines.text_encoder import tokenize
from .picture_request import IMAGE, PictureRequest

if TYPE_CHECKING:
    from torch import Tensor


class Drawing:
    """What a request comes to with an open transformer. Nothing of it is loaded before a stage runs.

    Attributes:
        notes: what whoever draws should know.

    Raises: `UsageError` and `InputError`, whatever stands against the picture.
    """

    def __init__(self, request: PictureRequest, model: PictureModel) -> None:
        self.request, self.model, self.notes = request, model, list[str]()
        kept = kept_conventions(Path(request.prompt_embeds)) if request.prompt_embeds else ""
        kept = kept if kept in CONVENTIONS else ""
        conventions = request.conventions or kept or model.conventions
        if kept not in ("", conventions):
            self.notes.append(
                f"the embeddings were kept with the conventions {kept}: guidance begins at what they hold"
            )
        if model.checkpoint.folder:
            self.notes += differences_from_record(model.analysis, find_record(model.checkpoint.folder))
        self.how: Conventions = model.spec.conventions(model.findings, conventions)
        self.sampler_name, self.sampler = self._sampler()
        self.steps = request.num_inference_steps or self.sampler.steps
        make_scheduler(self.sampler, self.steps)  # asked now whether it takes as many
        if self.sampler.variance and not model.findings.value("pred_sigma"):
            raise UsageError(f"`sampler` {self.sampler_name}: needs the variance, which the model does not predict")
        self.scale = self.sampler.guidance_scale if request.guidance_scale is None else request.guidance_scale
        self.seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        self.prompts, asked = self._prompts()
        self.given_latents = self._given_latents()
        if self.given_latents is not None:
            high, wide = self.given_latents.shape[2:]
            asked = (high * model.spec.vae_factor, wide * model.spec.vae_factor)
        binning = request.use_resolution_binning and self.given_latents is None
        self.size = picture_size(model, self.how, asked, binning=binning)
        drawn, wanted = (self.size.height, self.size.width), (request.height, request.width)
        if self.size.asked is None and any(side and side != own for side, own in zip(wanted, drawn, strict=True)):
            nearest = "the closest size that the model was trained with (`use_resolution_binning` false draws any)"
            self.notes.append(f"size: {drawn[0]} x {drawn[1]} is drawn, {nearest}")
        self.notes.append(f"conventions: {self.how.name}: {self._meaning()}")
        self.folders = {part: self._component(part) for part in self._parts()}
        self.ids, self.mask = self._tokens()
        self.given_embeddings = self._given_embeddings()
        given = self.given_embeddings and self.given_embeddings.negative_prompt_embeds
        if self.guided and self.how.stored_null and given is None and model.null_caption is None:
            raise UsageError(
                "`null_caption` is needed: guidance begins there, and nothing here holds it; or `conventions` diffusers"
            )
        if self.given_latents is not None and len(self.given_latents) != self.images:
            rule = f"holds {len(self.given_latents)} samples, and {self.images} are to be drawn"
            raise InputError.at(request.latents or "", "latents", rule)

    @property
    def guided(self) -> bool:
        return self.scale > 1

    def _meaning(self) -> str:
        """What the conventions come to for this picture."""
        null = f"guidance begins at {self.how.null}" if self.guided and not self.request.prompt_embeds else ""
        return "; ".join(filter(None, [self.how.words, null, self.sampler.words]))

    # ---- What it is drawn with

    def _sampler(self) -> tuple[str, SamplerSpec]:
        """The sampler that was asked for, else the one that the pipeline's scheduler stands for, else the usual one."""
        spec, findings = self.model.spec, self.model.findings
        if asked := self.request.sampler:
            if asked not in spec.samplers:
                raise UsageError(f"`sampler` {printable(asked)}: one of {', '.join(spec.samplers)}")
            return asked, spec.sampler(findings, self.how, asked)
        place, config = Path(self.request.pipeline), dict[str, Any]()
        with suppress(*([] if place.exists() else [InputError])):  # on the hub it may be no pipeline
            if not place.exists() or (place / SCHEDULER).is_dir():
                config |= find_component(self.request.pipeline, SCHEDULER).config
        closest, usual = self.model.closest_sampler(config) if config else None, spec.samplers[0]
        name = closest[0] if closest else usual
        if config and not closest:
            kind = printable(config.get(CLASS), 60)
            self.notes.append(
                f"the pipeline's scheduler is {kind}, which is none of those here: {usual} takes its place"
            )
        sampler = spec.sampler(findings, self.how, name)
        own = {field: value for field, value in config.items() if not field.startswith("_")}
        if self.how.name == DIFFUSERS and own and config.get(CLASS) == sampler.stock:
            sampler = replace(sampler, scheduler=f"diffusers:{sampler.stock}", config=own)  # as diffusers loads it
        return name, sampler

    def _prompts(self) -> tuple[list[str], Asked]:
        """The prompts as they are encoded, and the size that the request names, or else the prompts do."""
        request, clean, prompts = self.request, self.how.clean_prompt, list[str]()
        asked: Asked = (request.height, request.width)
        sizes = set[Asked]()
        for prompt in request.prompt:
            text, size = self.how.size_in_prompt(prompt)
            sizes.add(size or (None, None))
            prompts.append(clean(text))
        if asked == (None, None) and len(sizes) > 1:
            raise UsageError("`prompt`: these ask for different sizes; draw one after the other, or give `height`")
        if asked == (None, None) and sizes:
            asked = sizes.pop()
        if request.negative_prompt and (self.how.stored_null or self.how.mask_of_prompt):
            raise UsageError("`negative_prompt`: the training code has none; `conventions` diffusers has")
        if self.guided and not self.how.stored_null:
            prompts.append(clean(request.negative_prompt or ""))
        return (prompts if request.prompt else []), asked

    def _parts(self) -> list[str]:
        """The components that are needed."""
        text, pipeline = [] if self.request.prompt_embeds else [TEXT_ENCODER, TOKENIZER], Path(self.request.pipeline)
        parts = [*text, *([VAE] if self.request.output_type == IMAGE else [])]
        absent = [part for part in parts if not getattr(self.request, part) and not (pipeline / part).is_dir()]
        if absent and pipeline.exists():
            flags, instead = " and ".join(f"`{part}`" for part in absent), ""
            if absent[0] in text:
                instead = "; or, for text, `prompt_embeds`, a file of embeddings"
            rule = f"needed, as {printable(pipeline)} has none: the folder or hub id of each{instead}"
            raise UsageError(f"{flags} {'is' if len(absent) == 1 else 'are'} {rule}")
        return parts

    def _component(self, part: str) -> Path:
        component = find_component(getattr(self.request, part) or self.request.pipeline, part)
        fitting(component, self.model)
        return component.folder

    def _tokens(self) -> tuple[Any, Any]:
        """Ids and mask of all prompts, the null branch's last."""
        if TOKENIZER not in self.folders:
            return None, None
        tokens = self.model.spec.tokens(self.model.findings)
        ids, mask, cut = tokenize(self.prompts, self.folders[TOKENIZER], tokens)
        self.notes += [
            f"the prompt is longer than {tokens} tokens: cut off was {printable(words, 2000)!r}"
            for words in cut
            if words
        ]
        return ids, mask

    def _given_embeddings(self) -> Embeddings | None:
        if not self.request.prompt_embeds:
            return None
        findings = self.model.findings
        width, tokens = findings.value("caption_channels"), self.model.spec.tokens(findings)
        given = Embeddings.load(Path(self.request.prompt_embeds), tokens=tokens, width=width)
        if self.guided and given.negative_prompt_embeds is None and not self.how.stored_null:
            raise InputError.at(
                self.request.prompt_embeds,
                "",
                "holds no negative_prompt_embeds, which guidance needs: or `guidance_scale` 1",
            )
        return given

    def _given_latents(self) -> Tensor | None:
        if not self.request.latents:
            return None
        channels = self.model.findings.value("in_channels")
        with open_checkpoint(self.request.latents) as file:
            if "latents" not in file:
                raise InputError.at(self.request.latents, "", "holds no tensor 'latents'")
            tensor = file["latents"]
            of_place = len(tensor.shape) == 4 and tensor.shape[1] == channels and 0 not in tensor.shape
            if not of_place or not tensor.dtype.floating:
                rule = (
                    f"is {tensor.dtype} {list(tensor.shape)}: floats [B, {channels}, height / 8, width / 8] are needed"
                )
                raise InputError.at(self.request.latents, "latents", rule)
            latents: Tensor = tensor.torch().clone()
        if not bool(latents.isfinite().all()):
            raise InputError.at(self.request.latents, "latents", "holds NaN or infinity")
        sides = [side * self.model.spec.vae_factor for side in latents.shape[2:]]
        for name, side in zip(("height", "width"), sides, strict=True):
            if getattr(self.request, name) not in (None, side):
                raise UsageError(f"`{name}` {getattr(self.request, name)}: the latents given are of {side} pixels")
        return latents

    @property
    def images(self) -> int:
        """How many."""
        prompts = len(self.given_embeddings.prompt_embeds) if self.given_embeddings else len(self.request.prompt)
        return prompts * self.request.num_images_per_prompt

    # ---- The plan

    @property
    def dtypes(self) -> dict[str, str]:
        """By stage. A T5 overflows in float16."""
        dtype = self.request.dtype
        text = "float32" if dtype == "float16" else dtype
        # Of a convolution in half precision, a CPU makes copies: it takes more memory, and far more time.
        vae = "float32" if self.how.float32_vae or self.request.device == "cpu" else dtype
        return {"text": text, "transformer": dtype, "vae": vae}

    @cached_property
    def plan(self) -> MemoryPlan:
        """How each stage is run."""
        request, findings = self.request, self.model.findings
        asked = plan.Request(
            height=self.size.height,
            width=self.size.width,
            images=self.images,
            guided=self.guided,
            tokens=self.model.spec.tokens(findings),
            text_dtype=self.dtypes["text"],
            dtype=self.dtypes["transformer"],
            vae_dtype=self.dtypes["vae"],
            device=request.device,
        )
        sizes = plan.sizes_of(self.model.checkpoint, self.folders.get(VAE), self.folders.get(TEXT_ENCODER))
        budget = plan.as_bytes(request.memory_budget) if request.memory_budget else None
        return plan.plan(sizes, asked, budget, quantize=request.quantize)

    def way(self, stage: str) -> str:
        return next(planned.how for planned in self.plan.stages if planned.name == stage)
