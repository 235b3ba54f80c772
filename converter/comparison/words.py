"""The conclusion of a comparison in words."""

from __future__ import annotations

from ..checkpoint.weights_kind import LABELS as SPOKEN
from ..errors import printable
from .rounding import Rounding
from .weights import DIFFERENT, IDENTICAL, MODELS, ONLY_A, ONLY_B, ROUNDED, SAME, SHAPE, TensorDiff, WeightsDiff

NAMED = 4  # hyper-parameters in one line


def in_words(comparisons: list[WeightsDiff], choice: str) -> str:
    """What the two files are to each other, in one line.

    Args:
        choice: 'A' or 'B', the file of which the nearest of its two sets of weights is named; '' where there is none.
    """
    if choice:
        return _nearest(comparisons, choice)
    if len(comparisons) == 1:
        return weights_in_words(comparisons[0])
    return "; ".join(f"{SPOKEN[each.weights_a]} weights: {weights_in_words(each)}" for each in comparisons)


def weights_in_words(each: WeightsDiff) -> str:
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


def _nearest(comparisons: list[WeightsDiff], choice: str) -> str:
    """Which of the two sets of weights in one file the other file holds, or else is nearest to."""
    best, *others = sorted(comparisons, key=lambda each: each.distance)
    if best.weights_verdict == MODELS:
        return weights_in_words(best)

    def kind(each: WeightsDiff) -> str:
        return SPOKEN[each.weights_a if choice == "A" else each.weights_b]

    other = "B" if choice == "A" else "A"
    ties = [each for each in others if each.distance == best.distance]
    farther = [f"{kind(each)}: {_distance(each)}" for each in others if each not in ties]
    names = " and ".join(map(kind, [best, *ties]))
    if best.weights_verdict == DIFFERENT:
        verdict = f"{other} is nearest to the {names} weights of {choice}: {_tensor_counts(best)}"
    else:
        how = "byte for byte" if best.weights_verdict == IDENTICAL else _roundings(best)
        verdict = f"{other} is the {names} weights of {choice}, {'which are the same, ' if ties else ''}{how}"
    return "; ".join([verdict, *farther, *_caveats(best)])


def _distance(each: WeightsDiff) -> str:
    names = {IDENTICAL: "byte for byte", MODELS: "of another model"}
    return names.get(each.weights_verdict, f"relative L2 {each.relative_l2:.2g}")


def _disagreements(each: WeightsDiff) -> str:
    pairs = [f"{item.name} {printable(item.a)} and {printable(item.b)}" for item in each.disagreements]
    return ", ".join(pairs[:NAMED]) + (", ..." if len(pairs) > NAMED else "")


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
    """But for rounding: which side is whose, and of how many tensors; or else in other dtypes, and nothing is lost."""
    total, same = each.compared, [tensor for tensor in each.tensors if tensor.kind == SAME]
    ways = [f"{way}{_stored_as(way, of)} ({len(of)} of {total} tensors)" for way, of in each.rounded.items()]
    dtypes = sorted({f"{tensor.a[1]} in A and {tensor.b[1]} in B" for tensor in same if tensor.a and tensor.b})
    lossless = f"{', '.join(dtypes)} ({len(same)} of {total} tensors), and nothing is lost"
    if not ways:
        return f"in other dtypes: {lossless}"
    return f"but for rounding: {', '.join([*ways, *([lossless] if same else [])])}"


def _stored_as(way: Rounding, tensors: list[TensorDiff]) -> str:
    """Where rounded numbers are kept in another dtype than the one that they were rounded to."""
    dtypes = {side[1] for each in tensors if (side := each.a if way.side == "A" else each.b)} - {way.to.name}
    return f" and stored as {', '.join(sorted(dtypes))}" if dtypes else ""
