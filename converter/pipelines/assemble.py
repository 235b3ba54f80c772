"""Whole pipelines: what stands beside a converted transformer so that diffusers' `DiffusionPipeline` loads it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..conversion.additions import Additions
from ..conversion.analysis import Analysis
from ..conversion.sidecar import Sidecar
from ..errors import InputError, UsageError, human_bytes, printable
from ..nets.pipeline_spec import ORIGINAL
from .checks import component_problems, fetched
from .components import PARTS, SCHEDULER, SCHEDULER_CONFIG, Component, Entry, find_component, shipped_class
from .model import PictureModel

LINK, COPY = WAYS = ("link", "copy")
INDEX = "model_index.json"
EMBEDDINGS = "prompt_embeds, prompt_attention_mask, negative_prompt_embeds and negative_prompt_attention_mask"
AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Components:
    """What makes a pipeline of a transformer: the argument `components` of `convert`.

    Attributes:
        vae, text_encoder, tokenizer: each a folder with the component, a pipeline's folder, or one of these on the hub:
            OWNER/NAME or hf://OWNER/NAME/FOLDER. Without the last two, the pipeline draws from embeddings.
        scheduler: likewise, or the name of a sampler of the model's family. Default: the family's usual one.
        components: "link" or "copy" their files; a link leads to the real file.
        stock: diffusers' own scheduler class, where one of this package would travel with the weights.

    Raises: `UsageError` for what does not go together.

    Example:
        >>> import converter
        >>> beside = Components(vae="fixtures/pipeline/vae")
        >>> heads = {"num_attention_heads": 4}
        >>> done = converter.convert(
        ...     "fixtures/pipeline/sigma-ms.pth", tmp / "out", hyper_parameters=heads, components=beside
        ... )
        >>> done.added[0]
        'pipeline: PixArtSigmaPipeline'
        >>> json.loads((tmp / "out" / "model_index.json").read_text())["scheduler"]
        ['pixart_schedulers', 'PixArtDPMSolverScheduler']
    """

    vae: AnyPath | None = None
    text_encoder: AnyPath | None = None
    tokenizer: AnyPath | None = None
    scheduler: AnyPath | None = None
    components: str = LINK
    stock: bool = False

    def __post_init__(self) -> None:
        if self.vae is None:
            raise UsageError("`vae` is needed for a whole pipeline, which cannot be loaded without")
        if (self.text_encoder is None) != (self.tokenizer is None):
            given, other = ("text_encoder", "tokenizer") if self.tokenizer is None else ("tokenizer", "text_encoder")
            raise UsageError(f"`{given}` requires `{other}`: a pipeline has both or neither")
        if self.components not in WAYS:
            raise UsageError(f"`components` {printable(self.components)}: one of {', '.join(WAYS)}")

    @property
    def linked(self) -> bool:
        return self.components == LINK

    def __call__(self, analysis: Analysis, sidecar: Sidecar, target: Path, quiet: bool = True) -> Additions:
        """What stands beside a transformer in `target`, all of it found and checked, none of it loaded.

        Raises: `InputError` for a component that is not there, or does not fit the model; `UsageError` for one that
        would be replaced.
        """
        model = PictureModel.of(analysis, sidecar)
        spec, findings, config = model.spec, model.findings, analysis.config()
        parts = {part: find_component(source, part, quiet=quiet) for part, source in self._sources(spec.samplers)}
        notes = [note for component in parts.values() for note in self._remarks(component, model, target)]
        entries: dict[str, Entry | tuple[None, None]] = {part: (None, None) for part in PARTS}
        entries |= {part: component.entry for part, component in parts.items()}
        texts, about = dict[str, str](), {part: self._words(component) for part, component in parts.items()}
        if SCHEDULER not in parts:
            name = os.fspath(self.scheduler or spec.samplers[0])
            sampler = spec.sampler(findings, spec.conventions(findings, ORIGINAL), name)
            texts, entry = shipped_class(f"diffusers:{sampler.stock}" if self.stock else sampler.scheduler, SCHEDULER)
            if not texts:
                notes.append(f"the scheduler is diffusers' {entry[1]}: {sampler.stock_note}")
            texts[f"{SCHEDULER}/{SCHEDULER_CONFIG}"] = _text(config, entry[1], sampler.config)
            usual = f"{sampler.steps} step{'s' if sampler.steps > 1 else ''}, guidance_scale {sampler.guidance_scale:g}"
            entries[SCHEDULER], about[SCHEDULER] = entry, f"{entry[1]} for {name}, usually {usual}"
        elif entries[SCHEDULER][0] != "diffusers":
            place = printable(parts[SCHEDULER].folder)
            notes.append(f"the scheduler is code of {place}, which trust_remote_code=True lets diffusers run")
        if self.text_encoder is None:
            notes.append(
                f"without a text encoder the pipeline draws from embeddings: call it with prompt=None, "
                f"negative_prompt=None, {EMBEDDINGS}, each of {spec.tokens(findings)} tokens"
            )
        entries[analysis.require().subfolder] = ("diffusers", config["_class_name"])
        kind = spec.pipeline(findings)
        texts[INDEX] = _text(config, kind, entries)
        travels = any(library not in ("diffusers", "transformers", None) for library, _ in entries.values())
        how = ", trust_remote_code=True" if travels else ""
        lines = [f"{part}: {about[part]}" for part in PARTS if part in about]
        load = f'load: DiffusionPipeline.from_pretrained("{printable(target)}"{how})'
        files = {f"{part}/{name}": path for part in parts for name, path in parts[part].files.items()}
        return Additions(texts, files, self.linked, (f"pipeline: {kind}", *lines, load), (*notes,))

    def _sources(self, samplers: tuple[str, ...]) -> Iterator[tuple[str, AnyPath]]:
        """The components that are to be found, with the place of each."""
        for part in PARTS:
            source = getattr(self, part)
            if source is None or (part == SCHEDULER and os.fspath(source) in samplers):
                continue
            if not os.fspath(source):
                raise UsageError(f"`{part}` is empty: give a folder, or leave it out")
            if part == SCHEDULER and self.stock:
                raise UsageError(f"`stock` applies to the samplers {', '.join(samplers)}, not to a `scheduler` folder")
            if part == SCHEDULER and os.sep not in os.fspath(source) and not os.path.lexists(source):
                raise UsageError(f"`scheduler` {printable(source)}: one of {', '.join(samplers)}, or a folder")
            yield part, source

    def _remarks(self, component: Component, model: PictureModel, target: Path) -> Iterator[str]:
        """What is to be known of a component that may stand in `target`. Raises: what stands against that."""
        for path in component.files.values():
            if target in path.parents:
                raise UsageError(f"`{component.part}` {printable(path)}: lies in the target, and would be replaced")
        for problem in component_problems(component.part, component.folder, model):
            if problem.fault:
                rule, place, remedy = problem.words, printable(component.folder), f"to mend it: {problem.remedy}"
                if problem.remedy == fetched(component.part, component.folder, model):  # here it is only named
                    remedy = f"`{component.part}` {model.spec.released(model.findings)} is one that fits"
                raise InputError(f"{rule if rule.startswith(place) else f'{place}: {rule}'}; {remedy}")
            yield f"{problem.part}: {problem.words}"

    def _words(self, component: Component) -> str:
        count, way = len(component.files), "linked" if self.linked else "copied"
        files = f"{count} file{'s' if count > 1 else ''} ({human_bytes(component.size)}) of "
        return f"{component.entry[1]}, {files}{printable(component.folder)}, {way}"


def _text(model_config: Mapping[str, Any], kind: str, content: Mapping[str, Any]) -> str:
    """A config of diffusers, of this class."""
    header = {"_class_name": kind, "_diffusers_version": model_config["_diffusers_version"]}
    return json.dumps(header | dict(content), indent=2, sort_keys=True) + "\n"
