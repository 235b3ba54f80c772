"""`diff`: how two checkpoints differ, tensor by tensor, whatever their layouts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import product
from typing import Any

from ..checkpoint.folder import CONFIG
from ..checkpoint.write.transfer import Progress
from ..errors import InputError, printable
from .elements import measure, roundings
from .result import Diff
from .sides import Side, TensorPair, about, check_comparable, open_side, pairs
from .weights import DIFFERENT, IDENTICAL, ONLY_A, ONLY_B, ROUNDED, SAME, SHAPE, Disagreement, TensorDiff, WeightsDiff

WORKERS = 2  # reading, comparing and checksums run without the interpreter's lock


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    weights_a: str | None = None,
    weights_b: str | None = None,
    state_dict_key_a: str | None = None,
    state_dict_key_b: str | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
    progress: Callable[[int], Progress] | None = None,
) -> Diff:
    """Compare two checkpoints, tensor by tensor, in whichever layouts they are.

    Two layouts are compared under the original's keys, one under its own. Every byte of both is read, in blocks:
    memory does not grow with the tensors.

    Args:
        a, b: any accepted file or folder.
        weights_a, weights_b: 'raw' or 'ema', where a file holds both. By default, both are compared with
            the other file's, or like with like if that holds both too.
        state_dict_key_a, state_dict_key_b: where in a file the weights lie, where it holds several state dicts.
        hyper_parameters: what the user states of both, by name.
        progress: called with the number of bytes to come, of both sides; returns what is called with each count done.

    Returns: a `Diff`.

    Raises: `InputError` (exit code 3) for a file that is refused, or where the two are of different model families;
    `UsageError` (2) for weights that a file does not hold.

    Example:
        >>> difference = diff("fixtures/golden/alpha-ms.pth", "fixtures/golden/alpha-ms.pth", weights_b="ema")
        >>> difference.words
        'B is the EMA weights of A, byte for byte; raw: relative L2 0.081'
    """
    with ExitStack() as stack:
        asked = {"A": (a, weights_a, state_dict_key_a), "B": (b, weights_b, state_dict_key_b)}
        sides_a, sides_b = (
            open_side(path, letter, stack, weights=weights, state_dict_key=key, hyper_parameters=hyper_parameters)
            for letter, (path, weights, key) in asked.items()
        )
        check_comparable(sides_a[0], sides_b[0])
        like_with_like = len(sides_a) > 1 and len(sides_b) > 1
        sides = [*(zip(sides_a, sides_b, strict=True) if like_with_like else product(sides_a, sides_b))]
        paired = [pairs(*each) for each in sides]
        step = progress(sum(pair.nbytes for each, _ in paired for pair in each)) if progress else lambda count: None
        comparisons = [
            _weights(one, other, tensors, notes, step=step)
            for (one, other), (tensors, notes) in zip(sides, paired, strict=True)
        ]
        return Diff(about(sides_a), about(sides_b), comparisons)


def _weights(
    a: Side, b: Side, tensors: list[TensorPair], notes: list[str], *, step: Callable[[int], None]
) -> WeightsDiff:
    if not a.analysis.family:
        notes = [*notes, "no model family knows these files: compared by key, where the keys are the same"]
    try:
        disagreements = list(_disagreements(a, b))
    except RecursionError:
        raise InputError.at(a.path, CONFIG, "nested too deeply to be compared") from None
    with ThreadPoolExecutor(WORKERS) as pool:
        diffs = list(pool.map(lambda pair: _compare(pair, step), tensors))
    apart = [each for each in diffs if each.one_sided_buffer]
    compared = [each for each in diffs if not each.one_sided_buffer]
    return WeightsDiff(a.weights, b.weights, compared, apart, disagreements=disagreements, notes=notes)


def _compare(pair: TensorPair, step: Callable[[int], None]) -> TensorDiff:
    """Compare a tensor. One that differs is read a second time, up to where no rounding explains the difference."""
    key, buffer, a, b = pair
    of_a, of_b = ((side.shape, side.dtype.name) if side else None for side in (a, b))
    result = partial(TensorDiff, key, buffer, a=of_a, b=of_b)
    if a is None or b is None:
        return result(kind=ONLY_B if a is None else ONLY_A)
    if a.shape != b.shape:
        step(a.nbytes + b.nbytes)
        return result(kind=SHAPE)
    numbers = measure(a, b, step)
    if not numbers.differing:
        return result(kind=IDENTICAL if a.dtype == b.dtype else SAME, numbers=numbers)
    explained = roundings(a, b)
    return result(kind=ROUNDED if explained else DIFFERENT, numbers=numbers, roundings=explained)


def _disagreements(a: Side, b: Side) -> Iterator[Disagreement]:
    """Hyper-parameters that both files show, and not alike. What is only assumed of one of them is no evidence."""
    found_a, found_b, family = a.analysis.findings, b.analysis.findings, a.analysis.family
    if family is None:
        return
    for name, finding in found_a.items():
        theirs = found_b.get(name)
        if theirs and finding.source == theirs.source == "file" and finding.value != theirs.value:
            yield Disagreement(name, finding.value, theirs.value, finding.evidence, evidence_b=theirs.evidence)
    # Two configs hold more than what the family reads from them.
    for name, one in a.checkpoint.config.items():
        other, ignorable = b.checkpoint.config.get(name), family.ignorable_config.get(name, ())
        ignored = name.startswith("_") or name in found_a or ignorable is None or one in ignorable or other in ignorable
        if not ignored and one is not None and other is not None and one != other:
            yield Disagreement(printable(name), _plain(one), _plain(other), CONFIG, evidence_b=CONFIG)


def _plain(value: Any) -> Any:
    """A field of `config.json`, which may be anything; lists and the like as text."""
    plain = isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else printable(value)
