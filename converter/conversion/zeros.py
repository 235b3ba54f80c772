"""All-zero tensors: some an initialisation leaves so, others only an incomplete file.

A download that reserves its space first has the right size and a sound header from the beginning on, and zeros where
nothing came. Nothing else tells: `.safetensors` files have no checksums.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..checkpoint import LazyTensor
from ..checkpoint.cast import trailing_zeros
from ..errors import InputError, printable
from ..mapping import Plan, fold
from ..mapping.rows import Row

SHOWN = 12  # names, folded over the blocks
FEWEST_ROWS = 2  # at the end of a matrix: a single one may be meant, as that of no class
ALLOWED = "`allow_zeros` converts them as they are"


@dataclass
class Zeros:
    """What of a model is zero.

    Attributes:
        untrained: keys that are zero as an initialisation leaves them.
        others: more that may be zero throughout: buffers, and every tensor of a family that marks nothing as
            `ZeroInit`.
        lost: keys, or "key (which part of it)", that are zero throughout and are so in no training; those first that
            are so in no initialisation either.
        ends: "the last rows of ...", where all that follows in the file is zero as well.
    """

    untrained: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    @property
    def refused(self) -> str:
        """Why this is no sound model, in words; '' where it may be one."""
        count = len(self.lost)
        are, them = ("1 tensor is", "it") if count == 1 else (f"{count} tensors are", "them")
        reasons = [f"{are} zero throughout, as no training leaves {them}: {listed(self.lost)}"] if count else []
        reasons += [f"{end} are zero, where the file ends" for end in self.ends]
        if not reasons:
            return ""
        others = [*self.untrained, *self.others]
        more = f"; zero as well: {listed(others)}" if others else ""
        return f"{'; '.join(reasons)}{more} (was its download completed?)"

    @property
    def notes(self) -> list[str]:
        """What the user should know of what is not refused."""
        if self.refused:
            return []  # which names all of it
        result = [f"{listed(self.others)}: zero throughout"] if self.others else []
        if self.untrained:
            result.append(f"zero throughout, as initialised, and so not trained yet: {listed(self.untrained)}")
        return result


def refuse_zeros(path: str, refused: str, allowed: bool) -> list[str]:
    """A note on zeros that are let through. Raises: `InputError` where they are not allowed."""
    if refused and not allowed:
        raise InputError(f"{printable(path)}: {refused}; {ALLOWED}")
    return [f"{refused}: let through"] if refused else []


def listed(names: Iterable[str]) -> str:
    """Names folded over the blocks, and how many more there are."""
    shown = fold(names)
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")


def trailing_zero_counts(tensor: LazyTensor, parts: int = 1) -> list[int]:
    """Of each of so many equal runs of a tensor's rows, how many elements at its end are zero.

    The last row is read first, which mostly is enough.
    """
    if parts == 1:
        return [_trailing_zero_count(tensor)]
    step = tensor.shape[0] // parts
    return [_trailing_zero_count(tensor[part * step : (part + 1) * step]) for part in range(parts)]


def _trailing_zero_count(tensor: LazyTensor) -> int:
    zeros = 0
    for part in (*([tensor[tensor.shape[0] - 1 :]] if tensor.shape else []), tensor):
        zeros = 0
        for _, piece in part.chunks():
            zeros = trailing_zeros(piece, tensor.dtype, zeros)
        if zeros < part.numel:
            break
    return zeros


@dataclass(frozen=True)
class _Unit:
    """A tensor of the model, or the part of one that another layout has as a tensor of its own."""

    row: Row
    key: str
    index: int | None
    suffix: str
    part: int
    zero: bool

    @property
    def bias(self) -> bool:
        return self.key.endswith(".bias")

    @property
    def initial(self) -> bool:
        """Whether an initialisation leaves it at zero."""
        return self.row.zero_init or self.bias

    @property
    def alike(self) -> tuple[str, str, int]:
        """What it has in common with its like in other blocks."""
        return self.row.source, self.suffix, self.part


def find_zeros(plan: Plan, tensors: Mapping[str, LazyTensor]) -> Zeros:
    """`judge` of tensors whose ends are read here, and those that are zero there to their beginning.

    The plan may have problems: a tensor whose rows do not split as they should is looked at whole.
    """
    groups = {move.origin: move.operation.groups(len(move.parts)) for move in plan.moves}
    ends = {}
    for key, tensor in tensors.items():
        wanted, rows = groups.get(key, 1), tensor.shape[0] if tensor.shape else 1
        ends[key] = trailing_zero_counts(tensor, wanted if rows % wanted == 0 else 1)
    return judge(plan, tensors, ends)


def judge(plan: Plan, tensors: Mapping[str, LazyTensor], ends: Mapping[str, Sequence[int]]) -> Zeros:
    """Tell zeros that an initialisation leaves from those that only damage does.

    What starts at zero does so in every block. A zero tensor outside blocks counts as untrained only if all weights
    of a row that starts at zero are still zero, or every bias is. Where a family marks nothing that starts
    so, nothing can be told, and nothing is `lost`.

    Args:
        plan: of the file's own layout.
        tensors: those of the file, and others that were looked at, such as a null caption, by key.
        ends: `trailing_zero_counts` of those read, in as many parts as the plan splits them into.
    """
    units = list(_units(plan, tensors, ends))
    counts = Counter(unit.key for unit in units)
    everywhere: dict[tuple[str, str, int], bool] = defaultdict(lambda: True)
    starting: dict[str, bool] = defaultdict(lambda: True)
    for unit in units:
        everywhere[unit.alike] &= unit.zero
        if unit.row.zero_init:
            starting[unit.row.source] &= unit.zero
    if not plan.tells_zeros:
        return Zeros(others=[key for key in ends if _zero(tensors[key], sum(ends[key]))])
    biases = [unit.zero for unit in units if unit.bias]
    fresh = any(starting.values()) or (bool(biases) and all(biases))
    result, lost = Zeros(), dict[str, list[_Unit]]()
    untrained: dict[str, None] = {}  # in order, each once
    for unit in (unit for unit in units if unit.zero):
        if unit.initial and (fresh if unit.index is None else everywhere[unit.alike]):
            untrained[unit.key] = None
        else:
            lost.setdefault(unit.key, []).append(unit)
    result.untrained = list(untrained)
    for key, parts in sorted(lost.items(), key=lambda item: item[1][0].initial):
        names = (unit.row.targets[unit.part].rpartition(".")[2] for unit in parts)
        result.lost.append(key if len(parts) == counts[key] else f"{key} ({', '.join(names)})")
    result.others = [key for key in ends if key not in counts and _zero(tensors[key], sum(ends[key]))]
    result.ends = list(_ends(tensors, ends, {unit.key for unit in units if not unit.initial}))
    return result


def _units(plan: Plan, tensors: Mapping[str, LazyTensor], ends: Mapping[str, Sequence[int]]) -> Iterator[_Unit]:
    for move in plan.moves:
        key, (index, suffix) = move.origin, move.place
        if not (runs := ends.get(key)):
            continue
        full = [zeros > 0 and zeros * len(runs) == tensors[key].numel for zeros in runs]
        contents = move.operation.contents(len(move.parts))
        shared = move.operation.groups(len(move.parts)) == len(full) > 1
        # What every target holds, if the tensor is shared out; else it is looked at whole.
        for part, groups in enumerate(contents if shared else [range(len(full))]):
            zero = all(full[group] for group in groups)
            yield _Unit(row=move.row, key=key, index=index, suffix=suffix, part=part, zero=zero)


def _zero(tensor: LazyTensor, zeros: int) -> bool:
    return 0 < zeros == tensor.numel


def _ends(
    tensors: Mapping[str, LazyTensor], ends: Mapping[str, Sequence[int]], weights: Collection[str]
) -> Iterator[str]:
    """Of every file, the last rows of the weight behind which there is nothing but zeros."""
    files: dict[str, list[tuple[int, int, str]]] = {}
    for key, tensor in tensors.items():
        if tensor.numel:
            path, start = tensor.storage.place
            files.setdefault(path, []).append((start, tensor.span[0], key))
    for there in files.values():
        for _, _, key in sorted(there, reverse=True):
            tensor, runs = tensors[key], ends.get(key, (0,))
            each, zeros = tensor.numel // len(runs), 0
            for run in reversed(runs):
                zeros += run
                if run < each:
                    break
            if _zero(tensor, zeros):
                continue
            rows = zeros * tensor.shape[0] // tensor.numel if key in weights and len(tensor.shape) > 1 else 0
            if rows >= FEWEST_ROWS:
                yield f"the last {rows} of {tensor.shape[0]} rows of {fold([key])[0]}"
            break
