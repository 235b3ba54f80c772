"""Which part is at fault if pictures are bad: every part of a pipeline examined, with the command that mends it."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.cast import count_nonfinite
from ..checkpoint.file import present, reads
from ..checkpoint.folder import CONFIG
from ..checkpoint.json_file import read_json
from ..conversion.deep import read_through
from ..conversion.model_config import config_of
from ..conversion.record import LIKE, Record, find_record
from ..conversion.remarks import differences_from_record
from ..conversion.verdicts import NONFINITE
from ..conversion.zeros import listed, trailing_zero_counts
from ..errors import InputError, UsageError, as_flags, printable, require
from ..families.travelling import CLASS, Entry, class_in, class_of, shipped_class
from ..mapping import MappingError
from ..parity import audit, configuration
from ..parity.choices import CheckOptions
from ..parity.opening import open_sides
from ..parity.sides import Sides
from .checks import Problem, component_problems, drawn, edited, module_problems
from .components import PARTS, TEXT_ENCODER, TOKENIZER, VAE, find_component
from .decode import load_decoder
from .model import MODEL_INDEX, PictureModel, open_picture_model
from .text_encoder import empty_encoder, tokenize

PIPELINE, TRANSFORMER = "pipeline", "transformer"
ZERO = "zero throughout (was its download completed?)"
AnyPath = str | os.PathLike[str]


@reads
def diagnose(
    path: AnyPath,
    *,
    original: AnyPath | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
    **selection: Any,
) -> dict[str, list[Problem]]:
    """Examine a pipeline's folder, a transformer's, or an original checkpoint: every byte of the weights is read, and
    the transformer is run once, on a few positions, in the dtype of its files.

    Args:
        original: the checkpoint that the transformer was converted from, to be compared with.
        hyper_parameters: what the user states of the model, by name.
        selection: `weights`, `state_dict_key` and `family`, as of `open_picture_model`.

    Returns: the problems by part, none where it is sound.

    Raises: `InputError` for what is no pipeline and no model at all; `UsageError`.

    Example:
        >>> diagnose("fixtures/pipeline/sigma-ms.pth", hyper_parameters={"num_attention_heads": 4})
        {'transformer': []}
    """
    folder = Path(path)
    index, whole = folder / MODEL_INDEX, folder.is_dir() and present(folder / MODEL_INDEX)
    parts = [*([PIPELINE] if whole else []), TRANSFORMER, *(p for p in PARTS if whole or (folder / p).is_dir())]
    result: dict[str, list[Problem]] = {part: [] for part in parts}
    with ExitStack() as stack:
        part = PIPELINE  # that is read now
        try:
            entries = read_json(index) if whole else {}
            if not isinstance(entries, dict):
                raise InputError.at(index, "", "not a JSON object")
            part = TRANSFORMER
            model = stack.enter_context(open_picture_model(path, hyper_parameters, **selection))
            if model.analysis.needs and not model.analysis.diffusers:
                raise UsageError(model.analysis.needs)
        except InputError as error:
            of_model = whole or any((place / CONFIG).is_file() for place in (folder, folder / TRANSFORMER))
            if not (of_model or isinstance(error, MappingError)):
                raise
            first = Problem(str(error), str(index if part == PIPELINE else folder), _again(folder, original))
            rest = Problem(f"not checked: what is wrong with the {part} comes first", "", fault=False)
            return {name: [first if name == part else rest] for name in parts}
        result[TRANSFORMER] += _transformer(model, folder, whole, original)
        family, config = model.analysis.require(), model.checkpoint.config
        needed: dict[str, Any] = {}
        if whole and not any(problem.fault for problem in result[TRANSFORMER]):  # of which the pipeline's class follows
            needed[CLASS] = shipped_class(pipeline := model.spec.pipeline(model.findings)).pipeline_name
            result[PIPELINE] += module_problems(pipeline, folder)
        if isinstance(config.get(CLASS), str):
            needed[TRANSFORMER] = [*class_in(family.classes, config).entry]
        if (own := class_of(family.classes, config)) and model.checkpoint.folder:
            result[TRANSFORMER] += module_problems(own, Path(model.checkpoint.files[0].path).parent)
        for part in parts[parts.index(TRANSFORMER) + 1 :]:
            result[part], entry = _component(part, folder, entries, model)
            needed |= {part: [*entry]} if entry else {}
        for field, right in needed.items() if whole else ():
            if entries.get(field) != right:
                words = f"{field} is {printable(entries.get(field))}, and {right} is needed"
                result[PIPELINE].append(Problem(words, f"{index}: {field}", edited(index, {field: right})))
    if not whole and VAE in parts:
        missing = f"{MODEL_INDEX} is missing: diffusers does not load the folder as a pipeline"
        remedy = f"{_again(folder, original)} --only_transformer=False --vae {shlex.quote(str(folder / VAE))}"
        result = {PIPELINE: [Problem(missing, str(folder), remedy)]} | result
    return result


def _again(folder: Path, original: AnyPath | None = None) -> str:
    """The command that makes a converted model anew; of an original, what is to be done."""
    if not folder.is_dir():
        return "fetch the file again, or take an earlier one of the same training"
    source = shlex.quote(os.fspath(original)) if original else "ORIGINAL.pth"
    return f"convert-pixart --orig_ckpt_path {source} --dump_path {shlex.quote(str(folder))} --overwrite"


def _transformer(model: PictureModel, folder: Path, whole: bool, original: AnyPath | None) -> Iterator[Problem]:
    analysis, checkpoint, findings, family = model.analysis, model.checkpoint, model.findings, model.analysis.require()

    def problem(words: str, remedy: str = _again(folder, original), *, fault: bool = True) -> Problem:
        return Problem(as_flags(words), printable(checkpoint.path), remedy, fault)

    read = read_through(analysis)
    yield from (problem(words) for words in [*read.problems, *filter(None, [analysis.needs])])
    sides = Sides(family, findings, analysis.plan, checkpoint, checkpoint, spec=model.nets, config=checkpoint.config)
    for config in (path for path in checkpoint.companions if path.name == CONFIG and not analysis.needs):
        for check in configuration.audit(sides).failed:
            right = {check.what: config_of(family, findings)[check.what]}
            yield Problem(as_flags(check.words), f"{config}: {check.what}", edited(config, right))
    record = find_record(checkpoint.folder) if checkpoint.folder else Record()
    yield from map(problem, differences_from_record(analysis, record))
    if original:
        with ExitStack() as stack:
            options = CheckOptions(family=family.name)
            sides = open_sides(stack, Path(original), folder, options, hyper_parameters=findings.given)
            for phase in (audit.audit(sides), configuration.audit(sides)):
                yield from (problem(f"{check.words} (compared with {printable(original)})") for check in phase.failed)
    null, how = model.null_caption, model.spec.conventions(findings, model.conventions)
    if how.stored_null and null is None:
        remedy = "give `null_caption`, or draw with `conventions` diffusers"
        yield problem(f"the null caption is missing, at which guidance begins: {remedy}", fault=False)
    elif null is not None and trailing_zero_counts(null) == [null.numel]:
        yield problem(f"{null.key} is zero throughout, and guidance begins there", fault=how.stored_null)
    if not (whole and shipped_class(model.spec.pipeline(findings)).module):  # else the pipeline is looked at for it
        yield from (problem(words, drawn(folder), fault=whole) for words in findings.diffusers_notes)
    for key in analysis.plan.extras if analysis.diffusers else ():
        yield problem(f"{key} is left over from an old conversion, and not used", fault=False)
    remarks = [*findings.notes, *checkpoint.notes, *(words for words in read.notes if LIKE not in words)]
    yield from (problem(words, fault=False) for words in remarks)
    if not read.problems and not analysis.needs:
        yield from map(problem, _not_finite(model))


def _not_finite(model: PictureModel) -> Iterator[str]:
    """What becomes of ordinary noise in the dtype of the files, if that is no numbers."""
    import torch

    dtypes = Counter(tensor.dtype.name for tensor in model.checkpoint.values())
    dtype, places = getattr(torch, dtypes.most_common(1)[0][0]), list[str]()
    (case, *_) = model.nets.cases(model.findings, "quick", {})

    def watch(stage: str, values: Mapping[str, torch.Tensor]) -> None:
        if not all(bool(value.isfinite().all()) for value in values.values()):
            places.append(stage)

    model.net(dtype, whole=False).forward({name: v[:1] for name, v in case.tensors(dtype).items()}, watch)
    if places:
        yield f"in {str(dtype)[6:]} its output is not finite, first in {places[0]}"


def _component(
    part: str, folder: Path, entries: Mapping[str, Any], model: PictureModel
) -> tuple[list[Problem], Entry | None]:
    """What stands against a component, by its files and by what is in them; and the entry of one that fits."""
    problems, entry, text = list[Problem](), None, (TEXT_ENCODER, TOKENIZER)
    named = [name for name in text if entries.get(name) not in (None, [None, None])]
    if part in text and not named and not any((folder / name).is_dir() for name in text):
        return problems, None  # both are missing, and meant to be: it is drawn from embeddings
    repository, place = model.spec.released(model.findings), folder / part
    fetch = f"hf download {repository} --include '{part}/*' --local-dir {shlex.quote(str(folder))}"
    try:
        component = find_component(place, part)
        for problem in component_problems(component, model):
            problems.append(replace(problem, remedy=problem.remedy or fetch))
        if not any(problem.fault for problem in problems):
            entry = component.entry
            if part == TOKENIZER:
                tokenize(["a cat"], place, model.spec.tokens(model.findings))
            if part in (VAE, TEXT_ENCODER):
                with open_checkpoint(place) as checkpoint:
                    problems += (Problem(words, str(place), fetch) for words in _damage(checkpoint))
                    if part == TEXT_ENCODER:
                        require("a text encoder", "transformers")
                        empty_encoder(checkpoint)
                    else:
                        load_decoder(place)
    except InputError as error:
        problems.append(Problem(str(error), str(place), fetch))
    return problems, entry


def _damage(checkpoint: Checkpoint) -> Iterator[str]:
    """What no header shows: numbers that are none, matrices of zeros."""
    keys: dict[str, list[str]] = {NONFINITE: [], ZERO: []}
    for key, tensor in checkpoint.items():
        if any(count_nonfinite(piece, tensor.dtype) for _, piece in tensor.chunks()):
            keys[NONFINITE].append(key)
        elif len(tensor.shape) > 1 and trailing_zero_counts(tensor) == [tensor.numel]:
            keys[ZERO].append(key)
    yield from (f"{listed(those)}: {words}" for words, those in keys.items() if those)
