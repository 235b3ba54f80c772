"""Drawing a picture: text encoder, transformer and VAE one after the other, each in memory only while it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConverterError, as_flags, human_bytes
from ..nets.device import checked_device
from ..parity.diagnosis import describe
from ..parity.net_pair import is_resource_error
from ..pipelines.memory import peak, release
from ..pipelines.model import open_picture_model
from .drawing import Drawing
from .picture_request import LATENT, PictureRequest, Progress
from .stages import draw_latents, embeddings_of, parameters, save_latents, save_pictures


@dataclass(frozen=True)
class Pictures:
    """What was drawn: the files, and the peak of memory by stage in bytes, of the process or the GPU."""

    files: list[Path]
    parameters: dict[str, Any]
    peaks: dict[str, int]


def draw(
    request: PictureRequest,
    *,
    say: Callable[[str], object] = lambda line: None,
    progress: Progress = lambda what: None,
) -> Pictures:
    """Draw what is asked for. Everything is checked before anything is loaded.

    Args:
        say: is called with each line about the plan, and about what the pictures take.

    Raises: `UsageError`, `InputError`; `ConverterError` where memory or disk do not suffice.
    """
    request.validate()
    checked_device(request.device, request.dtype)
    with open_picture_model(request.reference or request.pipeline, **request.model) as model:
        drawing = Drawing(request, model)
        request.check_targets(drawing.images)
        plan = (as_flags(line) for line in drawing.plan.lines())
        for line in (*(f"note: {as_flags(note)}" for note in drawing.notes), f"seed: {drawing.seed}", *plan):
            say(line)
        peaks: dict[str, int] = {}

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            try:
                with peak(request.device) as used:
                    yield
            except Exception as error:
                if not is_resource_error(error):
                    raise
                remedy = "a smaller `memory_budget` runs it in parts"
                raise ConverterError(
                    f"the memory does not suffice for the {name}: {describe(error)}; {remedy}"
                ) from error
            release()
            peaks[name] = used.gpu_bytes or used.rss_bytes
            say(f"peak memory: {name} {human_bytes(peaks[name])}")

        with stage("text encoder"):
            embeddings = embeddings_of(drawing, progress)
        with stage("transformer"):
            latents = draw_latents(drawing, embeddings, progress)
        if request.output_type == LATENT:
            return Pictures([save_latents(drawing, latents)], parameters(drawing), peaks)
        with stage("VAE"):
            files = save_pictures(drawing, latents, progress)
    return Pictures(files, parameters(drawing), peaks)
