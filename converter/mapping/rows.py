"""The rows of a key-mapping table: what a line of it may say, and how one key is matched against it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from .dims import Pattern, parse_pattern
from .operations import Operation, Parameter, Paths, Rename, Split


@dataclass(frozen=True, slots=True)
class Computed:
    """A buffer that the target computes for itself, so it is not written. `function`: the family's findings ->
    the table that the target will compute. A conversion compares it with what is stored; the table of keys never calls
    it: `inverse` restores the buffer from `left`."""

    function: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Extra:
    """A tensor without a place in the target: kept in a sidecar and restored. `stray`: where old conversions left it;
    `without`: in words, what it means to go back without it; `misfit`: the family's findings and the shape of one that
    the user gives -> why it is not this model's, '' where it may be; `may_be_given`: whether a user may give one, as
    the null caption; `of_group`: the optional group without which no model is expected to have one."""

    stray: str = ""
    without: str = ""
    misfit: Callable[[Any, tuple[int, ...]], str] = lambda findings, shape: ""
    may_be_given: bool = True
    of_group: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A known tensor that the target cannot hold: the file is named by `feature` and refused with `reason`."""

    feature: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sparse:
    """A row of blocks that may be absent in some of them."""

    to: Paths | Operation


@dataclass(frozen=True, slots=True)
class ZeroInit:
    """A module or tensor that an initialisation leaves at zero, its weight too: a file in which it is zero in every
    block is of a model that was not trained since, and not damaged. (Biases start so in any model: no row says it.)"""

    to: Paths | Sparse | Operation


# A block index has one spelling, so that no two keys can mean the same tensor.
_INDEX = r"(0|[1-9]\d{0,17})"
MODULE, PARAMETER = frozenset({".weight", ".bias"}), frozenset({""})
_PATH = re.compile(r"(?!.*\{\}.*\{\})(\w+|\{\})(\.(\w+|\{\}))*")

Value = Paths | Sparse | Operation | ZeroInit | Computed | Extra | Refused


