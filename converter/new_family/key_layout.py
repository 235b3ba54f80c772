"""A list of keys as the rows of a table see it: blocks folded, a weight and its bias one module."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

_Shape = tuple[int, ...]
_NUMBERED = re.compile(r"(.+?)\.(0|[1-9]\d{0,17})((?:\..+)?)", re.ASCII)  # by the outermost: a path has one index
_WRITABLE = re.compile(r"\w+(\.\w+)*", re.ASCII)  # what a row can spell, and what can do no harm in a program
LONGEST = 300
ENDS = {"weight": "bias", "bias": "weight"}


@dataclass(frozen=True, eq=False)  # a path of one layout is not that of the other
class KeyEntry:
    """One path of a layout, as a row of a table has it.

    `path` ends in `.weight` or `.bias` where the one is there without the other, and `module` is true where it stands
    for both. `indexed`: it has a `{}`; `blocks`: how many its stack has; `sparse`: not in every one of them. `shape` is
    the weight's. `order`: its position.
    """

    path: str
    shape: _Shape
    module: bool
    blocks: int
    sparse: bool
    order: int

    @property
    def indexed(self) -> bool:
        return "{}" in self.path

    @property
    def stem(self) -> str:
        """Of its module."""
        return self.path if self.module else re.sub(r"\.(weight|bias)$", "", self.path)

    @property
    def parent(self) -> str:
        """Of the module."""
        return self.stem.rpartition(".")[0]

    @property
    def bare(self) -> bool:
        """Whether it is a tensor by itself, a parameter or a buffer, and belongs to no module."""
        return not self.module and self.stem == self.path


@dataclass(frozen=True)
class KeyLayout:
    """The entries of a list of keys in order; `stacks`: what numbered blocks are in -> how many there are; `unusable`:
    keys that no row can spell, of empty tensors, whose shapes differ from block to block, or that are too long."""

    entries: tuple[KeyEntry, ...]
    stacks: Mapping[str, int]
    unusable: tuple[str, ...]


def key_layout(shapes: Mapping[str, _Shape]) -> KeyLayout:
    """Fold a list of keys.

    >>> [entry.path for entry in key_layout({"a.0.b.weight": (2, 2), "a.0.b.bias": (2,), "c": (3,)}).entries]
    ['a.{}.b', 'c']
    """
    usable = [key for key in shapes if len(key) <= LONGEST and _WRITABLE.fullmatch(key) and 0 not in shapes[key]]
    stacks = _stacks({key: shapes[key] for key in usable})
    keys: dict[str, dict[int | None, str]] = {}
    for key in usable:
        template, index = _folded(key, stacks)
        keys.setdefault(template, {})[index] = key
    templates: dict[str, tuple[_Shape, Collection[int | None]]] = {}
    for template, by_block in keys.items():
        shape, *others = {shapes[key] for key in by_block.values()}
        if not others:
            templates[template] = shape, by_block.keys()
    entries: list[KeyEntry] = []
    for template, (shape, indices) in templates.items():
        stem, _, last = template.rpartition(".")
        partner, its_indices = templates.get(f"{stem}.{ENDS.get(last, '')}", ((), None))
        # A bias has the first dimension of its weight: a row's pattern says so of both.
        weight, bias = (shape, partner) if last == "weight" else (partner, shape)
        module = bool(stem) and indices == its_indices and weight[:1] == bias
        if not module or last == "weight":
            blocks = stacks[template.partition(".{}")[0]] if None not in indices else 0
            path = stem if module else template
            entries.append(KeyEntry(path, shape, module, blocks, sparse=len(indices) < blocks, order=len(entries)))
    known, even = {*usable}, {key for template in templates for key in keys[template].values()}
    unusable = [key for key in shapes if key not in known] + [key for key in usable if key not in even]
    return KeyLayout(tuple(entries), stacks, tuple(unusable))


def _folded(key: str, stacks: Mapping[str, int]) -> tuple[str, int | None]:
    """The key with `{}` for the index of its block, and the index; a module next to the blocks is none of them."""
    match = _NUMBERED.fullmatch(key)
    if match and int(match[2]) < stacks.get(match[1], 0):
        return f"{match[1]}.{{}}{match[3]}", int(match[2])
    return key, None


def _stacks(shapes: Mapping[str, _Shape]) -> dict[str, int]:
    """What the numbered blocks are in, and how many there are: indices without holes, and modules inside them, most of
    which have the same shape in all. Something numbered 0 alone is a stack where no other is."""
    inside: dict[str, dict[int, dict[str, _Shape]]] = {}
    for key, match in ((key, _NUMBERED.fullmatch(key)) for key in shapes):
        if match and match[3]:
            inside.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3][1:]] = shapes[key]
    stacks = {}
    for head, blocks in inside.items():
        shared = set.intersection(*map(set, blocks.values()))
        alike = sum(len({block[tail] for block in blocks.values()}) == 1 for tail in shared)
        modules = any("." in tail or tail not in ENDS for tail in shared)
        if set(blocks) == set(range(len(blocks))) and modules and 2 * alike >= len(shared):
            stacks[head] = len(blocks)
    several = {head: count for head, count in stacks.items() if count > 1}
    return several or stacks
