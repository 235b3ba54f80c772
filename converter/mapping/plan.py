"""What a table makes of one state dict: which tensors become which, and everything that does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from .rows import Row


@dataclass(frozen=True, slots=True)
class Move:
    """Source tensors and what becomes of them: one to several is a split on axis 0, the reverse a concatenation.

    With `copies` it is neither: every target is the whole source tensor, and on the way back every source is the whole
    target tensor. Then their bytes have to be equal: a plan has seen that their shapes and dtypes are, and whoever
    reads the bytes has to see to the rest.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    row: Row
    copies: bool = False

    @property
    def parts(self) -> int:
        """Into how many parts the source of a way out is split."""
        return 1 if self.copies else len(self.targets)


@dataclass
class Plan:
    """What a table makes of a state dict, complete and checked.

    `moves`: tensors that go on; `extras`: source key -> key in the sidecar; `computed`: source key -> its row;
    `dims`, `evidence`: what the shape patterns say (symbol -> size, symbol -> the tensor that shows it);
    `blocks`: how many blocks; `groups`: the optional groups that are there; `features`: refused features that are
    there -> the keys that show it; `problems`: everything that does not fit (none in a plan that was not refused).
    """

    moves: list[Move] = field(default_factory=list)
    extras: dict[str, str] = field(default_factory=dict)
    computed: dict[str, Row] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)
    blocks: int = 0
    groups: set[str] = field(default_factory=set)
    features: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
