"""What stands against a component of a pipeline: by its config and its files, before any of it is loaded."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from ..checkpoint import open_checkpoint
from ..checkpoint.file import reading
from ..checkpoint.folder import CONFIG, read_config
from ..checkpoint.json_file import read_json
from ..errors import InputError, printable
from ..nets.pipeline_spec import CONVENTIONS, ORIGINAL
from .components import (
    PARTS,
    SCHEDULER,
    SCHEDULER_CONFIG,
    TOKENIZER_CONFIG,
    TOKENIZER_MODELS,
    Component,
    find_component,
    shipped_class,
)
from .model import PictureModel

# What `AutoencoderKL` takes where its config does not say.
_VAE_DEFAULTS = {"latent_channels": 4, "scaling_factor": 0.18215, "block_out_channels": [64]}
# Of a scheduler, what the net was trained with: another value asks it for something else, whatever the steps.
_TRAINED = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
            "rescale_betas_zero_snr", "clip_sample", "thresholding", "original_inference_steps",
            "timestep_scaling"}  # fmt: skip
_SMALLEST = 1000  # bytes of a tokenizer: a pointer, as git has it for large files, is smaller
_Row = tuple[
    str, str, str, bool
]  # words, the file and field, the remedy ('': another component), whether it is a fault


@dataclass(frozen=True)
class Problem:
    """What is wrong with a part of a pipeline, or only to be known of it."""

    part: str  # such as "vae"
    words: str  # what was found, and what is needed
    remedy: str  # the command that mends it
    evidence: str = ""  # the file, and the field in it
    fault: bool = True  # False: a remark, pictures are sound all the same


def component_problems(part: str, folder: Path, model: PictureModel) -> Iterator[Problem]:
    """What stands against a component, with this transformer. Files that are missing or malformed are problems too.

    Args:
        part: `vae`, `text_encoder`, `tokenizer` or `scheduler`.
        folder: the component's own.

    Example:
        >>> from converter.pipelines.model import open_picture_model
        >>> with open_picture_model("fixtures/pipeline/alpha-ms.pth", {"num_attention_heads": 4}) as model:
        ...     [problem.words for problem in component_problems("vae", Path("fixtures/pipeline/vae"), model)]
        ['scaling_factor is 0.13025, and 0.18215 is needed: it is the VAE of another model']
    """
    check = dict(zip(PARTS, (_vae, _text_encoder, _tokenizer, _scheduler), strict=True))[part]
    another = fetched(part, folder, model)
    try:
        for words, field, remedy, fault in check(find_component(folder, part), model):
            yield Problem(part, words, remedy or another, f"{folder}/{field}", fault)
    except InputError as error:
        yield Problem(part, str(error), another, str(folder))


def edited(path: Path, fields: Mapping[str, Any]) -> str:
    """The command that sets fields of a JSON file; of a link, what it leads to stays as it is."""
    content = ", ".join(
        f'"{name}": {json.dumps(v) if isinstance(v, str | list) else repr(v)}' for name, v in fields.items()
    )
    change = f"c = json.loads(p.read_text()) | {{{content}}}; p.unlink(); p.write_text(json.dumps(c, indent=2))"
    return "python -c " + shlex.quote(f"import json, pathlib; p = pathlib.Path({json.dumps(str(path))}); {change}")


def fetched(part: str, folder: Path, model: PictureModel) -> str:
    """The command that fetches the component that the model was trained with."""
    repository, place = model.spec.released(model.findings), shlex.quote(str(folder.parent))
    return f"hf download {repository} --include '{part}/*' --local-dir {place}"


def _unlike(name: str, value: object, needed: object) -> str:
    return f"{name} is {printable(value)}, and {needed} is needed"


def _vae(component: Component, model: PictureModel) -> Iterator[_Row]:
    path, config = component.folder / CONFIG, read_config(component.folder)
    if component.entry[1] != "AutoencoderKL":
        yield _unlike("_class_name", component.entry[1], "AutoencoderKL"), f"{CONFIG}: _class_name", "", True
        return
    values = _VAE_DEFAULTS | config
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
            yield f"{_unlike(name, values[name], needed)}: {why}", f"{CONFIG}: {name}", remedy, True
    open_checkpoint(component.folder).close()


def _text_encoder(component: Component, model: PictureModel) -> Iterator[_Row]:
    config = read_config(component.folder)
    if config.get("d_model") != (width := model.findings.value("caption_channels")):
        words = f"{_unlike('d_model', config.get('d_model'), width)}: the transformer's caption_channels"
        yield words, f"{CONFIG}: d_model", "", True
    with open_checkpoint(component.folder) as checkpoint:
        half = {key: t.storage.file.path for key, t in checkpoint.items() if t.dtype.name == "float16"}
    if wo := [key for key in half if "wo" in key.split(".")]:
        words = f"{len(wo)} weights wo are float16, in which a T5 overflows: float32 or bfloat16 is needed"
        yield words, f"{Path(half[wo[0]]).name}: {wo[0]}", "", True
    elif half or "float16" in (config.get("dtype"), config.get("torch_dtype")):
        words = "float16: with wo in float32, as transformers has it, it does not overflow; bfloat16 is safer"
        yield words, f"{CONFIG}: dtype", "", False


def _tokenizer(component: Component, model: PictureModel) -> Iterator[_Row]:
    sizes = {name: component.files[name].stat().st_size for name in TOKENIZER_MODELS if name in component.files}
    if not sizes:
        yield f"{' or '.join(TOKENIZER_MODELS)} is missing: without it no word is known", TOKENIZER_MODELS[0], "", True
    for name in (name for name, size in sizes.items() if size < _SMALLEST):
        yield f"{sizes[name]} bytes, which are no tokenizer (a pointer of git to a large file?)", name, "", True
    path, tokens = component.folder / TOKENIZER_CONFIG, model.spec.tokens(model.findings)
    longest = read_json(path).get("model_max_length", tokens)
    if not isinstance(longest, int | float) or longest < tokens:
        words = f"{_unlike('model_max_length', longest, tokens)}, or longer prompts are cut where nobody says otherwise"
        remedy = edited(path, {"model_max_length": max(tokens, 512)})
        yield words, f"{TOKENIZER_CONFIG}: model_max_length", remedy, False


def _scheduler(component: Component, model: PictureModel) -> Iterator[_Row]:
    import diffusers

    path, kind = component.folder / SCHEDULER_CONFIG, component.entry[1]
    config = read_json(path, infinite=True)
    name = model.sampler_of(config)
    if name is None:
        raise InputError.at(path, "_class_name", f"{printable(kind)}: not of a sampler of this model")
    fits = []
    for how in CONVENTIONS:
        sampler = model.spec.sampler(model.findings, model.spec.conventions(model.findings, how), name)
        arguments = signature(getattr(diffusers, sampler.stock).__init__).parameters
        defaults = {field: argument.default for field, argument in arguments.items() if field not in ("self", "kwargs")}
        right = defaults | dict(sampler.config)
        differing = {f: (v, right[f]) for f, v in (defaults | config).items() if f in right and v != right[f]}
        fits.append((len(differing), how != model.conventions, how, sampler, differing))
    *_, how, sampler, differing = min(fits, key=lambda fit: fit[:2])
    shipped, (_, own) = shipped_class(sampler.scheduler, SCHEDULER)
    for place, text in shipped.items() if kind == own else ():
        copy, module = path.with_name(Path(place).name), sampler.scheduler.partition(":")[0]
        with reading(copy):
            state = ("" if copy.read_bytes() == text.encode() else "modified") if copy.exists() else "missing"
        if state:
            code = (
                f"import shutil; from importlib.util import find_spec; source = find_spec({json.dumps(module)}).origin"
            )
            remedy = f"python -c {shlex.quote(f'{code}; shutil.copy(source, {json.dumps(str(copy))})')}"
            yield f"{copy.name} is {state}: {own} is not as this version has it", copy.name, remedy, state == "missing"
    # Where noise is left at the end, the order of the last step counts; a class that travels decides it itself.
    ends = {"euler_at_final"} if kind != own and config.get("final_sigmas_type") == "sigma_min" else set()
    for fault in (True, False):
        fields = {field: pair for field, pair in differing.items() if (field in _TRAINED | ends) == fault}
        if fields:
            words = ", ".join(_unlike(field, *pair) for field, pair in fields.items())
            remedy = edited(path, {field: needed for field, (_, needed) in fields.items()})
            yield words, f"{SCHEDULER_CONFIG}: {', '.join(fields)}", remedy, fault
    if model.conventions == ORIGINAL and (kind != own or how != ORIGINAL):
        note = sampler.stock_note if how == ORIGINAL else model.spec.conventions(model.findings, how).words
        draw = (
            f"pixart generate --pipeline {shlex.quote(str(component.folder.parent))} --sampler {name} --prompt 'a cat'"
        )
        yield f"{kind}: {note}", f"{SCHEDULER_CONFIG}: _class_name", draw, False
