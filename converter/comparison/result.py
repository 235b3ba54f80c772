"""How two checkpoints differ: what `converter.diff` returns, and its conclusion in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ..checkpoint.weights_kind import LABELS
from ..errors import plural, printable
from ..reports.report import as_json
from .weights import DIFFERENT, IDENTICAL, MODELS, ONLY_A, ONLY_B, ROUNDED, ROUNDING_ONLY, SAME, SHAPE, WeightsDiff

_NAMED = 4  # hyper-parameters in one line


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
            return _nearest(self.comparisons, self.choice)
        if len(self.comparisons) == 1:
            return _in_words(self.comparisons[0])
        return "; ".join(f"{LABELS[each.weights_a]} weights: {_in_words(each)}" for each in self.comparisons)

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
                "words": _in_words(each),
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


def _in_words(each: WeightsDiff) -> str:
    """What one set of weights is to another."""
    if each.weights_verdict == MODELS:
        return f"{MODELS}: {_disagreements(each) or 'no tensor has the same key and shape on both sides'}"
    if each.weights_verdict == DIFFERENT:
        verdict = _tensor_counts(each)
    elif each.weights_verdict == IDENTICAL:
        verdict = f"identical: all {each.compared} tensors, byte for byte"
    else:
        verdict = f"the same {_roundings(each)}"
    return "; ".join([verdict, *_caveats(each)])


def _nearest(comparisons: list[WeightsDiff], choice: str) -> str:
    """Which of the two sets of weights in the file `choice` the other file holds, or else is nearest to."""
    best, second = sorted(comparisons, key=lambda each: each.distance)
    if best.weights_verdict == MODELS:
        return _in_words(best)
    other = "B" if choice == "A" else "A"
    name, farther = (LABELS[each.weights_a if choice == "A" else each.weights_b] for each in (best, second))
    tie = best.distance == second.distance
    names = f"{name} and {farther}" if tie else name
    if best.weights_verdict == DIFFERENT:
        verdict = f"{other} is nearest to the {names} weights of {choice}: {_tensor_counts(best)}"
    else:
        how = "byte for byte" if best.weights_verdict == IDENTICAL else _roundings(best)
        verdict = f"{other} is the {names} weights of {choice}, {'which are the same, ' if tie else ''}{how}"
    distances = {IDENTICAL: "byte for byte", MODELS: "of another model"}
    distance = distances.get(second.weights_verdict, f"relative L2 {second.relative_l2:.2g}")
    return "; ".join([verdict, *([] if tie else [f"{farther}: {distance}"]), *_caveats(best)])


def _disagreements(each: WeightsDiff) -> str:
    pairs = [f"{item.name} {printable(item.a)} and {printable(item.b)}" for item in each.disagreements]
    return ", ".join(pairs[:_NAMED]) + (", ..." if len(pairs) > _NAMED else "")


def _caveats(each: WeightsDiff) -> list[str]:
    """What the tensors' distance does not show."""
    numbers = [tensor.numbers for tensor in each.tensors if tensor.numbers]
    counts = {"A": sum(n.nonfinite_a for n in numbers), "B": sum(n.nonfinite_b for n in numbers)}
    nonfinite = ", ".join(f"{count} in {letter}" for letter, count in counts.items() if count)
    caveats = [f"elements that are not finite: {nonfinite}"] if nonfinite else []
    return caveats + ([f"but the models differ: {_disagreements(each)}"] if each.disagreements else [])


def _tensor_counts(each: WeightsDiff) -> str:
    differing, total = each.counts[DIFFERENT], each.compared
    if differing:
        buffers = sum(tensor.kind == DIFFERENT and tensor.buffer for tensor in each.tensors)
        aside = f" without {plural(buffers, 'buffer')}" if buffers else ""
        first = f"{differing} of {total} tensors differ, relative L2 {each.relative_l2:.2g} overall{aside}"
        names = {ROUNDED: "are roundings", SAME: "the same in another dtype"}
    else:
        first = f"the {total} tensors that both have are the same" + (" but for rounding" if each.rounded else "")
        names = {}
    names |= {ONLY_A: ONLY_A, ONLY_B: ONLY_B, SHAPE: "of another shape"}
    return ", ".join([first, *(f"{each.counts[kind]} {name}" for kind, name in names.items() if each.counts[kind])])


def _roundings(each: WeightsDiff) -> str:
    """Which side is a rounding of the other, and of how many tensors; or that the dtypes differ and no number does."""
    shares = []
    for how, tensors in each.rounded.items():
        sides = [tensor.a if how.side == "A" else tensor.b for tensor in tensors]
        stored = ", ".join(sorted({side[1] for side in sides if side} - {how.to.name}))
        shares.append((f"{how} and stored as {stored}" if stored else str(how), tensors, ""))
    if same := [tensor for tensor in each.tensors if tensor.kind == SAME]:
        dtypes = sorted({f"{tensor.a[1]} in A and {tensor.b[1]} in B" for tensor in same if tensor.a and tensor.b})
        shares.append((", ".join(dtypes), same, ", and nothing is lost"))
    words = ", ".join(f"{words} ({len(of)} of {each.compared} tensors){more}" for words, of, more in shares)
    return f"{'but for rounding' if each.rounded else 'in other dtypes'}: {words}"
