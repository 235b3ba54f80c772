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
from ..checkpoint.folder import CONFIG
from ..checkpoint.write.transfer import Progress
from ..errors import InputError, printable
from .elements import measure
from .result import Diff
from .rounding import roundings
from .sides import Side, Tensors, about, check_comparable, open_side, with_copies
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
        >>> difference = diff("fixtures/golden/alpha-ms.pth", "fixtures/golden/alpha-ms.pth", weights_b="ema")
        >>> difference.words
        'B is the EMA weights of A, byte for byte; raw: relative L2 0.081'
    """
    with ExitStack() as stack:
        with reading(a):
            sides_a = open_side(
                stack, "A", a, weights=weights_a, state_dict_key=state_dict_key_a, hyper_parameters=hyper_parameters
            )
        with reading(b):
            sides_b = open_side(
                stack, "B", b, weights=weights_b, state_dict_key=state_dict_key_b, hyper_parameters=hyper_parameters
            )
        check_comparable(sides_a[0], sides_b[0])
        like_with_like = len(sides_a) > 1 and len(sides_b) > 1
        pairs = zip(sides_a, sides_b, strict=True) if like_with_like else product(sides_a, sides_b)
        weights = [_WeightsPair.of(*pair) for pair in pairs]
        step = progress(sum(each.nbytes for each in weights)) if progress else lambda count: None
        return Diff(about(sides_a), about(sides_b), [each.compare(step) for each in weights])


@dataclass
class _WeightsPair:
    """Two sets of weights under the keys of one layout."""

    a: Side
    b: Side
    weights: tuple[Tensors, Tensors]
    disagreements: list[Disagreement]
    notes: list[str]

    @classmethod
    def of(cls, a: Side, b: Side) -> _WeightsPair:
        original = a.analysis.diffusers != b.analysis.diffusers
        keyed_a, keyed_b = a.by_key(original), b.by_key(original)
        notes = keyed_a.notes + keyed_b.notes
        if not a.analysis.family:
            notes.append("no model family knows these files: compared by key, where the keys are the same")
        try:
            disagreements = list(_disagreements(a, b))
        except RecursionError:
            raise InputError.at(a.path, CONFIG, "nested too deeply to be compared") from None
        return cls(a, b, with_copies(keyed_a, keyed_b), disagreements, notes=notes)

    @property
    def tensors(self) -> list[tuple[str, bool, LazyTensor | None, LazyTensor | None]]:
        """(key, whether it is a buffer without a place in diffusers' layout, in A, in B), in A's order."""
        return [
            (key, buffer, tensors_a.get(key), tensors_b.get(key))
            for buffer, (tensors_a, tensors_b) in ((False, self.weights), (True, (self.a.buffers, self.b.buffers)))
            for key in tensors_a | tensors_b
        ]

    @property
    def nbytes(self) -> int:
        """What there is to read."""
        return sum(a.nbytes + b.nbytes for _, _, a, b in self.tensors if a and b)

    def compare(self, step: Callable[[int], None]) -> WeightsDiff:
        with ThreadPoolExecutor(WORKERS) as pool:
            tensors = list(pool.map(lambda each: _compare(*each, step=step), self.tensors))
        return WeightsDiff(
            weights_a=self.a.weights,
            weights_b=self.b.weights,
            tensors=[tensor for tensor in tensors if not tensor.one_sided_buffer],
            one_sided_buffers=[tensor for tensor in tensors if tensor.one_sided_buffer],
            disagreements=self.disagreements,
            notes=self.notes,
        )


def _compare(
    key: str, buffer: bool, a: LazyTensor | None, b: LazyTensor | None, *, step: Callable[[int], None]
) -> TensorDiff:
    """Compare a tensor. One that differs is read a second time, up to where no rounding explains the difference."""
    shape_and_dtype = [(side.shape, side.dtype.name) if side else None for side in (a, b)]
    result = partial(TensorDiff, key, buffer, a=shape_and_dtype[0], b=shape_and_dtype[1])
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
    found_a, found_b, family = a.analysis.found, b.analysis.found, a.analysis.family
    if family is None:
        return
    for name, one in found_a.items():
        other = found_b.get(name)
        if other and one.source == other.source == "file" and one.value != other.value:
            yield Disagreement(name, one.value, other.value, one.evidence, evidence_b=other.evidence)
    # Two configs hold more than what the family reads from them.
    configs = a.checkpoint.config, b.checkpoint.config
    for name in configs[0]:
        values = [config.get(name) for config in configs]
        ignorable = family.ignorable_config.get(name, ())
        ignored = name.startswith("_") or name in found_a or ignorable is None or any(v in ignorable for v in values)
        if not ignored and None not in values and values[0] != values[1]:
            yield Disagreement(printable(name), _plain(values[0]), _plain(values[1]), CONFIG, evidence_b=CONFIG)


def _plain(value: Any) -> Any:
    """A field of `config.json`, which may be anything; lists and the like as text."""
    plain = isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else printable(value)
