"""Whole pipelines: what stands beside a converted transformer so that diffusers' `DiffusionPipeline` loads it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.file import reading
from ..conversion.additions import Additions
from ..conversion.analysis import Analysis
from ..conversion.sidecar import Sidecar
from ..errors import UsageError, human_bytes, printable
from ..nets.pipeline_spec import ORIGINAL
from .checks import fitting
from .components import CONFIGS, PARTS, SCHEDULER, Component, Entry, find_component, shipped_class
from .model import MODEL_INDEX, PictureModel

LINK, COPY = WAYS = ("link", "copy")
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
        header = {"_diffusers_version": config["_diffusers_version"]}
        entries: dict[str, Entry | tuple[None, None]] = dict.fromkeys(PARTS, (None, None))
        texts, files, lines, notes = dict[str, str](), dict[str, Path](), list[str](), list[str]()
        for part in PARTS:
            source = getattr(self, part)
            if part == SCHEDULER and (source is None or os.fspath(source) in spec.samplers):
                name = os.fspath(source or spec.samplers[0])
                sampler = spec.sampler(findings, spec.conventions(findings, ORIGINAL), name)
                entry, module = shipped_class(f"diffusers:{sampler.stock}" if self.stock else sampler.scheduler)
                if module:
                    texts[f"{part}/{module.name}"] = module.read_bytes().decode()
                else:
                    notes.append(f"the scheduler is diffusers' {entry[1]}: {sampler.stock_note}")
                texts[f"{part}/{CONFIGS[part]}"] = _text(header | {"_class_name": entry[1]} | dict(sampler.config))
                steps = f"{sampler.steps} step{'s' if sampler.steps > 1 else ''}"
                words = f"{entry[1]} for {name}, usually {steps}, guidance_scale {sampler.guidance_scale:g}"
            elif source is not None:
                component = self._component(part, source, spec.samplers, quiet)
                for path in component.files.values():
                    if target in path.parents:
                        raise UsageError(f"`{part}` {printable(path)}: lies in the target, and would be replaced")
                notes += fitting(component, model)
                entry, place, count = component.entry, printable(component.folder), len(component.files)
                if part == SCHEDULER and entry[0] != "diffusers":
                    notes.append(f"the scheduler is code of {place}, which trust_remote_code=True lets diffusers run")
                files |= {f"{part}/{name}": path for name, path in component.files.items()}
                with reading(component.folder):
                    size = human_bytes(sum(map(os.path.getsize, component.files.values())))
                way = "linked" if self.linked else "copied"
                words = f"{entry[1]}, {count} file{'s' if count > 1 else ''} ({size}) of {place}, {way}"
            else:
                continue
            entries[part] = entry
            lines.append(f"{part}: {words}")
        entries[analysis.require().subfolder] = ("diffusers", config["_class_name"])
        kind = spec.pipeline(findings)
        texts[MODEL_INDEX] = _text(header | {"_class_name": kind} | entries)
        if self.text_encoder is None:
            notes.append(
                "without a text encoder the pipeline draws from embeddings: call it with prompt=None, "
                "negative_prompt=None, prompt_embeds, prompt_attention_mask, negative_prompt_embeds and "
                f"negative_prompt_attention_mask, each of {spec.tokens(findings)} tokens"
            )
        travels = any(library not in ("diffusers", "transformers", None) for library, _ in entries.values())
        how = ", trust_remote_code=True" if travels else ""
        load = f'load: DiffusionPipeline.from_pretrained("{printable(target)}"{how})'
        return Additions(texts, files, self.linked, (f"pipeline: {kind}", *lines, load), (*notes,))

    def _component(self, part: str, source: AnyPath, samplers: tuple[str, ...], quiet: bool) -> Component:
        if not os.fspath(source):
            raise UsageError(f"`{part}` is empty: give a folder, or leave it out")
        if part == SCHEDULER and self.stock:
            raise UsageError(f"`stock` applies to the samplers {', '.join(samplers)}, not to a `scheduler` folder")
        if part == SCHEDULER and os.sep not in os.fspath(source) and not os.path.lexists(source):
            raise UsageError(f"`scheduler` {printable(source)}: one of {', '.join(samplers)}, or a folder")
        return find_component(source, part, quiet=quiet)


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True) + "\n"
