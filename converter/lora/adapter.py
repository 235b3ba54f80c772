"""An adapter, whatever its spelling: what becomes of which tensor of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..checkpoint import LazyTensor
from ..checkpoint.cast import count_nonfinite
from ..errors import InputError
from ..families import Family
from ..mapping import KeyMapping, fold
from .changes import Change, Full
from .names import ORIGINAL
from .spelling import Spelling


@dataclass
class Adapter:
    """What a file or folder of an adapter means, its tensors unread.

    Attributes:
        path: the file that holds the tensors.
        family: of the models that it is for; `others`: further families that have modules of all these names.
        layout: whose keys `changes` has, 'diffusers' or 'original'.
        changes: the key of a tensor of the model, such as `transformer_blocks.0.attn1.to_q.weight` -> what becomes of
            it.
        tensors: of the adapter, by their keys in the file.
        metadata: of the file's header.
        tool: what wrote it, as far as the file says.
        beside: keys of a text encoder or of embeddings, which are no part of the transformer.
        skipped: what was left out on demand, in words.
        notes: what a user should know.
    """

    path: str
    spelling: Spelling
    family: Family
    layout: str
    changes: dict[str, Change]
    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    tool: str = ""
    others: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def table(self) -> KeyMapping:
        """The names in `layout`."""
        return self.family.keys if self.layout == ORIGINAL else self.family.keys.targets

    @property
    def kinds(self) -> dict[str, list[str]]:
        """Kind -> the modules that are changed so; biases count with their weights."""
        kinds: dict[str, list[str]] = {}
        for key, change in self.changes.items():
            if key.endswith(".weight") or f"{key.removesuffix('.bias')}.weight" not in self.changes:
                kinds.setdefault(change.word, []).append(key.rpartition(".")[0])
        return kinds

    @property
    def ranks(self) -> dict[int, list[str]]:
        """Rank -> the modules that have it."""
        ranks: dict[int, list[str]] = {}
        for key, change in self.changes.items():
            if change.product.rank is not None:
                ranks.setdefault(change.product.rank, []).append(key.rpartition(".")[0])
        return dict(sorted(ranks.items()))

    @property
    def scales(self) -> dict[tuple[float, str], list[str]]:
        """(scale, where its alpha is from) -> the modules that have it."""
        scales: dict[tuple[float, str], list[str]] = {}
        for key, change in self.changes.items():
            if change.alpha and not (isinstance(change.product, Full) and key.endswith(".bias")):
                scales.setdefault((change.scale, change.alpha), []).append(key.rpartition(".")[0])
        return dict(sorted(scales.items()))

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors have each dtype."""
        return dict(sorted(Counter(tensor.dtype.name for tensor in self.tensors.values()).items()))

    def check_finite(self) -> None:
        """Read every tensor. Raises: `InputError` where an element is NaN or infinite, or the file is damaged."""
        bad = {
            key: count
            for key, tensor in self.tensors.items()
            if (count := sum(count_nonfinite(piece, tensor.dtype) for _, piece in tensor.chunks()))
        }
        if bad:
            rule = f"{sum(bad.values())} elements are NaN or infinite"
            raise InputError.at(self.path, ", ".join(fold(bad)[:6]), rule)
