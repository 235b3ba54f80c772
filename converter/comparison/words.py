"""The conclusion in words."""

from __future__ import annotations

from ..checkpoint.weights_kind import LABELS as SPOKEN
from ..errors import printable
from .result import DIFFERENT, IDENTICAL, MODELS, ONLY_A, ONLY_B, ROUNDED, SAME, SHAPE, Diff, TensorDiff, WeightsDiff
from .rounding import Rounding

NAMED = 4  # hyper-parameters in one line


def of_diff(found: Diff) -> str:
    """What the two files are to each other, in one line."""
    if found.choice:
        return _nearest(found)
    if len(found.comparisons) == 1:
        return of_comparison(found.comparisons[0])
    return "; ".join(f"{SPOKEN[each.weights_a]} weights: {of_comparison(each)}" for each in found.comparisons)


def _nearest(found: Diff) -> str:
    """Which of the two sets of weights in one file the other file holds, or else is nearest to."""
    both, other = found.choice, "B" if found.choice == "A" else "A"
    best, *further = sorted(found.comparisons, key=lambda each: each.distance)
    if best.weights_verdict == MODELS:
        return of_comparison(best)
    alike = [each for each in further if each.distance == best.distance]
    apart = [f"{_kind(found, each)}: {_distance(each)}" for each in further if each not in alike]
    names = " and ".join(_kind(found, each) for each in [best, *alike])
    if best.weights_verdict == DIFFERENT:
        said = f"{other} is nearest to the {names} weights of {both}: {_tensors(best)}"
    else:
        how = "byte for byte" if best.weights_verdict == IDENTICAL else _alike(best)
        said = f"{other} is the {names} weights of {both}, {'which are the same, ' if alike else ''}{how}"
    return "; ".join([said, *apart, *_beside(best)])


def _kind(found: Diff, each: WeightsDiff) -> str:
    return SPOKEN[each.weights_a if found.choice == "A" else each.weights_b]


def _distance(each: WeightsDiff) -> str:
    near = {IDENTICAL: "byte for byte", MODELS: "of another model"}
    return near.get(each.weights_verdict, f"relative L2 {each.relative_l2:.2g}")


def of_comparison(each: WeightsDiff) -> str:
    """What one set of weights is to another."""
    if each.weights_verdict == MODELS:
        return f"different models: {_hyper(each) or 'no tensor has the same key and shape on both sides'}"
    if each.weights_verdict == IDENTICAL:
        said = f"identical: all {each.compared} tensors, byte for byte"
    elif each.weights_verdict == DIFFERENT:
        said = _tensors(each)
    else:
        said = f"the same {_alike(each)}"
    return "; ".join([said, *_beside(each)])


def _hyper(each: WeightsDiff) -> str:
    pairs = [f"{item.name} {printable(item.a)} and {printable(item.b)}" for item in each.disagreements]
    return ", ".join(pairs[:NAMED]) + (", ..." if len(pairs) > NAMED else "")


def _beside(each: WeightsDiff) -> list[str]:
    """What the tensors' distance does not show."""
    numbers = [tensor.numbers for tensor in each.tensors if tensor.numbers]
    counts = {"A": sum(n.nonfinite_a for n in numbers), "B": sum(n.nonfinite_b for n in numbers)}
    broken = ", ".join(f"{count} in {letter}" for letter, count in counts.items() if count)
    said = [f"elements that are not finite: {broken}"] if broken else []
    return said + ([f"but the models differ: {_hyper(each)}"] if each.disagreements else [])


def _tensors(each: WeightsDiff) -> str:
    differing, total = each.counts[DIFFERENT], each.compared
    said = f"{differing} of {total} tensors differ, relative L2 {each.relative_l2:.2g} overall"
    names = {ROUNDED: "are roundings", SAME: "the same in another dtype"} if differing else {}
    if not differing:
        said = f"the {total} tensors that both have are the same" + (" but for rounding" if each.rounded else "")
    names |= {ONLY_A: ONLY_A, ONLY_B: ONLY_B, SHAPE: "of another shape"}
    return ", ".join([said, *(f"{each.counts[kind]} {name}" for kind, name in names.items() if each.counts[kind])])


def _alike(each: WeightsDiff) -> str:
    """But for rounding: which side is whose, and of how many tensors; or else in other dtypes, and nothing is lost."""
    total, same = each.compared, [tensor for tensor in each.tensors if tensor.kind == SAME]
    ways = [f"{way}{_stored(way, of)} ({len(of)} of {total} tensors)" for way, of in each.rounded.items()]
    kinds = sorted({f"{tensor.a[1]} in A and {tensor.b[1]} in B" for tensor in same if tensor.a and tensor.b})
    lossless = f"{', '.join(kinds)} ({len(same)} of {total} tensors), and nothing is lost"
    if not ways:
        return f"in other dtypes: {lossless}"
    return f"but for rounding: {', '.join([*ways, *([lossless] if same else [])])}"


def _stored(way: Rounding, tensors: list[TensorDiff]) -> str:
    """Where rounded numbers are kept in another dtype than the one that they were rounded to."""
    kinds = {side[1] for each in tensors if (side := each.a if way.side == "A" else each.b)} - {way.to.name}
    return f" and stored as {', '.join(sorted(kinds))}" if kinds else ""
