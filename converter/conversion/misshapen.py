"""What all weights of a file have in common that no such model has: they are integers, flat, transposed, or parts."""

from __future__ import annotations

from collections.abc import Callable

from ..checkpoint import Checkpoint
from ..mapping import Plan, fold
from ..mapping.dims import Pattern, bind, mismatch


def not_weights(checkpoint: Checkpoint) -> list[str]:
    """Which tensors are no floats."""
    wrong: dict[str, list[str]] = {}
    for key, tensor in checkpoint.items():
        if not tensor.dtype.floating:
            wrong.setdefault(tensor.dtype.name, []).append(key)
    return [
        f"{key} is {dtype}, and weights are floating point (a quantised model?)"
        for dtype, keys in wrong.items()
        for key in fold(keys)
    ]


def flat(checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """Whether every matrix has lost its shape."""
    matrices = _matrices(checkpoint, plan)
    if not matrices or any(len(shape) != 1 for _, _, shape in matrices):
        return []
    return ["every weight is flat: this looks like an FSDP or ZeRO shard; gather a full state dict first"]


def misshapen(checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """Whether all matrices would fit the table if one and the same thing were undone in every one of them."""
    matrices = [(k, p, s) for k, p, s in _matrices(checkpoint, plan) if len(p) == len(s) == 2]

    def fits(undone: Callable[[int, int], tuple[int, int]]) -> bool:
        shapes = [(key, pattern, undone(*shape)) for key, pattern, shape in matrices]
        dims, _ = bind(shapes)
        return not any(mismatch(pattern, shape, dims) for _, pattern, shape in shapes)

    if not plan.problems or fits(lambda rows, columns: (rows, columns)):
        return []
    if fits(lambda rows, columns: (columns, rows)):
        return ["every matrix is transposed: this looks like a Flax or JAX export"]

    def joined(parts: int) -> Callable[[int, int], tuple[int, int]]:
        return lambda rows, columns: (rows * parts, columns)

    for parts in range(2, 65):
        if fits(joined(parts)):
            return [
                f"every matrix has 1/{parts} of its rows: this looks like one of {parts} tensor-parallel shards; "
                "put them together first"
            ]
    return []


def _matrices(checkpoint: Checkpoint, plan: Plan) -> list[tuple[str, Pattern, tuple[int, ...]]]:
    """Key, pattern and shape of every weight that ought to have more than one axis."""
    return [
        (key, move.row.pattern, tuple(checkpoint[key].shape))
        for move in plan.moves
        for key in move.sources
        if len(move.row.pattern) > 1 and key.endswith(".weight")
    ]
