"""A list of keys as the rows of a table see it: blocks folded, a weight and its bias one module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]

_NUMBER = re.compile(r"0|[1-9]\d{0,17}", re.ASCII)
_WRITABLE = re.compile(r"\w+(\.\w+)*", re.ASCII)  # what a row can spell, and what can do no harm in a program
LONGEST = 300
_SUFFIXES = ("weight", "bias")


@dataclass(frozen=True)
class KeyEntry:
    """One path of a layout, as a row of a table has it.

    `path` ends in `.weight` or `.bias` where the one is there without the other, and `module` is true where it stands
    for both. `indexed`: it has a `{}`; `sparse`: not in every block. `shape` is the weight's. `order`: its position.
    """

    path: str
    shape: tuple[int, ...]
    module: bool
    indexed: bool
    sparse: bool
    order: int

    @property
    def parent(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def bare(self) -> bool:
        """Whether it is a tensor by itself, a parameter or a buffer, and belongs to no module."""
        return not self.module and not self.path.endswith((".weight", ".bias"))


@dataclass(frozen=True)
class KeyLayout:
    """The entries of a list of keys in order; `blocks`; `unusable`: keys that no row can spell, of empty tensors, whose
    shapes differ from block to block, or that are too long."""

    entries: tuple[KeyEntry, ...]
    blocks: int
    unusable: tuple[str, ...]


def key_layout(shapes: Shapes) -> KeyLayout:
    """Fold a list of keys.

    >>> [entry.path for entry in key_layout({"a.0.b.weight": (2, 2), "a.0.b.bias": (2,), "c": (3,)}).entries]
    ['a.{}.b', 'c']
    """
    usable = {key: shape for key, shape in shapes.items() if _writable(key) and 0 not in shape}
    unusable = [key for key in shapes if key not in usable]
    shapes = usable
    heads, blocks = _containers(shapes)
    templates: dict[str, dict[int | None, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        template, index = _folded(key, heads, blocks)
        templates.setdefault(template, {})[index] = shape
    uneven = {template for template, by_block in templates.items() if len(set(by_block.values())) > 1}
    unusable += [key for key in shapes if _folded(key, heads, blocks)[0] in uneven]
    entries: list[KeyEntry] = []
    for template, by_block in templates.items():
        if template in uneven:
            continue
        stem, _, last = template.rpartition(".")
        other = {"weight": "bias", "bias": "weight"}.get(last)
        partner = templates.get(f"{stem}.{other}", {}) if other and f"{stem}.{other}" not in uneven else {}
        shape = next(iter(by_block.values()))
        module = bool(stem) and partner.keys() == by_block.keys() and _is_bias(shape, partner, last)
        if module and last == "bias":
            continue
        indexed = None not in by_block
        path = stem if module else template
        entries.append(
            KeyEntry(path, shape, module, indexed, sparse=indexed and len(by_block) < blocks, order=len(entries))
        )
    return KeyLayout(tuple(entries), blocks, tuple(unusable))


def _is_bias(shape: tuple[int, ...], partner: Mapping[int | None, tuple[int, ...]], last: str) -> bool:
    """A bias has the first dimension of its weight: a row's pattern says so of both."""
    weight, bias = (shape, next(iter(partner.values())))[:: 1 if last == "weight" else -1]
    return weight[:1] == bias


def _writable(key: str) -> bool:
    return len(key) <= LONGEST and _WRITABLE.fullmatch(key) is not None


def _folded(key: str, heads: frozenset[str], blocks: int) -> tuple[str, int | None]:
    """The key with `{}` for the index of its block, and the index; a module next to the blocks is none of them."""
    parts = key.split(".")
    for position in range(1, len(parts)):
        head = ".".join(parts[:position])
        if head in heads and _NUMBER.fullmatch(parts[position]) and int(parts[position]) < blocks:
            return ".".join([head, "{}", *parts[position + 1 :]]), int(parts[position])
    return key, None


def _containers(shapes: Shapes) -> tuple[frozenset[str], int]:
    """What the numbered blocks are in, and how many there are: indices without holes, and modules inside them.

    All rows of a table have the same number of blocks: the one that most keys have. Others are written out.
    """
    inside: dict[str, dict[int, set[str]]] = {}
    for key in shapes:
        parts = key.split(".")
        for position in range(1, len(parts) - 1):
            if _NUMBER.fullmatch(parts[position]):
                head, tail = ".".join(parts[:position]), ".".join(parts[position + 1 :])
                inside.setdefault(head, {}).setdefault(int(parts[position]), set()).add(tail)
                break  # the outermost: a path has one index
    sizes: dict[int, int] = {}
    complete = {}
    for head, blocks in inside.items():
        shared = set.intersection(*blocks.values())
        if set(blocks) == set(range(len(blocks))) and any("." in tail or tail not in _SUFFIXES for tail in shared):
            complete[head] = len(blocks)
            sizes[len(blocks)] = sizes.get(len(blocks), 0) + sum(map(len, blocks.values()))
    count = max(sizes, key=lambda size: (sizes[size], size), default=0)
    return frozenset(head for head, size in complete.items() if size == count), count
