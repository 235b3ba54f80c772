"""What came of an extraction: how near each module comes, and what an adapter has no place for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..comparison.elements import Numbers
from ..errors import plural, shortened
from ..mapping.fold import folded
from ..reports.report import as_json
from .adapter import Adapter


@dataclass(frozen=True)
class Module:
    """The adapter of one module, against the difference that it stands for.

    `norm`: of the difference (Frobenius); `error`: of what the adapter misses of it, over that.
    """

    key: str
    shape: tuple[int, ...]
    rank: int
    norm: float
    error: float


@dataclass(frozen=True)
class LeftOut:
    """A tensor that differs, and that no adapter holds. `numbers`: how; None where even the shapes differ."""

    key: str
    numbers: Numbers | None

    @property
    def distance(self) -> float:
        """Relative L2, over the larger of both norms."""
        return self.numbers.relative_l2 if self.numbers else math.inf


@dataclass
class Extraction:
    """An adapter that was extracted.

    Attributes:
        modules: those that differ. unchanged: keys of those that do not.
        left_out: what differs, and is not in the adapter: biases, tables, norms, buffers.
        path, files: what was written, with sizes; None and {} where it was not.
        effect: what was measured of the adapter's effect; None for nothing.
    """

    adapter: Adapter
    modules: list[Module] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    path: Path | None = None
    files: dict[str, int] = field(default_factory=dict)
    effect: Any = None

    @property
    def norm(self) -> float:
        """Of the differences of all modules, as one vector."""
        return math.hypot(*(module.norm for module in self.modules))

    @property
    def error(self) -> float:
        """What the adapter misses of that, over its norm."""
        return math.hypot(*(module.error * module.norm for module in self.modules)) / self.norm

    @property
    def words(self) -> str:
        """The conclusion, in a sentence."""
        rank = _span([module.rank for module in self.modules])
        unchanged = f" ({plural(len(self.unchanged), 'module')} the same in both)" if self.unchanged else ""
        return (
            f"LoRA of rank {rank} for {plural(len(self.modules), 'module')}{unchanged}: "
            f"{1 - self.error**2:.3%} of the energy of the difference, relative error {self.error:.2g}"
        )

    def error_rows(self, everything: bool = False) -> list[tuple[str, str]]:
        """(module, or those of many blocks as one pattern; rank and error in words), the largest error first.

        Args:
            everything: every module by itself.
        """
        rows = _rows(self.modules, lambda module: module.error, everything)
        return [(name, f"rank {_span([m.rank for m in of])}, error {_up_to(of)}{of[0].error:.2g}") for name, of in rows]

    def left_out_rows(self, everything: bool = False) -> list[tuple[str, str]]:
        """The same of what is left out: how far it differs."""
        rows = _rows(self.left_out, lambda each: each.distance, everything)
        return [(name, f"relative L2 {_up_to(of)}{of[0].distance:.2g}") for name, of in rows]

    @property
    def left_out_words(self) -> str:
        """What differs and is left out, the farthest first, in words; '' for nothing."""
        return shortened([f"{name} ({words})" for name, words in self.left_out_rows()], 4)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        content = {
            "path": str(self.path) if self.path else None,
            "files": self.files,
            "spelling": self.adapter.spelling.name,
            "words": self.words,
            "energy": 1 - self.error**2,
            "error": self.error,
            "modules": [
                {name: getattr(one, name) for name in ("key", "rank", "norm", "error")} | {"shape": list(one.shape)}
                for one in sorted(self.modules, key=lambda one: -one.error)
            ],
            "unchanged": self.unchanged,
            "left_out": [
                {"key": one.key, "relative_l2": one.distance}
                | ({"max_abs": one.numbers.max_abs} if one.numbers else {})
                for one in sorted(self.left_out, key=lambda one: -one.distance)
            ],
            "effect": self.effect.as_dict() if self.effect else None,
            "notes": self.notes,
        }
        plain: dict[str, Any] = as_json(content)
        return plain


def _rows(items: Sequence[Any], size: Callable[[Any], float], everything: bool) -> list[tuple[str, list[Any]]]:
    """(key, or many as one pattern; the items, the largest first), the largest first."""
    by_key = {item.key: item for item in items}
    patterns = {key: [key] for key in by_key} if everything else folded(by_key)
    rows = [(name, sorted((by_key[key] for key in keys), key=size, reverse=True)) for name, keys in patterns.items()]
    return sorted(rows, key=lambda row: size(row[1][0]), reverse=True)


def _up_to(items: Sequence[Any]) -> str:
    return "up to " if len(items) > 1 else ""


def _span(numbers: Sequence[int]) -> str:
    first, last = min(numbers), max(numbers)
    return str(first) if first == last else f"{first} to {last}"
