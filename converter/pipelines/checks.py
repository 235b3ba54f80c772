"""What stands against a component of a pipeline: by its config and its files, before any of it is loaded."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import open_checkpoint
from ..checkpoint.file import reading
from ..errors import InputError, printable
from ..families.travelling import CLASS, shipped_class
from ..nets.pipeline_spec import ORIGINAL
from .components import PARTS, TOKENIZER_MODELS, WO, Component
from .model import PictureModel

# What `AutoencoderKL` takes where its config does not say.
_VAE_DEFAULTS = {"latent_channels": 4, "scaling_factor": 0.18215, "block_out_channels": [64]}
# Of a scheduler, what the net was trained with: another value asks it for something else, whatever the steps.
_TRAINED = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
            "rescale_betas_zero_snr", "clip_sample", "thresholding", "original_inference_steps",
            "timestep_scaling"}  # fmt: skip
_SMALLEST = 1000  # bytes of a tokenizer's model: a pointer, as git has it for large files, is smaller


@dataclass(frozen=True)
class Problem:
    """What is wrong with a part of a pipeline, or only to be known of it."""

    words: str  # what was found, and what is needed
    evidence: str  # the file, and the field in it
    remedy: str = ""  # the command that mends it; '': another component
    fault: bool = True  # False: a remark, pictures are sound all the same


def component_problems(component: Component, model: PictureModel) -> Iterator[Problem]:
    """What stands against a component, with this transformer; without a remedy, what mends it is another component.

    Raises: `InputError` for files that are missing or malformed.

    Example:
        >>> from converter.pipelines.components import find_component
        >>> from converter.pipelines.model import open_picture_model
        >>> vae = find_component("fixtures/pipeline/vae", "vae")
        >>> with open_picture_model("fixtures/pipeline/alpha-ms.pth", {"num_attention_heads": 4}) as model:
        ...     [problem.words for problem in component_problems(vae, model)]
        ['scaling_factor is 0.13025, and 0.18215 is needed: it is the VAE of another model']
    """
    checks = dict(zip(PARTS, (_vae, _text_encoder, _tokenizer, _scheduler), strict=True))
    return checks[component.part](component, model)


def fitting(component: Component, model: PictureModel) -> list[str]:
    """Remarks on a component that fits this transformer. Raises: `InputError` for one that does not."""
    problems = [*component_problems(component, model)]
    for problem in (problem for problem in problems if problem.fault):
        another = f"`{component.part}` {model.spec.released(model.findings)} is one that fits"
        remedy = f"to mend it: {problem.remedy}" if problem.remedy else another
        raise InputError.at(problem.evidence, "", f"{problem.words}; {remedy}")
    return [f"{component.part}: {problem.words}" for problem in problems]


def edited(path: Path, fields: Mapping[str, Any]) -> str:
    """The command that sets fields of a JSON file; of a link, what it leads to stays as it is."""
    content = ", ".join(
        f'"{name}": {json.dumps(v) if isinstance(v, str | list) else repr(v)}' for name, v in fields.items()
    )
    change = f"c = json.loads(p.read_text()) | {{{content}}}; p.unlink(); p.write_text(json.dumps(c, indent=2))"
    return "python -c " + shlex.quote(f"import json, pathlib; p = pathlib.Path({json.dumps(str(path))}); {change}")


def drawn(folder: Path, sampler: str = "") -> str:
    """The command that draws with a pipeline."""
    chosen = f" --sampler {sampler}" if sampler else ""
    return f"pixart generate --pipeline {shlex.quote(str(folder))}{chosen} --prompt 'a cat'"


def module_problems(reference: str, folder: Path) -> Iterator[Problem]:
    """What is wrong with the copy of a class's module, "package.module:Class", in the folder that it travels in."""
    kind = shipped_class(reference)
    with reading(folder):
        state = kind.difference(folder)
    if state and kind.module:
        copy = folder / kind.module.name
        remedy = f"cp {shlex.quote(str(kind.module))} {shlex.quote(str(copy))}"
        words = f"{copy.name} is {state}: {kind.name} is not as this version has it"
        yield Problem(words, str(copy), remedy, fault=state == "missing")


def _unlike(name: str, value: object, needed: object) -> str:
    return f"{name} is {printable(value)}, and {needed} is needed"


