"""Whole pipelines: what stands beside a converted transformer so that diffusers' `DiffusionPipeline` loads it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.file import reading
from ..conversion.additions import Additions
from ..conversion.analysis import Analysis
from ..conversion.sidecar import Sidecar
from ..errors import UsageError, human_bytes, plural, printable
from ..families.travelling import CLASS, Entry, class_in, shipped_class
from ..nets.pipeline_spec import ORIGINAL
from .checks import fitting
from .components import CONFIGS, PARTS, SCHEDULER, Component, find_component
from .model import MODEL_INDEX, PictureModel

LINK, COPY = WAYS = ("link", "copy")
AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Part:
    """A component that was chosen, and fits the model.

    Attributes:
        name: one of `PARTS`.
        reference: its class, "package.module:Class".
        component: where it lies; None for a sampler by its name, whose config is `config`.
        words: of such a sampler, what it is. notes: what the user should know.
    """

    name: str
    reference: str
    component: Component | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Components:
    """What makes a pipeline of a transformer: the argument `components` of `convert`.

    Attributes:
        vae, text_encoder, tokenizer: each a folder with the component, a pipeline's folder, or one of these on the hub:
            OWNER/NAME or hf://OWNER/NAME/FOLDER. Without the last two, the pipeline draws from embeddings.
        scheduler: likewise, or the name of a sampler of the model's family. Default: the family's usual one.
        components: "link" or "copy" their files; a link leads to the real file.

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

    def __post_init__(self) -> None:
        for name in PARTS:
            if not isinstance(source := getattr(self, name), str | os.PathLike | None):
                raise UsageError(f"`{name}`: must be a folder or a hub id, not {type(source).__name__}")
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
        model, config = PictureModel.of(analysis, sidecar), analysis.config()
        header = {"_diffusers_version": config["_diffusers_version"]}
        entries: dict[str, Entry | tuple[None, None]] = dict.fromkeys(PARTS, (None, None))
        texts, files, lines, notes = dict[str, str](), dict[str, Path](), list[str](), list[str]()
        for part in self.chosen(model, quiet):
            name, component, words = part.name, part.component, part.words
            kind = shipped_class(part.reference)
            entry, notes = kind.entry, [*notes, *part.notes]
            if component:
                entry, place, count = component.entry, printable(component.folder), len(component.files)
                for path in component.files.values():
                    if target in path.parents:
                        raise UsageError(f"`{name}` {printable(path)}: lies in the target, and would be replaced")
                if name == SCHEDULER and entry[0] != "diffusers":
                    notes.append(f"the scheduler is code of {place}, which trust_remote_code=True lets diffusers run")
                files |= {f"{name}/{file}": path for file, path in component.files.items()}
                with reading(component.folder):
                    size = human_bytes(sum(map(os.path.getsize, component.files.values())))
                way = "linked" if self.linked else "copied"
                words = f"{entry[1]}, {plural(count, 'file')} ({size}) of {place}, {way}"
            else:
                texts[f"{name}/{CONFIGS[name]}"] = _text(header | {CLASS: kind.name} | dict(part.config))
                texts |= {f"{name}/{file}": text for file, text in kind.text.items()}
            entries[name] = entry
            lines.append(f"{name}: {words}")
        family = analysis.require()
        for folder, fields in family.by_folder(config).items():
            entries[folder] = class_in(family.classes, fields).entry
        pipeline = shipped_class(model.spec.pipeline(model.findings))
        texts |= pipeline.text
        texts[MODEL_INDEX] = _text(header | {CLASS: pipeline.pipeline_name} | entries)
        notes += self.usage_notes(model)
        libraries = {pipeline.library, *(library for library, _ in entries.values())}
        travels = libraries - {"diffusers", "transformers", None}
        how = ", trust_remote_code=True" if travels else ""
        load = f'load: DiffusionPipeline.from_pretrained("{printable(target)}"{how})'
        return Additions(texts, files, self.linked, (f"pipeline: {pipeline.name}", *lines, load), (*notes,))

    def chosen(self, model: PictureModel, quiet: bool = True) -> Iterator[Part]:
        """Each component, found and checked, and not loaded; one that is left out is not among them.

        Raises: `InputError` for one that is not there, or does not fit the model.
        """
        samplers = model.spec.samplers
        for name in PARTS:
            source = getattr(self, name)
            if name == SCHEDULER and (source is None or os.fspath(source) in samplers):
                yield _sampler(model, os.fspath(source or samplers[0]))
            elif source is not None:
                if not os.fspath(source):
                    raise UsageError(f"`{name}` is empty: give a folder, or leave it out")
                if name == SCHEDULER and not os.path.dirname(source) and not os.path.lexists(source):
                    raise UsageError(f"`scheduler` {printable(source)}: one of {', '.join(samplers)}, or a folder")
                component = find_component(source, name, quiet=quiet)
                notes = fitting(component, model)
                yield Part(name, _class_of(component, model), component, notes=(*notes,))

    def usage_notes(self, model: PictureModel) -> list[str]:
        """How the pipeline has to be called, where that is not as usual."""
        if self.text_encoder is not None:
            return []
        return [
            "without a text encoder the pipeline draws from embeddings: call it with prompt=None, "
            "negative_prompt=None, prompt_embeds, prompt_attention_mask, negative_prompt_embeds and "
            f"negative_prompt_attention_mask, each of {model.spec.tokens(model.findings)} tokens"
        ]


def _sampler(model: PictureModel, name: str) -> Part:
    """The scheduler of a sampler, as the training code has it."""
    spec, findings = model.spec, model.findings
    sampler = spec.sampler(findings, spec.conventions(findings, ORIGINAL), name)
    reference = f"diffusers:{sampler.stock}" if findings.stock else sampler.scheduler
    kind = shipped_class(reference)
    notes = () if kind.module else (f"the scheduler is diffusers' {kind.name}: {sampler.stock_note}",)
    steps = plural(sampler.steps, "step")
    words = f"{kind.name} for {name}, usually {steps}, guidance_scale {sampler.guidance_scale:g}"
    return Part(SCHEDULER, reference, config=sampler.config, words=words, notes=notes)


def _class_of(component: Component, model: PictureModel) -> str:
    """The class of a component: of a scheduler with code beside it, this package's own."""
    library, kind = component.entry
    if component.part == SCHEDULER and library != "diffusers" and (closest := model.closest_sampler(component.config)):
        return closest[2].scheduler
    return f"{library}:{kind}"


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True) + "\n"
