"""What two sets of weights are to each other, in a sentence."""

from __future__ import annotations

from ..checkpoint.weights_kind import LABELS
from ..errors import printable
from .weights import DIFFERENT, IDENTICAL, MODELS, ONLY_A, ONLY_B, ROUNDED, SAME, SHAPE, WeightsDiff

_NAMED = 4  # hyper-parameters in one line


def in_words(each: WeightsDiff) -> str:
    """What one set of weights is to another."""
    if each.weights_verdict == MODELS:
        reason = _disagreements(each) or "no tensor has the same key and shape on both sides"
        return f"different models: {reason}"
    if each.weights_verdict == IDENTICAL:
        verdict = f"identical: all {each.compared} tensors, byte for byte"
    elif each.weights_verdict == DIFFERENT:
        verdict = _tensor_counts(each)
    else:
        verdict = f"the same {_roundings(each)}"
    return "; ".join([verdict, *_caveats(each)])


def nearest(comparisons: list[WeightsDiff], choice: str) -> str:
    """Which of the two sets of weights in the file `choice` the other file holds, or else is nearest to."""
    best, second = sorted(comparisons, key=lambda each: each.distance)
    if best.weights_verdict == MODELS:
        return in_words(best)
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
        first = f"{differing} of {total} tensors differ, relative L2 {each.relative_l2:.2g} overall"
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
