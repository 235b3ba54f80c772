"""Which part is at fault if pictures are bad: every part of a pipeline examined, with the command that mends it."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.cast import count_nonfinite
from ..checkpoint.file import present, reads
from ..checkpoint.folder import CONFIG
from ..checkpoint.json_file import read_json
from ..conversion.analysis import config_of
from ..conversion.deep import read_through
from ..conversion.record import LIKE
from ..conversion.zeros import listed, trailing_zero_counts
from ..errors import InputError, UsageError, as_flags, printable
from ..mapping import MappingError
from ..parity import audit, configuration
from ..parity.choices import CheckOptions
from ..parity.opening import open_sides
from ..parity.sides import Sides
from ..parity.sides import spec_of as parity_of
from .checks import SCHEDULER_CONFIG, Problem, component_problems, edited, fetched
from .model import MODEL_INDEX, PictureModel, open_picture_model

TRANSFORMER = "transformer"
COMPONENTS = ("vae", "text_encoder", "tokenizer", "scheduler")
DRAWN_WITHOUT = ("text_encoder", "tokenizer")  # from embeddings


@dataclass
class Diagnosis:
    """What was found, part by part: no problems where a part is sound; a word where it could not be examined."""

    problems: dict[str, list[Problem]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """The parts at fault."""
        return [part for part, there in self.problems.items() if any(problem.fault for problem in there)]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        parts = []
        for part, problems in self.problems.items():
            if not problems:
                verdict, words = ("not checked", self.skipped[part]) if part in self.skipped else ("ok", "")
                parts.append({"part": part, "verdict": verdict, "words": words, "evidence": "", "remedy": ""})
            for problem in problems:
                about = asdict(problem)
                parts.append({"part": part, "verdict": "fault" if about.pop("fault") else "remark"} | about)
        return {"ok": not self.faults, "parts": parts}


@reads
def diagnose(
    path: str | os.PathLike[str],
    *,
    original: str | os.PathLike[str] | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
    **selection: Any,
) -> Diagnosis:
    """Examine a pipeline's folder, a transformer's, or an original checkpoint: every byte of the weights is read, and
    the transformer is run once, on a few positions, in the dtype of its files.

    Args:
        original: the checkpoint that the transformer was converted from, to be compared with.
        hyper_parameters: what the user states of the model, by name.
        selection: `weights`, `state_dict_key` and `family`, as of `open_picture_model`.

    Raises: `InputError` for what is no pipeline and no model at all; `UsageError`.

    Example:
        >>> diagnose("fixtures/pipeline/sigma-ms.pth", hyper_parameters={"num_attention_heads": 4}).as_dict()["ok"]
        True
    """
    folder, result = Path(path), Diagnosis()
    index = folder / MODEL_INDEX
    whole = folder.is_dir() and present(index)
    of_model = whole or any((place / CONFIG).is_file() for place in (folder, folder / TRANSFORMER))
    try:
        entries = read_json(index) if whole else {}
    except InputError as error:
        entries, result.problems["pipeline"] = {}, [Problem("pipeline", str(error), _again(folder), str(index))]
    if whole:
        result.problems.setdefault("pipeline", [])
    transformer = result.problems.setdefault(TRANSFORMER, [])
    parts = [part for part in COMPONENTS if entries.get(part, [None])[0] or (folder / part).is_dir() or whole]
    with ExitStack() as stack:
        model = None
        try:
            opened = open_picture_model(path, hyper_parameters, **selection)
            model = stack.enter_context(opened)
            if model.analysis.needs and not model.analysis.diffusers:
                raise UsageError(model.analysis.needs)
            transformer += _transformer(model, folder, whole, original)
        except InputError as error:
            if not (of_model or isinstance(error, MappingError)):
                raise
            transformer.append(Problem(TRANSFORMER, str(error), _again(folder, original), str(folder)))
        if model and "pipeline" in result.problems and not result.problems["pipeline"]:
            result.problems["pipeline"] += _index(index, entries, model)
        for part in parts:
            result.problems[part] = []
            if model is None:
                result.skipped[part] = "not checked: the transformer does not show what is needed"
            else:
                result.problems[part] += _component(part, folder, entries, model)
    return result


def _again(folder: Path, original: str | os.PathLike[str] | None = None) -> str:
    """The command that makes a converted transformer anew; of an original, what is to be done."""
    if not folder.is_dir():
        return "fetch the file again, or take another checkpoint of the same training"
    source = shlex.quote(os.fspath(original)) if original else "ORIGINAL.pth"
    return f"convert-pixart --orig_ckpt_path {source} --dump_path {shlex.quote(str(folder))} --overwrite"


def _transformer(
    model: PictureModel, folder: Path, whole: bool, original: str | os.PathLike[str] | None
) -> Iterator[Problem]:
    analysis, checkpoint, findings = model.analysis, model.checkpoint, model.findings
    again, where = _again(folder, original), printable(checkpoint.path)

    def problem(words: str, remedy: str = again, evidence: str = where, *, fault: bool = True) -> Problem:
        return Problem(TRANSFORMER, as_flags(words), remedy, evidence, fault)

    read = read_through(analysis)
    yield from (problem(words) for words in read.problems)
    config = checkpoint.folder and next(path for path in checkpoint.companions if path.name == CONFIG)
    if analysis.needs:
        yield problem(analysis.needs)
    elif analysis.diffusers and config:
        sides = Sides(analysis.require(), findings, analysis.plan, checkpoint, checkpoint,
                      spec=parity_of(analysis.require()), config=checkpoint.config)  # fmt: skip
        needed = config_of(sides.family, findings)
        for check in configuration.audit(sides).failed:
            yield problem(
                check.words, edited(config, **{check.what: needed.get(check.what)}), f"{config}: {check.what}"
            )
    if original:
        with ExitStack() as stack:
            sides = open_sides(stack, Path(original), folder, CheckOptions(), hyper_parameters=findings.given)
            for phase in (audit.audit(sides), configuration.audit(sides)):
                yield from (problem(f"{check.words} (compared with {printable(original)})") for check in phase.failed)
    null, how = model.null_caption, model.spec.conventions(findings, model.conventions)
    if how.stored_null and null is None:
        words = "the null caption is missing, at which guidance begins: diffusers' empty prompt stands in for it"
        yield problem(words, fault=False)
    elif null is not None and trailing_zero_counts(null) == [null.numel]:
        yield problem(f"{null.key} is zero throughout, and guidance begins there", fault=how.stored_null)
    draw = f"pixart generate --pipeline {shlex.quote(str(folder))} --prompt 'a cat'"
    yield from (problem(words, draw, fault=whole) for words in findings.diffusers_notes)
    for key in analysis.plan.extras if analysis.diffusers else ():
        yield problem(f"{key} is left over from an old conversion: diffusers warns, and does not use it", fault=False)
    remarks = [*findings.notes, *checkpoint.notes, *(words for words in read.notes if LIKE not in words)]
    yield from (problem(words, fault=False) for words in remarks)
    if not read.problems and not analysis.needs:
        yield from map(problem, _not_finite(model))


def _not_finite(model: PictureModel) -> Iterator[str]:
    """What becomes of ordinary noise in the dtype of the files, if that is no numbers."""
    import torch

    dtypes = Counter(tensor.dtype.name for tensor in model.checkpoint.values())
    dtype, places = getattr(torch, dtypes.most_common(1)[0][0]), list[str]()
    (case, *_) = parity_of(model.analysis.require()).cases(model.findings, "quick", {})

    def watch(stage: str, values: Mapping[str, torch.Tensor]) -> None:
        if not all(bool(value.isfinite().all()) for value in values.values()):
            places.append(stage)

    model.net(dtype, whole=False).forward({name: v[:1] for name, v in case.tensors(dtype).items()}, watch)
    if places:
        yield f"in {str(dtype)[6:]} its output is not finite, first in {places[0]}"


def _index(path: Path, entries: Any, model: PictureModel) -> Iterator[Problem]:
    """What stands against `model_index.json`."""
    if not isinstance(entries, dict):
        raise InputError.at(path, "", "not a JSON object")
    needed = model.spec.pipeline(model.findings)
    if (kind := entries.get("_class_name")) != needed:
        words = f"_class_name is {printable(kind)}, and {needed} is needed"
        yield Problem("pipeline", words, edited(path, _class_name=needed), f"{path}: _class_name")
    for part, name in ((TRANSFORMER, CONFIG), ("vae", CONFIG), ("scheduler", SCHEDULER_CONFIG)):
        entry, config = entries.get(part), path.parent / part / name
        kind = read_json(config).get("_class_name") if config.is_file() else None
        if isinstance(entry, list) and entry[-1] is not None and kind not in (None, entry[-1]):
            words = f"the {part} is a {printable(entry[-1])} there, and a {printable(kind)} in its own config"
            yield Problem("pipeline", words, edited(path, **{part: [entry[0], kind]}), f"{path}: {part}")


def _component(part: str, folder: Path, entries: Mapping[str, Any], model: PictureModel) -> Iterator[Problem]:
    """What stands against a component, by its files and by what is in them."""
    place = folder / part
    missing = (entries.get(part) or [None])[0] is None and not place.is_dir()
    both = all(not (folder / name).is_dir() for name in DRAWN_WITHOUT)
    if missing and part in DRAWN_WITHOUT and both:
        return
    yield from component_problems(part, place, model)
    if part in ("vae", "text_encoder") and place.is_dir():
        try:
            with open_checkpoint(place) as checkpoint:
                for words in _damage(checkpoint):
                    yield Problem(part, words, fetched(part, place, model), str(place))
        except InputError:
            return  # it is a problem already


def _damage(checkpoint: Checkpoint) -> Iterator[str]:
    """What no header shows: numbers that are none, matrices of zeros."""
    bad, zero = list[str](), list[str]()
    for key, tensor in checkpoint.items():
        if any(count_nonfinite(piece, tensor.dtype) for _, piece in tensor.chunks()):
            bad.append(key)
        elif len(tensor.shape) > 1 and trailing_zero_counts(tensor) == [tensor.numel]:
            zero.append(key)
    for keys, words in ((bad, "NaN or infinite"), (zero, "zero throughout (was its download completed?)")):
        if keys:
            yield f"{listed(keys)}: {words}"