def _vae(component: Component, model: PictureModel) -> Iterator[Problem]:
    path, config, kind = component.config_file, component.config, component.entry[1]
    if kind != "AutoencoderKL":
        yield Problem(_unlike(CLASS, kind, "AutoencoderKL"), f"{path}: {CLASS}")
        return
    values = _VAE_DEFAULTS | dict(config)
    blocks = values["block_out_channels"]
    values["block_out_channels"] = 2 ** (len(blocks) - 1) if isinstance(blocks, list) else blocks
    for name, needed, why in (
        ("latent_channels", model.findings.value("in_channels"), "the transformer's in_channels"),
        ("scaling_factor", model.spec.scaling_factor(model.findings), "it is the VAE of another model"),
        ("block_out_channels", model.spec.vae_factor, "pixels per latent, by the number of blocks"),
    ):
        if values[name] != needed:
            remedy = "" if name in config else edited(path, {name: needed})
            why = why if name in config else "not written, it is what diffusers takes"
            yield Problem(f"{_unlike(name, values[name], needed)}: {why}", f"{path}: {name}", remedy)
    open_checkpoint(component.folder).close()


def _text_encoder(component: Component, model: PictureModel) -> Iterator[Problem]:
    path, config = component.config_file, component.config
    if config.get("d_model") != (width := model.findings.value("caption_channels")):
        words = f"{_unlike('d_model', config.get('d_model'), width)}: the transformer's caption_channels"
        yield Problem(words, f"{path}: d_model")
    with open_checkpoint(component.folder) as checkpoint:
        half = {key: t.storage.file.path for key, t in checkpoint.items() if t.dtype.name == "float16"}
    if wo := [key for key in half if WO in key.split(".")]:
        words = f"{len(wo)} weights wo are float16, in which a T5 overflows: float32 or bfloat16 is needed"
        yield Problem(words, f"{half[wo[0]]}: {wo[0]}")
    elif half or "float16" in (config.get("dtype"), config.get("torch_dtype")):
        words = "float16: with wo in float32, as transformers has it, it does not overflow; bfloat16 is safer"
        yield Problem(words, f"{path}: dtype", fault=False)


def _tokenizer(component: Component, model: PictureModel) -> Iterator[Problem]:
    path, tokens = component.config_file, model.spec.tokens(model.findings)
    there = [path.with_name(name) for name in TOKENIZER_MODELS if name in component.files]
    if not there:
        words = f"{' or '.join(TOKENIZER_MODELS)} is missing: without it no word is known"
        yield Problem(words, str(path.with_name(TOKENIZER_MODELS[0])))
    for file in there:
        if (size := file.stat().st_size) < _SMALLEST:
            yield Problem(f"{size} bytes, which are no tokenizer (a pointer of git to a large file?)", str(file))
    longest = component.config.get("model_max_length", tokens)
    if not isinstance(longest, int | float) or longest < tokens:
        words = f"{_unlike('model_max_length', longest, tokens)}, or longer prompts are cut where nobody says otherwise"
        remedy = edited(path, {"model_max_length": max(tokens, 512)})
        yield Problem(words, f"{path}: model_max_length", remedy, fault=False)


def _scheduler(component: Component, model: PictureModel) -> Iterator[Problem]:
    path, config, kind = component.config_file, component.config, component.entry[1]
    closest = model.closest_sampler(config)
    if closest is None:
        raise InputError.at(path, CLASS, f"{printable(kind)}: not of a sampler of this model")
    name, how, sampler, differing = closest
    own = shipped_class(sampler.scheduler).name
    if kind == own:
        yield from module_problems(sampler.scheduler, path.parent)
    # Where noise is left at the end, the order of the last step counts; a class that travels decides it itself.
    ends = {"euler_at_final"} if kind != own and config.get("final_sigmas_type") == "sigma_min" else set()
    for fault in (True, False):
        if fields := {field: pair for field, pair in differing.items() if (field in _TRAINED | ends) == fault}:
            words = ", ".join(_unlike(field, *pair) for field, pair in fields.items())
            remedy = edited(path, {field: needed for field, (_, needed) in fields.items()})
            yield Problem(words, f"{path}: {', '.join(fields)}", remedy, fault)
    if model.conventions == ORIGINAL and (kind != own or how.name != ORIGINAL):
        words = f"{kind}: {sampler.stock_note if how.name == ORIGINAL else sampler.words}"
        yield Problem(words, f"{path}: {CLASS}", drawn(component.folder.parent, name), fault=False)
