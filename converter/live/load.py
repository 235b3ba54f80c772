"""`load`: a checkpoint of any accepted kind as a model of diffusers in memory, as `from_pretrained` would give it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..checkpoint import DType
from ..checkpoint.dtypes import BY_NAME, F32
from ..checkpoint.file import reading
from ..conversion.analysis import Analysis
from ..conversion.model_files import open_model
from ..conversion.options import ConversionOptions, with_shortcuts
from ..conversion.output import DIFFUSERS
from ..conversion.plan import plan_tensors, zeros_reported_first
from ..conversion.sidecar import Sidecar, analyse_with_record, open_sidecar
from ..conversion.to_diffusers import TensorWrites
from ..conversion.verdicts import give_verdict
from ..errors import InputError, UsageError, printable, shortened
from ..families import Family
from ..families.travelling import CLASS, class_of, imported_class
from ..hub import local
from ..mapping import fold
from ..nets.device import checked_device
from .tensors import Reading, Tensors

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
# Of `ConversionOptions`, those that say how a file is read.
CHOICES = (
    "weights", "state_dict_key", "family", "stock", "allow_nonfinite", "allow_overflow", "allow_zeros",
    "require_evidence",
)  # fmt: skip
DTYPES = {dtype.name: dtype for dtype in BY_NAME.values() if dtype.floating}


def load(
    source: str | os.PathLike[str],
    *,
    torch_dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
    disable_mmap: bool = False,
    **choices: Any,
) -> Any:
    """The model of a checkpoint, of the class that a conversion writes into `config.json`; nothing is written.

    It is what `from_pretrained` of the converted folder gives, in evaluation mode, every tensor checked as a conversion
    checks it. Tensors that are in the wanted dtype already, and stay on the CPU, are pages of the file: no second
    copy is in memory, and training changes the model and not the file, which must not be overwritten in place while the
    model is in use.

    What a conversion would note, and every value that is assumed, is logged as a warning (`logging`, "converter").

    Args:
        source: any accepted file or folder, a hub id, or `hf://owner/name/file`.
        torch_dtype: a floating dtype of torch, or its name. Default: as of `from_pretrained`, torch's default dtype.
        device: where the tensors go. Default: the CPU.
        hyper_parameters: what the file cannot show, by name, such as `{"num_attention_heads": 16}`.
        disable_mmap: copy every tensor.
        choices: `weights`, `state_dict_key`, `family`, `stock`, `allow_nonfinite`, `allow_overflow`, `allow_zeros`
            and `require_evidence` of `ConversionOptions`.

    Returns: the model; of a family that a conversion writes into several folders, such as a ControlNet with its base,
        the models by the names of these.

    Raises: `InputError` for a file that is refused, `UsageError` for a call that is.

    Example:
        >>> model = load("fixtures/golden/alpha-ms.pth", weights="ema", hyper_parameters={"num_attention_heads": 4})
        >>> type(model).__name__, model.dtype, model.training
        ('PixArtTransformer2DModel', torch.float32, False)
    """
    with open_to_load(
        source, torch_dtype, hyper_parameters=hyper_parameters, disable_mmap=disable_mmap, **choices
    ) as plan:
        models = plan.models(device)
        return models if plan.family.several else next(iter(models.values()))


@dataclass
class LoadPlan:
    """What will be in memory: an analysed source, its tensors as diffusers has them, and the config of their class.

    `dtype`: what the class is to be in; `pages`: let tensors of the CPU be pages of their files.
    """

    source: str | os.PathLike[str]
    analysis: Analysis
    sidecar: Sidecar
    config: dict[str, Any]
    writes: TensorWrites
    options: ConversionOptions
    dtype: DType
    pages: bool

    @property
    def family(self) -> Family:
        return self.analysis.require()

    def models(self, device: Any) -> dict[str, Any]:
        """The models by their folders, mostly one, while their source is open."""
        place = checked_device(device, self.dtype.name)
        with reading(self.analysis.checkpoint.path):
            # The libraries, which take seconds to import, are imported while the file is read.
            reader = Reading(self.writes, place, pages=self.pages)
            with reader.begun() as tensors:
                models = {folder: self._empty(config) for folder, config in self.family.by_folder(self.config).items()}
                weights = self.family.by_folder(tensors())
            for note in give_verdict(self.analysis, self.writes, reader.written, self.options)[0]:
                logger.warning("%s: %s", printable(self.source), note)
        for folder, model in models.items():
            self._put(model, weights.get(folder, {}))
            model.register_to_config(_name_or_path=os.fspath(self.source))
            model.eval()
            if place is not None:
                model.to(place)  # its buffers
        return models

    def _empty(self, config: Mapping[str, Any]) -> Any:
        """A model without weights, whose buffers its class has computed."""
        from .empty import empty_model

        kind = model_class(self.family, config)
        try:
            return empty_model(kind, config)
        except Exception as error:  # of the class, or of what a family makes of it
            rule = printable(f"{type(error).__name__}: {error}", 1000)
            raise UsageError(
                f"`family` {self.family.name}: {kind.__name__} does not take its config: {rule}"
            ) from error

    def _put(self, model: Any, weights: Tensors) -> None:
        there = model.state_dict()
        wrong = [f"missing {key}" for key in fold(there.keys() - weights.keys())]
        wrong += [f"unknown {key}" for key in fold(weights.keys() - there.keys())]
        wrong += [
            f"{key} {list(weights[key].shape)}, where the class has {list(there[key].shape)}"
            for key in there
            if key in weights and weights[key].shape != there[key].shape
        ]
        if not wrong:
            model.load_state_dict(weights, assign=True)
            own = [*model.named_parameters(), *model.named_buffers()]
            wrong = [f"{key} is not computed" for key, tensor in own if tensor.is_meta]
        if wrong:
            path, kind = printable(self.analysis.checkpoint.path), type(model).__name__
            raise InputError(f"{path}: not the weights of a {kind}: {shortened(wrong, 6)}")


@contextmanager
def open_to_load(
    source: str | os.PathLike[str],
    torch_dtype: torch.dtype | str | None,
    *,
    hyper_parameters: Mapping[str, Any] | None = None,
    disable_mmap: bool = False,
    **choices: Any,
) -> Iterator[LoadPlan]:
    """What `load` will do, while its source is open: fetched if it is on the hub, analysed, and planned.

    Raises: `InputError` and `UsageError`, whatever stands against it.
    """
    if foreign := sorted(choices.keys() & vars(ConversionOptions()).keys() - set(CHOICES)):
        own = ", ".join(("torch_dtype", "device", "hyper_parameters", "disable_mmap", *CHOICES))
        raise UsageError(f"{', '.join(foreign)}: not an option of loading, which are {own}")
    options, dtype = with_shortcuts(ConversionOptions(), choices), floating_dtype(torch_dtype)
    with reading(source):  # a path at all
        place = local(source, quiet=True)
    with ExitStack() as stack, reading(place):
        opened = open_model(place, options.weights, options.state_dict_key, options.family)
        analysis = analyse_with_record(
            stack.enter_context(opened), hyper_parameters or {}, options.family, stock=options.stock
        )
        with zeros_reported_first(analysis, options):
            analysis.require()
            analysis.findings.used.clear()
            config, sidecar = analysis.config(), open_sidecar(stack, analysis, None)
            writes, notes = plan_tensors(analysis, sidecar, DIFFUSERS, dtype, options)
        if dtype is None:  # which `from_pretrained` applies to every tensor
            dtype = _default_dtype()
            writes.model = [replace(part, dtype=dtype) for part in writes.model]
        assumed = [
            f"{name} = {found.value} ({found.evidence})"
            for name, found in analysis.findings.items()
            if found.source == "assumed"
        ]
        for note in [*(f"assumed: {words}" for words in assumed), *notes, *writes.differing]:
            logger.warning("%s: %s", printable(source), note)
        yield LoadPlan(
            source,
            analysis,
            sidecar,
            config=config,
            writes=writes,
            options=options,
            dtype=dtype,
            pages=not disable_mmap,
        )


def floating_dtype(torch_dtype: torch.dtype | str | None) -> DType | None:
    """A dtype of torch, or its name. Raises: `UsageError` where it is none that weights can have."""
    name = str(torch_dtype).removeprefix("torch.")
    if torch_dtype is not None and name not in DTYPES:
        raise UsageError(f"`torch_dtype` {printable(repr(torch_dtype), 60)}: one of {', '.join(DTYPES)}")
    return DTYPES.get(name)


def _default_dtype() -> DType:
    torch = sys.modules.get("torch")  # importing it would take longer than all else here
    return DTYPES[str(torch.get_default_dtype()).removeprefix("torch.")] if torch else F32


def model_class(family: Family, config: Mapping[str, Any]) -> Any:
    """The class that a config names: one that travels with the family's weights, else diffusers' own.

    Raises: `UsageError` where there is neither.
    """
    if reference := class_of(family.classes, config):
        return imported_class(reference)
    import diffusers

    kind = getattr(diffusers, str(config.get(CLASS)), None)
    if not isinstance(kind, type) or not issubclass(kind, diffusers.ModelMixin):
        raise UsageError(
            f"`family` {family.name}: its config names the class {printable(config.get(CLASS))}, which is no model "
            "of diffusers nor one of the family's `classes`: there is nothing to load the weights into"
        )
    return kind
