"""A list of keys as the rows of a table see it: blocks folded, a weight and its bias one module."""

from __future__ import annotations

import re
from collections import Counter
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
    for both. `indexed`: it has a `{}`; `sparse`: not in every block. `shape` is the weight's. `order`: its position.
    """

    path: str
    shape: _Shape
    module: bool
    indexed: bool
    sparse: bool
    order: int

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
    """The entries of a list of keys in order; `blocks`; `unusable`: keys that no row can spell, of empty tensors, whose
    shapes differ from block to block, or that are too long."""

    entries: tuple[KeyEntry, ...]
    blocks: int
    unusable: tuple[str, ...]


def key_layout(shapes: Mapping[str, _Shape]) -> KeyLayout:
    """Fold a list of keys.

    >>> [entry.path for entry in key_layout({"a.0.b.weight": (2, 2), "a.0.b.bias": (2,), "c": (3,)}).entries]
    ['a.{}.b', 'c']
    """
    usable = [key for key in shapes if len(key) <= LONGEST and _WRITABLE.fullmatch(key) and 0 not in shapes[key]]
    heads, blocks = _containers(usable)
    keys: dict[str, dict[int | None, str]] = {}
    for key in usable:
        template, index = _folded(key, heads, blocks)
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
            indexed, path = None not in indices, stem if module else template
            sparse = indexed and len(indices) < blocks
            entries.append(KeyEntry(path, shape, module, indexed, sparse=sparse, order=len(entries)))
    known, even = {*usable}, {key for template in templates for key in keys[template].values()}
    unusable = [key for key in shapes if key not in known] + [key for key in usable if key not in even]
    return KeyLayout(tuple(entries), blocks, tuple(unusable))


def _folded(key: str, heads: Collection[str], blocks: int) -> tuple[str, int | None]:
    """The key with `{}` for the index of its block, and the index; a module next to the blocks is none of them."""
    match = _NUMBERED.fullmatch(key)
    if match and match[1] in heads and int(match[2]) < blocks:
        return f"{match[1]}.{{}}{match[3]}", int(match[2])
    return key, None


def _containers(keys: Collection[str]) -> tuple[Collection[str], int]:
    """What the numbered blocks are in, and how many there are: indices without holes, and modules inside them.

    All rows of a table have the same number of blocks: the one that most keys have. Others are written out.
    """
    inside: dict[str, dict[int, set[str]]] = {}
    for match in filter(None, map(_NUMBERED.fullmatch, keys)):
        if match[3]:
            inside.setdefault(match[1], {}).setdefault(int(match[2]), set()).add(match[3][1:])
    sizes, complete = Counter[int](), {}
    for head, blocks in inside.items():
        shared = set.intersection(*blocks.values())
        if set(blocks) == set(range(len(blocks))) and any("." in tail or tail not in ENDS for tail in shared):
            complete[head] = len(blocks)
            sizes[len(blocks)] += sum(map(len, blocks.values()))
    count = max(sizes, key=lambda size: (sizes[size], size), default=0)
    return {head for head, size in complete.items() if size == count}, count