@dataclass(frozen=True)
class Row:
    """One line of a table, read."""

    source: str  # a whole dotted path with at most one `{}`, as those of the targets
    value: Value  # what stood in a `ZeroInit`, if it did
    pattern: Pattern = ()
    group: str = ""  # of an optional group: present whole or not at all
    unless: str = ""  # the optional group that has a row of the same source, which takes the place of this one
    name: str = ""  # of an Extra: its key in the sidecar
    targets: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()  # where old conversions left an extra
    # What every key of the row must end with: those of a module, or just '' where the path is a tensor itself. None
    # where nothing is written under the row's name: then it is either, as found.
    suffixes: frozenset[str] | None = None
    parameter: bool = False  # said to be a tensor by itself, and no layer's weight, whatever its path ends with
    operation: Operation | None = None  # what happens between them, None for a row that moves nothing
    zero_init: bool = False  # an initialisation leaves it at zero
    stack: str | None = None  # what the blocks of its path are counted with, None for a path that is in no block
    target_stacks: tuple[str | None, ...] = ()

    @classmethod
    def parse(cls, text: str, value: Value, group: str = "") -> Row:
        """A table's line: `"blocks.{}.attn.qkv [3D D]"` and what it becomes."""
        source, _, pattern = text.partition(" [")
        if pattern and not pattern.endswith("]"):
            raise ValueError(f"{text!r}: a shape pattern ends with ']'")
        value, zero_init = _unwrapped(value, ZeroInit)
        inner, sparse = _unwrapped(value, Sparse)
        to, operates = _unwrapped(inner, Operation)
        to, bare = _unwrapped(to, Parameter)
        targets = (to,) if isinstance(to, str) else to if isinstance(to, tuple) else ()
        operation = inner if operates else (Split if len(targets) > 1 else Rename)(targets)
        absent = sparse and operation.must_agree  # of copies, nobody could say how many there are
        if absent or not (targets or isinstance(value, Computed | Extra | Refused)):
            raise ValueError(
                f"{source!r} becomes {inner!r}: a row's value is a path, a tuple of paths, or Parameter and the like"
            )
        strays = (value.stray,) if isinstance(value, Extra) and value.stray else ()
        paths = (source, *targets, *strays)
        for path in paths:
            if not isinstance(path, str) or not _PATH.fullmatch(path):
                raise ValueError(f"{path!r} is not a dotted path with at most one {{}}")
        spread = operation.must_agree and "{}" not in source
        if not spread and len({path.count("{}") for path in paths}) > 1:
            raise ValueError(f"{source!r}: an index on one side only cannot be undone")
        if targets and (wrong := operation.check(len(targets), spread and "{}" in targets[0])):
            raise ValueError(f"{source!r}: {wrong}")
        single = bare or any(path.endswith((".weight", ".bias")) for path in (source, *targets))
        return cls(
            source,
            value,
            parse_pattern(pattern[:-1]),
            group,
            name=source,
            targets=targets,
            strays=strays,
            suffixes=(PARAMETER if single else MODULE) if targets else None,
            parameter=bare,
            operation=operation if targets else None,
            zero_init=zero_init,
            stack=stack_of(source),
            target_stacks=tuple(map(stack_of, targets)),
        )

    def match(self, key: str) -> tuple[int | None, str] | None:
        """(block index, suffix) of a key of this row, None of any other."""
        return matcher(self.source)(key)

    def renamed(self, source: tuple[str, str], target: tuple[str, str], group: str = "") -> Row:
        """The same of other paths: where one begins with the first of a pair, it begins with the second instead.

        Args:
            group: of an optional group, if it is in none.
        """

        def new(pair: tuple[str, str], path: str) -> str:
            return pair[1] + path[len(pair[0]) :] if path.startswith(pair[0]) else path

        targets, strays = (tuple(new(target, path) for path in paths) for paths in (self.targets, self.strays))
        own, name, group = new(source, self.source), new(source, self.name), self.group or group
        return replace(self, source=own, name=name, targets=targets, strays=strays, group=group)

    @property
    def sparse(self) -> bool:
        """Whether the row may be absent, in some blocks or altogether."""
        return not self.targets or isinstance(self.value, Sparse)

    @property
    def counts(self) -> bool:
        """Whether it says how many blocks there are: it is in every one of them."""
        return "{}" in self.source and not self.sparse

    @property
    def spread(self) -> bool:
        """Whether one tensor, of no block, has a copy in every block."""
        return "{}" not in self.source and any("{}" in target for target in self.targets)

    @property
    def part_pattern(self) -> Pattern:
        """The pattern of each target."""
        return self.operation.pattern(self.pattern, len(self.targets)) if self.operation else self.pattern

    def shape_pattern(self, suffix: str) -> Pattern:
        """The pattern of a tensor of this row: of a bias, only the first dimension."""
        return self.pattern[:1] if suffix == ".bias" else self.pattern

    def written(self, index: int | None, suffix: str, stacks: Mapping[str, int]) -> tuple[str, ...]:
        """The target keys of one source tensor; `stacks`: how many blocks there are, for what is copied into all."""
        return tuple(
            spell(target, i, suffix)
            for target, stack in zip(self.targets, self.target_stacks, strict=True)
            for i in (range(stacks[stack]) if index is None and stack is not None else (index,))
        )

    def keys(self, stacks: Mapping[str, int]) -> list[str]:
        """The keys of its source as a tensor, one for every block."""
        return [spell(self.source, i) for i in ((None,) if self.stack is None else range(stacks.get(self.stack, 0)))]


def _unwrapped(value: Any, kind: Any) -> tuple[Any, bool]:
    """(what it is without a wrapper of this kind, whether it had one)."""
    return (value.to, True) if isinstance(value, kind) else (value, False)


@cache
def matcher(path: str) -> Callable[[str], tuple[int | None, str] | None]:
    """key -> (block index, '.weight' or '.bias' or '') where the key is this path, anchored at both ends; else None."""
    head, braces, tail = path.partition("{}")
    regex = re.compile(
        re.escape(head) + (_INDEX if braces else "()") + re.escape(tail) + r"(\.weight|\.bias)?", re.ASCII
    )

    def match(key: str) -> tuple[int | None, str] | None:
        hit = regex.fullmatch(key)
        return (int(hit[1]) if braces else None, hit[2] or "") if hit else None

    return match


def spell(path: str, index: int | None, suffix: str = "") -> str:
    """A path with its index and suffix put in."""
    return path.replace("{}", str(index), 1) + suffix


def overlap(one: str, other: str) -> bool:
    """Whether a key could match both paths (`a.{}` and `a.0` do; `a` and `a.weight` do, through the suffix)."""

    def alike(a: str, b: str) -> bool:
        number = b if a == "{}" else a if b == "{}" else ""
        return a == b or re.fullmatch(_INDEX, number, re.ASCII) is not None

    shorter, longer = sorted((one.split("."), other.split(".")), key=len)
    rest = longer[len(shorter) :]
    return rest in ([], ["weight"], ["bias"]) and all(map(alike, shorter, longer))


def stack_of(path: str) -> str | None:
    """What the blocks of a path are in, such as `blocks` of `blocks.{}.attn`; None where it is in no block."""
    head, braces, _ = path.partition("{}")
    return head.removesuffix(".") if braces else None
