"""The transformer that pictures are drawn with, in either layout: what it is, and its net."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint, LazyTensor
from ..checkpoint.file import present
from ..checkpoint.json_file import read_json
from ..conversion.analysis import Analysis
from ..conversion.model_files import open_model
from ..conversion.record import Record
from ..conversion.sidecar import Sidecar, analyse_with_record, open_sidecar, rows_of
from ..errors import UsageError
from ..families import Finding, Findings
from ..families.from_file import imported
from ..families.travelling import CLASS
from ..filenames import RECORD, record_places
from ..hub import local
from ..mapping import Extra
from ..nets.pipeline_spec import CONVENTIONS, DIFFUSERS, ORIGINAL, Conventions, PipelineSpec, SamplerSpec

MODEL_INDEX = "model_index.json"
Differing = dict[str, tuple[Any, Any]]

if TYPE_CHECKING:
    import torch

    from ..nets import Net
    from ..nets.spec import ParitySpec


@dataclass(frozen=True)
class PictureModel:
    """An open transformer.

    Attributes:
        findings: those of the analysis, and what the record of its conversion or its pipeline says beside the tensors.
        spec: how pictures are drawn with it.
        null_caption: (L, C), what the training put in place of a dropped caption; None where nothing holds it.
        conventions: those that fit: the training code's for what it wrote, or what a conversion made of that.
    """

    analysis: Analysis
    findings: Findings
    spec: PipelineSpec
    null_caption: LazyTensor | None
    conventions: str

    @classmethod
    def of(cls, analysis: Analysis, sidecar: Sidecar) -> PictureModel:
        """Raises: `UsageError` where its family says nothing of pictures."""
        family = analysis.require()
        spec = imported(family, "pipeline")
        if not isinstance(spec, PipelineSpec):
            raise UsageError(
                f"the family {family.name} does not say how pictures are drawn with it, so no pipeline of it can be "
                "written, examined or run: convert the model alone"
            )
        names = {row.source for row in rows_of(analysis, Extra)}
        kept = (tensor for key, tensor in {**analysis.checkpoint, **sidecar.tensors}.items() if key in names)
        findings = _completed(analysis, spec, sidecar.record) if analysis.diffusers else analysis.findings
        conventions = DIFFUSERS if analysis.diffusers and not sidecar.record.origin else ORIGINAL
        return cls(analysis, findings, spec, next(kept, None), conventions)

    @property
    def checkpoint(self) -> Checkpoint:
        return self.analysis.checkpoint

    def closest_sampler(self, config: Mapping[str, Any]) -> tuple[str, Conventions, SamplerSpec, Differing] | None:
        """What a scheduler's config is closest to of the samplers (the name, by which conventions), and the fields in
        which it differs, with what they are and what they would be; None where it is another's."""
        import diffusers

        fits = []
        for name in self.spec.samplers:
            kinds = set[str]()
            for convention in CONVENTIONS:
                how = self.spec.conventions(self.findings, convention)
                sampler = self.spec.sampler(self.findings, how, name)
                kinds |= {sampler.stock, sampler.scheduler.partition(":")[2]}
                if config[CLASS] in kinds:
                    arguments = signature(getattr(diffusers, sampler.stock).__init__).parameters
                    defaults = {k: each.default for k, each in arguments.items() if k not in ("self", "kwargs")}
                    right = defaults | dict(sampler.config)
                    taken = {k: value for k, value in (defaults | dict(config)).items() if k in right}
                    differing = {k: (value, right[k]) for k, value in taken.items() if value != right[k]}
                    fits.append((len(differing), convention != self.conventions, name, how, sampler, differing))
        return min(fits, key=lambda fit: fit[:2])[2:] if fits else None

    def net(self, dtype: torch.dtype, device: str = "cpu", *, whole: bool) -> Net:
        """Diffusers' own net of a converted model, the training code's of an original.

        Args:
            whole: hold all weights in memory, instead of reading those of a block when it runs.
        """
        from ..nets.net import HeldWeights, Weights

        weights = Weights(self.checkpoint, dtype, device)
        if whole:
            weights = HeldWeights({key: weights[key] for key in weights}, dtype, device)
        if self.analysis.diffusers:
            return self.nets.converted(self.checkpoint.config or self.analysis.config(), weights)
        return self.nets.reference(self.findings, weights)

    @property
    def nets(self) -> ParitySpec:
        nets: ParitySpec = imported(self.analysis.require(), "parity")
        return nets


@contextmanager
def open_picture_model(
    path: str | os.PathLike[str],
    hyper_parameters: Mapping[str, Any] | None = None,
    *,
    weights: str | None = None,
    state_dict_key: str | None = None,
    family: str | None = None,
    null_caption: str | os.PathLike[str] | None = None,
) -> Iterator[PictureModel]:
    """Open a transformer: an original checkpoint, a diffusers folder, a pipeline, or one of these on the hub.

    Raises: `InputError` and `UsageError`, as a conversion of it does; `UsageError` where its family says nothing of
    pictures.

    Example:
        >>> with open_picture_model("fixtures/golden/sigma-ms.pth", {"num_attention_heads": 4}) as model:
        ...     model.conventions, model.spec.tokens(model.findings)
        ('original', 20)
    """
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_model(local(path, quiet=True), weights, state_dict_key, family))
        analysis = analyse_with_record(checkpoint, hyper_parameters or {}, family)
        yield PictureModel.of(analysis, open_sidecar(stack, analysis, null_caption))


def _completed(analysis: Analysis, spec: PipelineSpec, record: Record) -> Findings:
    """The findings, with what no tensor of a converted model shows: by its record, else its pipeline's class."""
    folder, findings = analysis.checkpoint.folder, copy(analysis.findings)
    recorded = record.content.get("hyper_parameters", {})
    shown = {name: Finding(about["value"], "file", RECORD) for name, about in recorded.items()}
    for index in (place / MODEL_INDEX for place in (record_places(folder) if folder else ())):
        if present(index):
            content = read_json(index)
            kind = content.get(CLASS) if isinstance(content, dict) else None
            of_class = spec.shown_by(str(kind[-1] if isinstance(kind, list) and kind else kind))  # one that travels
            shown = {name: Finding(value, "file", MODEL_INDEX) for name, value in of_class.items()} | shown
    for name, finding in shown.items():
        if name in findings and findings[name].source in ("unknown", "assumed") and finding.value is not None:
            findings[name] = finding
    return findings
