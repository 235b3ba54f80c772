"""How two checkpoints differ: what `converter.diff` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from .weights import IDENTICAL, ROUNDING_ONLY, WeightsDiff, json_number
from .words import in_words, weights_in_words


@dataclass
class Diff:
    """How two checkpoints differ; what `converter.diff` returns.

    Attributes:
        a, b: what they are.
        comparisons: one; or where one file holds raw and EMA weights, of both with the other file's; or where both
            do, of the raw ones and of the EMA ones.
    """

    a: dict[str, Any]
    b: dict[str, Any]
    comparisons: list[WeightsDiff]

    @property
    def choice(self) -> str:
        """'A' or 'B': the file of which the nearest of its two sets of weights is looked for; else ''."""
        sets = {letter: len(side["weights"]) for letter, side in (("A", self.a), ("B", self.b))}
        return next((letter for letter in sets if sets[letter] > 1), "") if min(sets.values()) == 1 else ""

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
        return in_words(self.comparisons, self.choice)

    def same(self, *, rounding_ok: bool = False) -> bool:
        """Whether it is one model: identical, or with `rounding_ok` the same but for rounding."""
        return self.verdict == IDENTICAL or (rounding_ok and self.verdict == ROUNDING_ONLY)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "verdict": self.verdict,
            "words": self.words,
            "a": self.a,
            "b": self.b,
            "decisive": self.comparisons.index(self.decisive),
            "comparisons": [_as_dict(each) for each in self.comparisons],
        }


def _as_dict(each: WeightsDiff) -> dict[str, Any]:
    """JSON-ready; of identical tensors only the number."""
    return {
        "weights_a": each.weights_a,
        "weights_b": each.weights_b,
        "verdict": each.verdict,
        "words": weights_in_words(each),
        "relative_l2": json_number(each.relative_l2),
        "counts": dict(each.counts),
        "tensors": [tensor.as_dict() for tensor in each.tensors if tensor.kind != IDENTICAL],
        "apart": [tensor.as_dict() for tensor in each.apart],
        "hyper_parameters": [asdict(item) for item in each.disagreements],
        "notes": each.notes,
    }
