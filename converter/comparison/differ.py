"""`diff`: how two checkpoints differ, tensor by tensor, whatever their layouts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from ..checkpoint import LazyTensor
from ..checkpoint.file import reading
from ..checkpoint.folders.folder import CONFIG
from ..checkpoint.write.transfer import Progress
from ..errors import InputError, printable
from .elements import measure
from .result import Diff
from .rounding import roundings
from .sides import Side, Tensors, check_comparable, matched, open_side
from .weights import (
    DIFFERENT,
    IDENTICAL,
    ONLY_A,
    ONLY_B,
    ROUNDED,
    SAME,
    SHAPE,
    Disagreement,
    TensorDiff,
    WeightsDiff,
)

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
        >>> found = diff("fixtures/golden/alpha-ms.pth", "fixtures/golden/alpha-ms.pth", weights_b="ema")
        >>> found.words
        'B is the EMA weights of A, byte for byte; raw: relative L2 0.081'
    """
    with ExitStack() as stack:
        with reading(a):
            ones = open_side(
                stack, "A", a, weights=weights_a, state_dict_key=state_dict_key_a, hyper_parameters=hyper_parameters
            )
        with reading(b):
            others = open_side(
                stack, "B", b, weights=weights_b, state_dict_key=state_dict_key_b, hyper_parameters=hyper_parameters
            )
        check_comparable(ones[0], others[0])
        like_with_like = len(ones) > 1 and len(others) > 1
        pairs = list(zip(ones, others, strict=True)) if like_with_like else list(product(ones, others))
        planned = [_Pair.of(one, other) for one, other in pairs]
        step = progress(sum(pair.nbytes for pair in planned)) if progress else lambda count: None
        return Diff(_about(ones), _about(others), [pair.compare(step) for pair in planned])


def _about(sides: list[Side]) -> dict[str, Any]:
    """What a file is; the weights are all that are compared."""
    made = sides[0].about
    source = {name: made["source"][name] for name in ("name", "size", "container", "prefix")}
    return source | {"weights": [side.weights for side in sides]} | {k: v for k, v in made.items() if k != "source"}


@dataclass
class _Pair:
    """Two sets of weights under one spelling of their keys."""

    a: Side
    b: Side
    weights: tuple[Tensors, Tensors]
    disagreements: list[Disagreement]
    notes: list[str]

    @classmethod
    def of(cls, a: Side, b: Side) -> _Pair:
        original = a.looked.diffusers != b.looked.diffusers
        one, other = a.spelled(original), b.spelled(original)
        notes = one.notes + other.notes
        if not a.looked.family:
            notes.append("no model family knows these files: compared by key, where the keys are the same")
        try:
            apart = list(_disagreements(a, b))
        except RecursionError:
            raise InputError.at(a.path, CONFIG, "nested too deeply to be compared") from None
        return cls(a, b, matched(one, other), disagreements=apart, notes=notes)

    @property
    def jobs(self) -> list[tuple[str, bool, LazyTensor | None, LazyTensor | None]]:
        """(key, whether it is a buffer without a home in diffusers' layout, in A, in B), in A's order."""
        return [
            (key, buffer, one.get(key), other.get(key))
            for buffer, (one, other) in ((False, self.weights), (True, (self.a.buffers, self.b.buffers)))
            for key in one | other
        ]

    @property
    def nbytes(self) -> int:
        """What there is to read."""
        return sum(one.nbytes + other.nbytes for _, _, one, other in self.jobs if one and other)

    def compare(self, step: Callable[[int], None]) -> WeightsDiff:
        with ThreadPoolExecutor(WORKERS) as pool:
            found = list(pool.map(lambda job: _tensor(*job, step=step), self.jobs))
        return WeightsDiff(
            weights_a=self.a.weights,
            weights_b=self.b.weights,
            tensors=[tensor for tensor in found if not tensor.homeless],
            apart=[tensor for tensor in found if tensor.homeless],
            disagreements=self.disagreements,
            notes=self.notes,
        )


def _tensor(
    key: str, buffer: bool, a: LazyTensor | None, b: LazyTensor | None, *, step: Callable[[int], None]
) -> TensorDiff:
    """Compare a tensor. One that differs is read a second time, up to where no rounding explains the difference."""
    shown = [(side.shape, side.dtype.name) if side else None for side in (a, b)]
    of = partial(TensorDiff, key, buffer, a=shown[0], b=shown[1])
    if a is None or b is None:
        return of(kind=ONLY_B if a is None else ONLY_A)
    if a.shape != b.shape:
        step(a.nbytes + b.nbytes)
        return of(kind=SHAPE)
    numbers = measure(a, b, step)
    if not numbers.differing:
        return of(kind=IDENTICAL if a.dtype == b.dtype else SAME, numbers=numbers)
    ways = roundings(a, b)
    return of(kind=ROUNDED if ways else DIFFERENT, numbers=numbers, roundings=ways)


def _disagreements(a: Side, b: Side) -> Iterator[Disagreement]:
    """What both files show, and not alike. What is only assumed of one of them is no evidence."""
    one, other, family = a.looked.found, b.looked.found, a.looked.family
    if family is None:
        return
    for name in one:
        if name in other and one[name].source == other[name].source == "file" and one[name].value != other[name].value:
            evidence = {"evidence_a": one[name].evidence, "evidence_b": other[name].evidence}
            yield Disagreement(name, one[name].value, other[name].value, **evidence)
    # Two folders say more of themselves than the family reads off them.
    ours, theirs = a.checkpoint.config, b.checkpoint.config
    for name, value in ours.items():
        alike = family.ignorable_config.get(name, ())
        inert = name.startswith("_") or alike is None or value in alike or theirs.get(name) in alike
        if name not in one and not inert and None not in (value, theirs.get(name)) and value != theirs[name]:
            values = _plain(value), _plain(theirs[name])
            yield Disagreement(printable(name), *values, evidence_a=CONFIG, evidence_b=CONFIG)


def _plain(value: Any) -> Any:
    """A field of `config.json`, which may be anything; lists and the like as text."""
    plain = isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else printable(value)
