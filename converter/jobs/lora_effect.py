"""What an extracted adapter does to the output: the reference net of the tuned model, of the base, and of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..checkpoint import LazyTensor
from ..checkpoint.dtypes import F32
from ..conversion.analysis import Analysis, analyse
from ..conversion.buffers import computed, table_of
from ..conversion.sidecar import rows_of
from ..errors import UsageError, plural
from ..families import Findings
from ..lora.adapter import Adapter
from ..lora.merge import place_on, tensors_in
from ..lora.names import ORIGINAL
from ..lora.placed import merged_tensors
from ..mapping.rows import Computed
from ..nets.inputs import Case
from ..parity.choices import FLOAT32
from ..parity.determinism import deterministic
from ..parity.sides import UNAVAILABLE, spec_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Effect:
    """How far outputs are from the tuned model's, relative L2: those of the `base`, and of the base with the `adapter`.

    `samples`: how many were compared. `unknown`: why nothing was, in words; '' where it was.
    """

    base: float = 0.0
    adapter: float = 0.0
    samples: int = 0
    unknown: str = ""

    @property
    def accounted(self) -> float | None:
        """The share of the change that the adapter accounts for; None where there is none."""
        return 1 - self.adapter / self.base if self.base else None

    @property
    def words(self) -> str:
        """The conclusion, in a sentence."""
        if self.unknown:
            return f"what it does to the output was not measured: {self.unknown}"
        if self.accounted is None:
            return f"the output of the tuned model is the base's (on {plural(self.samples, 'sample')})"
        return (
            f"the adapter accounts for {self.accounted:.3g} of the change of the output: {self.adapter:.2g} apart from "
            f"the tuned model's, the base's {self.base:.2g} (relative L2, {plural(self.samples, 'sample')})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"accounted": self.accounted, "words": self.words}


class EffectMeasure:
    """Measures what an adapter does, on the inputs of the quick profile, in float32.

    Args:
        device: where the nets run.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def __call__(self, base: Analysis, tuned: Analysis, adapter: Adapter) -> Effect:
        """An effect, or why it cannot be measured."""
        family, spec = base.require(), spec_of(base.require())
        if spec is UNAVAILABLE:
            return Effect(unknown=f"the family {family.name} brings no reference net")
        if obstacle := spec.obstacle(base.findings):
            return Effect(unknown=obstacle)
        from ..parity.net_pair import is_resource_error
        from ..parity.statistics import relative

        # What is merged stays in float32: how a file in half precision would round it is another question.
        merged = merged_tensors(place_on(base, [(adapter, 1.0)]), lambda tensor: F32)
        try:
            with family.own_code("parity"), deterministic(self.device):
                findings = _findings(base)
                cases = spec.cases(findings, "quick", {})
                wanted = self._outputs(tuned, findings, cases)
                apart = []
                for changed in (None, merged):
                    outputs = self._outputs(base, findings, cases, changed)
                    errors = [relative(*each) for each in zip(outputs, wanted, strict=True)]
                    apart.append(math.sqrt(sum(error**2 for error in errors) / len(errors)))
        except UsageError as error:  # something of the model is unknown that its weights do not depend on
            return Effect(unknown=str(error))
        except Exception as error:
            if not is_resource_error(error):
                raise
            return Effect(unknown=f"this machine cannot run the nets: {error}")
        return Effect(apart[0], apart[1], sum(case.samples for case in cases))

    def _outputs(
        self,
        analysis: Analysis,
        findings: Findings,
        cases: Sequence[Case],
        changed: Mapping[str, LazyTensor] | None = None,
    ) -> list[Tensor]:
        """What the reference net of a model gives.

        Args:
            findings: say what the net is, the same for all, so that nothing but the weights differs.
            changed: take the place of some of its tensors.
        """
        import torch

        from ..nets import Weights

        family = analysis.require()
        state: dict[str, Any] = tensors_in(analysis, ORIGINAL, changed)
        for row in rows_of(analysis, Computed):
            if row.source not in state:
                state[row.source] = computed(row.source, table_of(family, row, findings))
        dtype = getattr(torch, FLOAT32)
        net = spec_of(family).reference(findings, Weights(state, dtype, self.device))
        return [net.forward(case.tensors(dtype, self.device)).cpu() for case in cases]


def _findings(base: Analysis) -> Findings:
    """What the base shows; what it does not and nobody stated, as a converted model has it, which suffices to tell one
    set of weights from another. Raises: `UsageError` for what is not known even so."""
    family, findings = base.require(), base.findings
    unknown = [name for name, finding in findings.items() if finding.source == "unknown" and name in family.flags]
    if not unknown:
        return findings
    hints = spec_of(family).config_hints(base.checkpoint.config or base.config())
    borrowed = {name: hints[name] for name in unknown if hints.get(name) is not None}
    return analyse(base.checkpoint, {**findings.given, **borrowed}, family.name).findings
