"""`load_pipeline`: a checkpoint and components as a pipeline of diffusers in memory."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from ..errors import InputError, printable, require
from ..families.travelling import imported_class
from ..pipelines.assemble import Components, Part
from ..pipelines.components import PARTS, TEXT_ENCODER, VAE
from ..pipelines.model import PictureModel
from .load import open_to_load

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
AnyPath = str | os.PathLike[str]


def load_pipeline(
    source: AnyPath,
    *,
    vae: AnyPath,
    text_encoder: AnyPath | None = None,
    tokenizer: AnyPath | None = None,
    scheduler: AnyPath | None = None,
    torch_dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    **choices: Any,
) -> Any:
    """A pipeline that draws with the model of a checkpoint; nothing is written.

    It is what `DiffusionPipeline.from_pretrained` gives of a conversion with `Components`: every component is found and
    held against the model before any is loaded, and its own library loads it. No code beside a component is run.

    Args:
        source: as of `load`.
        vae, text_encoder, tokenizer, scheduler: as of `converter.pipelines.assemble.Components`: folders, pipelines or
            hub ids; a scheduler may also be the name of a sampler. Without a text encoder, prompts are embeddings.
        torch_dtype, device: of all that has weights.
        choices: all other arguments of `load`, such as `weights`, `hyper_parameters` and `disable_mmap`.

    Raises: `InputError` for a file or a component that is refused, `UsageError` for a call that is.

    Example:
        >>> heads = {"num_attention_heads": 4}
        >>> vae = "fixtures/pipeline/vae"
        >>> pipeline = load_pipeline("fixtures/pipeline/sigma-ms.pth", vae=vae, hyper_parameters=heads)
        >>> type(pipeline).__name__, type(pipeline.scheduler).__name__
        ('PixArtSigmaPipeline', 'PixArtDPMSolverScheduler')
    """
    beside = Components(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler)
    if text_encoder is not None:
        require("a pipeline with a text encoder", "transformers")
    with open_to_load(source, torch_dtype, **choices) as plan:
        model = PictureModel.of(plan.analysis, plan.sidecar)
        chosen = list(beside.chosen(model))
        for note in [*(note for part in chosen for note in part.notes), *beside.usage_notes(model)]:
            logger.warning("%s: %s", printable(source), note)
        models = plan.models(device)
        parts = dict.fromkeys(PARTS) | {part.name: _loaded(part, plan.dtype.name) for part in chosen}
        kind = imported_class(model.spec.pipeline(model.findings))
        pipeline = kind(**parts, **models)
    return pipeline if device is None else pipeline.to(device)


def _loaded(part: Part, dtype: str) -> Any:
    kind = imported_class(part.reference)
    if part.component is None:
        return kind.from_config(dict(part.config))
    import torch

    words = {VAE: "torch_dtype", TEXT_ENCODER: "dtype"}.get(part.name)  # as diffusers and transformers call it
    try:
        return kind.from_pretrained(
            part.component.folder, local_files_only=True, **({words: getattr(torch, dtype)} if words else {})
        )
    except Exception as error:  # of any kind, as what the files hold
        reason = printable(f"{type(error).__name__}: {error}", 1000)
        raise InputError.at(part.component.folder, "", f"{kind.__name__} cannot load it: {reason}") from error
