"""What `pixart parity --images` adds to a comparison: both nets, and all that stands beside them, to the picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.folder import read_config
from ..conversion.options import stated, with_shortcuts
from ..conversion.pairs import Pair
from ..errors import ConverterError, UsageError, require
from ..nets.pipeline_spec import DIFFUSERS, ORIGINAL
from ..parity.checker import verdict_of
from ..parity.choices import CheckOptions
from ..parity.determinism import deterministic
from ..parity.diagnosis import describe
from ..parity.net_pair import NetPair, is_resource_error
from ..parity.opening import open_sides
from ..pipelines.components import VAE
from ..pipelines.decode import Pictures, save_png
from ..pipelines.denoise import make_scheduler
from ..pipelines.embeddings import Embeddings
from ..pipelines.image_parity import IMAGES, Chain, image_parity
from ..pipelines.model import open_picture_model
from ..reports.report import FAIL, INCONCLUSIVE, NOT_RUN, Phase, Report
from .drawing import Drawing
from .picture_request import ImageRequest, PictureRequest
from .stages import decoding_of, embeddings_of, guidance_of, starting_noise

PROMPT = "a small cactus with a happy face in the desert"
STEPS = 6  # at most: a few tell, and each is run about ten times


class ImageComparison:
    """Both nets of a pair, and all else that their pictures are drawn with, checked before anything is loaded.

    Args:
        stack: closes the files.

    Raises: `UsageError` and `InputError`, whatever stands against a comparison or a picture.
    """

    def __init__(self, stack: ExitStack, pair: Pair, request: ImageRequest) -> None:
        if request.prompt and request.prompt_embeds:
            raise UsageError("give either `prompt` or `prompt_embeds`; got both")
        require("pictures", "PIL")
        self.options = with_shortcuts(CheckOptions(), dict(pair.options))
        words = stated(pair.hyper_parameters)
        paths = Path(pair.original), Path(pair.converted)
        self.sides = sides = open_sides(stack, *paths, self.options, hyper_parameters=words)
        model = stack.enter_context(open_picture_model(pair.converted, family=self.options.family))
        null = next((sides.original[key] for key in sides.plan.extras), model.null_caption)
        self.model = replace(model, findings=sides.findings, null_caption=null)
        asked: dict[str, Any] = vars(request) | {"prompt": () if request.prompt_embeds else (request.prompt or PROMPT,)}
        drawn = PictureRequest(
            pipeline=pair.converted, output="", seed=0, device=self.options.device, conventions=ORIGINAL, **asked
        )  # fmt: skip
        self.drawing = Drawing(drawn, self.model)
        self.drawing.steps = request.num_inference_steps or min(STEPS, self.drawing.sampler.steps)
        make_scheduler(self.drawing.sampler, self.drawing.steps)
        size = self.drawing.size
        same: dict[str, Any] = {"height": size.height, "width": size.width, "use_resolution_binning": False}
        drawn = replace(drawn, conventions=DIFFUSERS, **same)
        self.stock = None if request.prompt_embeds else Drawing(drawn, self.model)

    def add_to(self, report: Report, progress: Any = None, files: Sequence[Path] = ()) -> Pictures | None:
        """Add the phase to a report, and to its verdict; write the pictures to these files.

        Returns: the pictures side by side, if they were drawn.
        """
        started, function = time.monotonic(), report.phase("function")
        phase, pictures = Phase(IMAGES, NOT_RUN, function.words if function else "the nets were not run"), None
        if function and function.verdict != NOT_RUN:
            try:
                with deterministic(self.options.device, self.options.threads), self.sides.family.own_code("parity"):
                    phase, pictures = self._run(progress)
            except Exception as error:
                room = is_resource_error(error)
                if not room and (function.verdict != FAIL or isinstance(error, ConverterError)):
                    raise  # it says nothing of the converted net
                why = "this machine cannot run the chain" if room else "the converted net does not run"
                phase = Phase(IMAGES, INCONCLUSIVE if room else FAIL, f"{why}: {describe(error)}")
        report.phases.append(phase)
        report.verdict, report.reason = verdict_of(report.phases)
        report.run["seconds"] = round(report.run.get("seconds", 0) + time.monotonic() - started, 2)
        if pictures is not None:
            for path in files:
                save_png(pictures, path, {}, overwrite=True)
        return pictures

    def _run(self, progress: Any) -> tuple[Phase, Pictures | None]:
        drawing, spec, findings = self.drawing, self.model.spec, self.model.findings
        ours, theirs = self._embeddings()
        how, size = spec.conventions(findings, DIFFUSERS), drawing.size
        vae = drawing.folders[VAE]
        factor = read_config(vae).get("scaling_factor", spec.scaling_factor(findings))
        decoding = replace(decoding_of(drawing), scaling_factor=drawing.how.scaling_factor or factor)
        chain = Chain(
            sampler=drawing.sampler,
            guidance=guidance_of(drawing, ours),
            start=lambda: starting_noise(drawing),
            steps=drawing.steps,
            vae=vae,
            decoding=decoding,
            advance=progress(drawing.steps * 8) if progress else lambda count: None,
        )
        conditions = spec.conditions(findings, size.height, size.width, size.height / size.width)
        stock = replace(
            chain,
            sampler=spec.sampler(findings, how, drawing.sampler_name),
            guidance=replace(guidance_of(drawing, theirs), conditions=conditions),
            decoding=replace(decoding, scaling_factor=how.scaling_factor or factor, half_up=how.half_up),
        )
        nets = NetPair(self.sides, self.options.device)
        words = f"{drawing.sampler_name}, {drawing.steps} steps, guidance {drawing.scale:g}"
        phase, pictures = image_parity(nets.original, nets.converted, chain, stock, sampler=words)
        phase.notes += drawing.notes
        return phase, pictures

    def _embeddings(self) -> tuple[Embeddings, Embeddings]:
        """Those that the training code draws from, and diffusers' pipelines."""
        drawing, given = self.drawing, self.drawing.given_embeddings
        if self.stock:
            theirs = embeddings_of(self.stock, lambda what: None)
            given = theirs if self.stock.prompts[0] == drawing.prompts[0] else None
        else:
            assert given
            own = torch.zeros_like(given.prompt_attention_mask)
            own[:, 0] = 1  # of an empty prompt there is only the end
            theirs = replace(given, negative_prompt_attention_mask=own)
        stored = drawing.how.stored_null and self.model.null_caption is not None
        if given:
            null = None if stored else given.negative_prompt_embeds
            drawing.given_embeddings = replace(given, negative_prompt_embeds=null, negative_prompt_attention_mask=None)
        ours = embeddings_of(drawing, lambda what: None)
        if drawing.guided and theirs.negative_prompt_embeds is None:
            theirs = replace(theirs, negative_prompt_embeds=ours.negative_prompt_embeds)
            drawing.notes.append("without a text encoder, what an encoded empty prompt changes was not measured")
        return ours, theirs
