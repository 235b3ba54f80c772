"""What a table makes of one state dict: which tensors become which, and everything that does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from .operations import Operation, Place
from .rows import Row


@dataclass(frozen=True, slots=True)
class Write:
    """Tensors that are written out of others; `runs`: for each source, in order, where its equal groups of rows go."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    runs: tuple[tuple[Place, ...], ...]


@dataclass(frozen=True, slots=True)
class Move:
    """One tensor of the original layout and its tensors in the target's, by way of the row's operation; `back` where
    it is read from right to left."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    row: Row
    back: bool = False

    @property
    def operation(self) -> Operation:
        """What happens between them: a row that moves anything has one."""
        assert self.row.operation is not None
        return self.row.operation

    @property
    def origin(self) -> str:
        """The key in the original layout."""
        return (self.targets if self.back else self.sources)[0]

    @property
    def parts(self) -> tuple[str, ...]:
        """The keys in the target layout."""
        return self.sources if self.back else self.targets

    @property
    def place(self) -> tuple[int | None, str]:
        """(the block, None for none; '.weight', '.bias' or '')."""
        return self.row.match(self.origin) or (None, "")

    @property
    def writes(self) -> list[Write]:
        """What is written for it, by key: each copy by itself, and on the way back the first alone."""
        count = len(self.parts)
        writes, contents = [], self.operation.contents(count)
        for places in self.operation.passes(count):
            used = sorted({part for part, _ in places})
            keys = tuple(self.parts[part] for part in used)
            if self.back:
                return [Write(keys, self.targets, tuple(tuple((0, group) for group in contents[i]) for i in used))]
            writes.append(Write(self.sources, keys, (tuple((used.index(part), at) for part, at in places),)))
        return writes


@dataclass
class Plan:
    """What a table makes of a state dict, complete and checked."""

    moves: list[Move] = field(default_factory=list)  # tensors that go on
    extras: dict[str, str] = field(default_factory=dict)  # source key -> key in the sidecar
    computed: dict[str, Row] = field(default_factory=dict)  # source key -> its row
    dims: dict[str, int] = field(default_factory=dict)  # what the shape patterns say: symbol -> size
    evidence: dict[str, str] = field(default_factory=dict)  # symbol -> the tensor that shows it
    # How many blocks there are, by the path before `{}` in the original layout, whichever layout is read (of stacks
    # that become one, by the first in the alphabet).
    stacks: dict[str, int] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)  # the optional groups that are there
    tells_zeros: bool = False  # whether the table says what an initialisation leaves at zero, if only of other groups
    features: dict[str, list[str]] = field(default_factory=dict)  # refused ones that are there -> the keys that show it
    problems: list[str] = field(default_factory=list)  # everything that does not fit

    def shown(self, symbol: str) -> tuple[int | None, str]:
        """The size that a symbol stands for, and the tensor that shows it; None, and that none does."""
        return self.dims.get(symbol), self.evidence.get(symbol, "no tensor shows it")

    @property
    def blocks(self) -> int:
        """How many blocks a model has whose table knows one stack of them, 0 for none.

        Raises: ValueError where there are several stacks: name one, as in `plan.stacks["double_blocks"]`.
        """
        if len(self.stacks) > 1:
            raise ValueError(f"there are several stacks of blocks: name one, as in plan.stacks[{min(self.stacks)!r}]")
        return next(iter(self.stacks.values()), 0)
