"""What stands against a component of a pipeline: by its config and its files, before any of it is loaded."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

from ..checkpoint import open_checkpoint
from ..checkpoint.file import InputFile, present, reading
from ..checkpoint.folder import CONFIG, read_config
from ..checkpoint.json_file import read_json
from ..errors import InputError, printable, shortened
from ..nets.pipeline_spec import CONVENTIONS, ORIGINAL, SamplerSpec
from .model import PictureModel

SCHEDULER_CONFIG, TOKENIZER_CONFIG = "scheduler_config.json", "tokenizer_config.json"
TOKENIZER_MODELS = ("spiece.model", "tokenizer.json")
# What `AutoencoderKL` takes where its config does not say.
_VAE_DEFAULTS = {"latent_channels": 4, "scaling_factor": 0.18215, "block_out_channels": [64]}
# Of a scheduler, what the net was trained with: another value asks it for something else, with any number of steps.
_TRAINED = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
            "rescale_betas_zero_snr", "clip_sample", "thresholding", "original_inference_steps",
            "timestep_scaling"}  # fmt: skip
_IN_FLOAT32 = ".wo."  # of a T5: its inner activations are beyond float16


@dataclass(frozen=True)
class Problem:
    """What is wrong with a part of a pipeline, or only to be known of it."""

    part: str  # such as "vae"
    words: str  # what was found, and what is needed
    remedy: str  # the command that mends it
    evidence: str = ""  # the file, and the field in it
    fault: bool = True  # False: a remark, pictures are sound all the same


def component_problems(part: str, folder: Path, model: PictureModel) -> Iterator[Problem]:
    """What stands against a component, with this transformer.

    Args:
        part: `vae`, `text_encoder`, `tokenizer` or `scheduler`.
        folder: the component's own.

    Files that are missing or malformed are problems too. Raises: `UsageError` where the transformer does not show
    what is needed.

    Example:
        >>> from converter.pipelines.model import open_picture_model
        >>> with open_picture_model("fixtures/pipeline/alpha-ms.pth", {"num_attention_heads": 4}) as model:
        ...     [problem.words for problem in component_problems("vae", Path("fixtures/pipeline/vae"), model)]
        ['scaling_factor is 0.13025, and 0.18215 is needed: it is the VAE of another model']
    """
    check = {"vae": _vae, "text_encoder": _text_encoder, "tokenizer": _tokenizer, "scheduler": _scheduler}[part]
    try:
        if not folder.is_dir():
            raise InputError.at(folder, "", "no such folder")
        yield from check(folder, model)
    except InputError as error:
        yield Problem(part, str(error), fetched(part, folder, model), str(folder))


def edited(path: Path, **fields: Any) -> str:
    """The command that sets fields of a JSON file."""
    content = ", ".join(
        f'"{name}": {json.dumps(v) if isinstance(v, str | list) else v!r}' for name, v in fields.items()
    )
    change = f"c = json.loads(p.read_text()) | {{{content}}}; p.unlink(); p.write_text(json.dumps(c, indent=2))"
    return python(f"import json, pathlib; p = pathlib.Path({json.dumps(str(path))}); {change}")  # a link's target stays


def python(code: str) -> str:
    """The command that runs a line of Python."""
    return f"python -c {shlex.quote(code)}"


def fetched(part: str, folder: Path, model: PictureModel) -> str:
    """The command that fetches the component that the model was trained with."""
    repository, place = model.spec.released(model.findings), shlex.quote(str(folder.parent))
    return f"hf download {repository} --include '{part}/*' --local-dir {place}"


def _vae(folder: Path, model: PictureModel) -> Iterator[Problem]:
    path, config = folder / CONFIG, read_config(folder)
    another = fetched("vae", folder, model)
    if (kind := config.get("_class_name")) != "AutoencoderKL":
        words = f"_class_name is {printable(kind)}, and AutoencoderKL is needed"
        yield Problem("vae", words, another, f"{path}: _class_name")
        return
    blocks = (_VAE_DEFAULTS | config)["block_out_channels"]
    found = _VAE_DEFAULTS | config | {"block_out_channels": 2 ** (len(blocks) - 1) if isinstance(blocks, list) else 0}
    for name, needed, why in (
        ("latent_channels", model.findings.value("in_channels"), "the transformer's in_channels"),
        ("scaling_factor", model.spec.scaling_factor(model.findings), "it is the VAE of another model"),
        ("block_out_channels", model.spec.vae_factor, "pixels per latent, from the number of blocks"),
    ):
        if found[name] == needed:
            continue
        written = name in config
        words = f"{name} is {printable(found[name])}{'' if written else ' by default'}, and {needed} is needed"
        remedy = another if written or name == "block_out_channels" else edited(path, **{name: needed})
        yield Problem("vae", f"{words}: {why}" if written else words, remedy, f"{path}: {name}")
    open_checkpoint(folder).close()


def _text_encoder(folder: Path, model: PictureModel) -> Iterator[Problem]:
    path, config = folder / CONFIG, read_config(folder)
    another, width = fetched("text_encoder", folder, model), model.findings.value("caption_channels")
    if (kind := config.get("model_type")) != "t5":
        words = f"model_type is {printable(kind)}, and t5 is needed"
        yield Problem("text_encoder", words, another, f"{path}: model_type")
        return
    if config.get("d_model") != width:
        words = f"d_model is {printable(config.get('d_model'))}, and {width} is needed: the transformer's captions"
        yield Problem("text_encoder", words, another, f"{path}: d_model")
    with open_checkpoint(folder) as checkpoint:
        if lacking := _lacking(checkpoint, config.get("num_layers")):
            words = f"weights are missing: {shortened(lacking, 4)}"
            yield Problem("text_encoder", words, another, f"{folder}: {checkpoint.container}")
        half = [key for key, tensor in checkpoint.items() if tensor.dtype.name == "float16"]
    old, new = str(folder), f"{folder}-bfloat16"
    load = f"T5EncoderModel.from_pretrained({json.dumps(old)}, dtype=torch.bfloat16)"
    cast = python(f"import torch; from transformers import T5EncoderModel; {load}.save_pretrained({json.dumps(new)})")
    cast += f" && rm -r {shlex.quote(old)} && mv {shlex.quote(new)} {shlex.quote(old)}"
    stored = config.get("dtype", config.get("torch_dtype"))
    if wo := [key for key in half if _IN_FLOAT32 in key]:
        words = f"{len(wo)} weights wo are float16, in which a T5 overflows: float32 or bfloat16 is needed"
        yield Problem("text_encoder", words, cast, f"{folder}: {wo[0]}")
    elif half or stored == "float16":
        words = "float16: only with wo in float32, as transformers has it, it does not overflow; bfloat16 is safe"
        yield Problem("text_encoder", words, cast, f"{path}: dtype", fault=False)


def _lacking(keys: Mapping[str, Any], count: Any) -> list[str]:
    """What an encoder lacks: all blocks have the same weights, but for the positions that the first has."""
    places = [re.fullmatch(r"encoder\.block\.(\d+)\.(.*)", key) for key in keys]
    blocks = defaultdict[int, set[str]](set)
    for place in filter(None, places):
        blocks[int(place[1])].add(place[2])
    every = {name for names in blocks.values() for name in names if "relative_attention_bias" not in name}
    total = max([*blocks, count - 1 if isinstance(count, int) and 0 < count < 1000 else 0]) + 1
    lacking = [f"encoder.block.{i}.{name}" for i in range(total) for name in sorted(every - blocks[i]) or []]
    lacking = lacking if blocks else [f"encoder.block.0 to {total - 1}"]
    if not {"shared.weight", "encoder.embed_tokens.weight"} & keys.keys():
        lacking.append("shared.weight")
    return lacking + [name for name in ("encoder.final_layer_norm.weight",) if name not in keys]


def _tokenizer(folder: Path, model: PictureModel) -> Iterator[Problem]:
    there = [name for name in TOKENIZER_MODELS if present(folder / name)]
    if not there:
        words = f"{' or '.join(TOKENIZER_MODELS)} is missing: without it every word is unknown"
        yield Problem("tokenizer", words, fetched("tokenizer", folder, model), str(folder))
        return
    for name in there:
        with InputFile(folder / name) as file:
            if file.size < 1000 or (name.endswith(".json") and not isinstance(read_json(folder / name), dict)):
                raise file.error("", f"{file.size} bytes that are no tokenizer (a pointer to a file, as git has it?)")
    path = folder / TOKENIZER_CONFIG
    config, tokens = read_json(path) if present(path) else {}, model.spec.tokens(model.findings)
    kind, longest = config.get("tokenizer_class", "T5Tokenizer"), config.get("model_max_length", tokens)
    if kind not in ("T5Tokenizer", "T5TokenizerFast"):
        words = f"tokenizer_class is {printable(kind)}, and T5Tokenizer is needed"
        yield Problem("tokenizer", words, fetched("tokenizer", folder, model), f"{path}: tokenizer_class")
    if not isinstance(longest, int | float) or longest < tokens:
        words = f"model_max_length is {printable(longest)}, and the model takes {tokens} tokens: longer prompts are cut"
        remedy = edited(path, model_max_length=max(tokens, 512))
        yield Problem("tokenizer", words, remedy, f"{path}: model_max_length", fault=False)


@dataclass(frozen=True)
class _Fit:
    """A scheduler that the model may be drawn with, and where the one that is there differs from it."""

    name: str  # of the sampler
    sampler: SamplerSpec
    how: str  # the conventions
    stock: bool
    differing: Mapping[str, tuple[Any, Any]]  # field -> (its value, that which is needed)

    def worse(self, conventions: str) -> tuple[int, int, bool]:
        trained = sum(name in _TRAINED for name in self.differing)
        return trained, len(self.differing), self.how != conventions


def _scheduler(folder: Path, model: PictureModel) -> Iterator[Problem]:
    path = folder / SCHEDULER_CONFIG
    config = read_json(path)
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise InputError.at(path, "_class_name", "missing: which scheduler it is")
    fits = [*_fits(kind, config, model)]
    if not fits:
        names = ", ".join(dict.fromkeys(fit.sampler.stock for fit in _fits("", {}, model)))
        raise InputError.at(path, "_class_name", f"{printable(kind)}: no scheduler for this model, such as {names}")
    fit = min(fits, key=lambda fit: fit.worse(model.conventions))
    if not fit.stock and (wrong := _unlike_shipped(fit.sampler.scheduler, folder)):
        module = fit.sampler.scheduler.partition(":")[0]
        copy = f"import shutil, {module} as m; shutil.copy(m.__file__, {json.dumps(str(folder))})"
        yield Problem("scheduler", wrong, python(copy), str(folder / f"{module.rpartition('.')[2]}.py"))
    # Where noise is left at the end, the order of the last step counts; a class that travels decides it itself.
    ends = {"euler_at_final"} if fit.stock and config.get("final_sigmas_type") == "sigma_min" else set()
    faulty = {name: pair for name, pair in fit.differing.items() if name in _TRAINED | ends}
    for fields in (faulty, {name: pair for name, pair in fit.differing.items() if name not in faulty}):
        if fields:
            words = ", ".join(f"{name} is {printable(a)}, and {b} is needed" for name, (a, b) in fields.items())
            remedy = edited(path, **{name: needed for name, (_, needed) in fields.items()})
            yield Problem("scheduler", words, remedy, f"{path}: {', '.join(fields)}", fault=fields is faulty)
    if model.conventions == ORIGINAL and (fit.how != ORIGINAL or not fit.sampler.scheduler.endswith(f":{kind}")):
        note = fit.sampler.stock_note if fit.how == ORIGINAL else model.spec.conventions(model.findings, fit.how).words
        draw = f"pixart generate --pipeline {shlex.quote(str(folder.parent))} --sampler {fit.name} --prompt 'a cat'"
        yield Problem("scheduler", f"{kind}: {note}", draw, f"{path}: _class_name", fault=False)


def _fits(kind: str, config: Mapping[str, Any], model: PictureModel) -> Iterator[_Fit]:
    """Of every sampler of the model that has a scheduler of this class ('': any), the one in each convention."""
    import diffusers

    for name in model.spec.samplers:
        for how in CONVENTIONS:
            sampler = model.spec.sampler(model.findings, model.spec.conventions(model.findings, how), name)
            if kind not in ("", sampler.stock, sampler.scheduler.rpartition(":")[2]):
                continue
            arguments = signature(getattr(diffusers, sampler.stock).__init__).parameters
            needed = {field: arguments[field].default for field in arguments if field not in ("self", "kwargs")}
            needed |= sampler.config
            differing = {f: (config.get(f, arguments[f].default), v) for f, v in needed.items()}
            differing = {f: (value, right) for f, (value, right) in differing.items() if value != right}
            yield _Fit(name, sampler, how, kind == sampler.stock, differing)


def _unlike_shipped(reference: str, folder: Path) -> str:
    """What is wrong with the source of a class of this package beside its config, '' if it is ours byte for byte."""
    spec = find_spec(reference.partition(":")[0])
    assert spec
    assert spec.origin
    copy = folder / Path(spec.origin).name
    if not present(copy):
        return f"{copy.name} is missing, which defines its class: diffusers cannot load it"
    with reading(copy):
        return "" if copy.read_bytes() == Path(spec.origin).read_bytes() else f"{copy.name} is modified: not as shipped"
