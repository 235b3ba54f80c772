"""How the modules of a model are called in an adapter's keys, derived from the model's own table.

A spelling writes the names of diffusers or of the training code, with their dots or with underscores in their place.
`_` says nothing of where a dot was (`to_out_0`, `t_block_1`), so names are never taken apart: the table's paths are
flattened, and a key is looked for among them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ..families import Family
from ..mapping.rows import MODULE, Row, spell

DIFFUSERS, ORIGINAL = "diffusers", "original"  # the layouts
# The training code's names, and numbers for the parts of what diffusers splits: `attn.qkv.0`. Where such a name would
# be that of several modules of diffusers, of which a model has one, theirs.
PARTS = "parts"


@dataclass(frozen=True)
class Names:
    """The names of a family's modules in one of the three ways.

    Args:
        kind: `DIFFUSERS`, `ORIGINAL` or `PARTS`, which are other words for what diffusers has.
        flat: with underscores in place of dots.

    Example:
        >>> from converter.models.pixart.table import PIXART
        >>> Names(PIXART, ORIGINAL, flat=True).module("blocks_3_attn_qkv")
        'blocks.3.attn.qkv'
        >>> Names(PIXART, PARTS).module("blocks.3.attn.qkv.1")
        'transformer_blocks.3.attn1.to_k'
        >>> Names(PIXART, PARTS).spelled("transformer_blocks.3.attn1.to_k")
        'blocks.3.attn.qkv.1'
    """

    family: Family
    kind: str
    flat: bool = False

    @property
    def layout(self) -> str:
        """Whose modules the names stand for."""
        return ORIGINAL if self.kind == ORIGINAL else DIFFUSERS

    def module(self, name: str) -> str | None:
        """The module of this name, with its dots, in `layout`; None for no module of the family."""
        for spelt, path in self._paths:
            if match := spelt.fullmatch(name):
                return spell(path, int(match[1]) if match.lastindex else None)
        return None

    def spelled(self, module: str) -> str:
        """The name of a module of `layout`."""
        for path, written in self._written:
            if match := _pattern(path).fullmatch(module):
                name = spell(written, int(match[1]) if match.lastindex else None)
                return name.replace(".", "_") if self.flat else name
        raise KeyError(module)

    @cached_property
    def _written(self) -> list[tuple[str, str]]:
        """(path in `layout`, path as it is written)."""
        rows = modules_of(self.family)
        sources = Counter(row.source for row in rows)
        return [pair for row in rows for pair in self._of(row, own=self.kind == DIFFUSERS or sources[row.source] > 1)]

    def _of(self, row: Row, *, own: bool) -> Iterator[tuple[str, str]]:
        """Those of one row; `own`: diffusers' modules have the names that they have there."""
        source, *targets = (path.removesuffix(".weight") for path in (row.source, *row.targets))
        if self.kind == ORIGINAL:
            yield source, source
        elif own or len(targets) == 1:
            yield from ((target, target if own else source) for target in targets)
        else:
            yield from ((target, f"{source}.{part}") for part, target in enumerate(targets))

    @cached_property
    def _paths(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(written, self.flat), path) for path, written in self._written]


def modules_of(family: Family) -> list[Row]:
    """The rows of the table that are modules, with a bias or just a weight, which an adapter may change; a parameter by
    itself is none."""

    def weight(row: Row) -> bool:
        return bool(row.targets) and all(path.endswith(".weight") for path in (row.source, *row.targets))

    return [row for row in family.keys.rows if row.suffixes == MODULE or weight(row)]


def _pattern(path: str, flat: bool = False) -> re.Pattern[str]:
    head, braces, tail = (path.replace(".", "_") if flat else path).partition("{}")
    return re.compile(re.escape(head) + (r"(0|[1-9]\d{0,5})" if braces else "") + re.escape(tail), re.ASCII)
