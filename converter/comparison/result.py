"""How two checkpoints differ: what `converter.diff` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ..checkpoint.weights_kind import LABELS
from ..reports.report import as_json
from .weights import IDENTICAL, ROUNDING_ONLY, WeightsDiff
from .words import in_words, nearest


@dataclass
class Diff:
    """How two checkpoints differ; what `converter.diff` returns.

    Attributes:
        a, b: what they are.
        comparisons: one; two where one file holds raw and EMA weights (each with the other file's) or both do (like
            with like).
    """

    a: dict[str, Any]
    b: dict[str, Any]
    comparisons: list[WeightsDiff]

    @property
    def choice(self) -> str:
        """'A' or 'B': the file with two sets of weights, the nearest of which is named; '' if both or none has two."""
        several = [letter for letter, side in (("A", self.a), ("B", self.b)) if len(side["weights"]) > 1]
        return several[0] if len(several) == 1 else ""

    @cached_property
    def decisive(self) -> WeightsDiff:
        """The nearest where there is a choice; else the one that differs most."""
        return (min if self.choice else max)(self.comparisons, key=lambda each: each.distance)

    @property
    def verdict(self) -> str:
        """'identical', 'rounding only', 'different' or 'different models'."""
        return self.decisive.verdict

    @property
    def words(self) -> str:
        """The conclusion, in a sentence."""
        if self.choice:
            return nearest(self.comparisons, self.choice)
        if len(self.comparisons) == 1:
            return in_words(self.comparisons[0])
        return "; ".join(f"{LABELS[each.weights_a]} weights: {in_words(each)}" for each in self.comparisons)

    def same(self, *, rounding_ok: bool = False) -> bool:
        """Whether it is one model: identical, or with `rounding_ok` the same but for rounding."""
        return self.verdict == IDENTICAL or (rounding_ok and self.verdict == ROUNDING_ONLY)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; of identical tensors only the number."""
        comparisons = [
            {
                "weights_a": each.weights_a,
                "weights_b": each.weights_b,
                "verdict": each.verdict,
                "words": in_words(each),
                "relative_l2": each.relative_l2,
                "counts": dict(each.counts),
                "tensors": [tensor.as_dict() for tensor in each.tensors if tensor.kind != IDENTICAL],
                "apart": [tensor.as_dict() for tensor in each.one_sided_buffers],
                "hyper_parameters": [asdict(item) for item in each.disagreements],
                "notes": each.notes,
            }
            for each in self.comparisons
        ]
        about = {"verdict": self.verdict, "words": self.words, "a": self.a, "b": self.b}
        decisive = self.comparisons.index(self.decisive)
        content: dict[str, Any] = as_json(about | {"decisive": decisive, "comparisons": comparisons})
        return content
