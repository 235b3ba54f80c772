"""An adapter, whatever its spelling: what becomes of which tensor of a model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoint import LazyTensor
from ..checkpoint.cast import count_nonfinite
from ..checkpoint.digest import Digest
from ..checkpoint.weight_names import ADAPTERS
from ..errors import InputError, plural, printable
from ..families import Family
from ..mapping import KeyMapping, fold
from .changes import Change
from .names import ORIGINAL
from .spelling import BESIDE, Spelling


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
        metadata: of the file's header; `container`: what the file is, in words; `size`: in bytes.
        tool: what wrote it, as far as the file says.
        beside: keys of a text encoder or of embeddings, which are no part of the transformer.
        problems: what cannot be read, or is no part of the model, in words; `skipped`: of that, what was left out on
            demand.
        rslora: alphas are divided by the root of the rank, as rsLoRA has it.
        obstacle: why none of it can be used; `needed`: what the user has to state first; '' for nothing.
        notes: what a user should know.
    """

    path: str
    spelling: Spelling
    family: Family
    layout: str
    changes: dict[str, Change]
    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    container: str = ""
    size: int = 0
    tool: str = ""
    others: list[Family] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    rslora: bool = False
    obstacle: str = ""
    needed: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What a user knows it by: the file's name, or that of its folder where all such files are called alike."""
        path = Path(os.path.abspath(self.path))
        return printable(path.parent.name if path.name in ADAPTERS else path.name)

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
    def states_alpha(self) -> bool:
        """Whether the scales of all products are those of the file, and nothing is assumed."""
        return not {change.alpha for change in self.changes.values()} & {"assumed", "convention", "unknown"}

    @property
    def beside_words(self) -> list[str]:
        """The keys of other models, in a few words, such as 'lora_te_* (21 keys)'."""
        counts = Counter(match[0] for key in self.beside if (match := BESIDE.match(key)))
        return [f"{prefix}* ({plural(count, 'key')})" for prefix, count in counts.items()]

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors have each dtype."""
        return dict(sorted(Counter(tensor.dtype.name for tensor in self.tensors.values()).items()))

    def check_finite(self) -> str:
        """Read every tensor; returns the digest of their bytes, in the order of their keys.

        Raises: `InputError` where an element is NaN or infinite, or the file is damaged.
        """
        bad, digest = dict[str, int](), Digest()
        for key, tensor in sorted(self.tensors.items()):
            for _, piece in tensor.chunks():
                digest.update(piece)
                if count := count_nonfinite(piece, tensor.dtype):
                    bad[key] = bad.get(key, 0) + count
        if bad:
            rule = f"{sum(bad.values())} elements are NaN or infinite"
            raise InputError.at(self.path, ", ".join(fold(bad)[:6]), rule)
        return digest.text
