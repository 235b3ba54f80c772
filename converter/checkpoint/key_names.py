"""The models in a state dict: after which prefix their keys come, with which wrappers in between, among what else.

Wrappers that training puts around a model or its blocks (DDP, `torch.compile`, FSDP, activation checkpoints) and the
programs that hold it (a Lightning module, a distillation loop) all show in the keys. What a model's own names are is
known to the tables that are given; without any, only prefixes that are known by themselves are removed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from typing import Protocol

from ..errors import printable
from ..parts import joined

# Longest first, because several may apply one after the other: `module._orig_mod.blocks...`.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "_orig_mod.", "module.", "model.")
_OF_PREFIXES = {part for prefix in PREFIXES for part in prefix.split(".")}
# What torch.compile, activation checkpoints, FSDP and FairScale put between the parts of a name, wherever they wrap.
_WRAPPER = re.compile(r"(?<![^.])(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_fpw_module)\.")
# Plainly no part of a denoiser: schedule buffers and counters; encoders, decoders, losses and what holds them.
_FOREIGN = re.compile(
    r"(betas|alphas|alphas_\w+|sqrt_\w+|log_one_minus_\w+|posterior_\w+|sigmas|timesteps|lvlb_weights|logvar|snr"
    r"|scale_factor|scaling_factor|n_averaged|initted|(global_)?step|steps|(ema_)?decay|num_updates"
    r"|((first_stage_model|vae|autoencoder|text_encoders?|text_encoder_\d|text_model|cond_stage_model|conditioner"
    r"|t5|clip|clip_model|llm|loss|losses|loss_fn|criterion|lpips|perceptual_loss|discriminator|metrics|scheduler"
    r"|noise_scheduler|diffusion|model_ema)\..+))"
)
_DEPTH = 8  # parts of a prefix that is looked for
_MOST = 20_000  # names among which prefixes are looked for
_MODELS = 64  # in one state dict


class Names(Protocol):
    """The names of one kind of model (`mapping.KeyMapping`): which row of its table a name belongs to, and the rows
    without which no such model is whole. `part`: what they begin with among those of a whole, of which it is a part."""

    @property
    def part(self) -> str: ...

    @property
    def required(self) -> frozenset[int]: ...

    def row_of(self, key: str) -> int | None: ...


# Gives the kinds of models, a batch at a time: the next is only asked for where none of the last fits.
Tables = Callable[[], Iterable[Sequence[Names]]]


@dataclass(frozen=True)
class ModelKeys:
    """One model in a state dict.

    `in_file`: the model's name for a tensor -> its key in the file; `prefix`: what those keys begin with; `part`: what
    the names begin with and those keys do not; `left_out`: keys of the state dict that are no part of the model;
    `mixed`: why names may be unknown, in words: only some keys carry a prefix; `clash`: why the names are ambiguous;
    `known`: how many of the names the kind of model that fits best knows; `fits`: whether this is one.
    """

    prefix: str
    in_file: dict[str, str]
    left_out: tuple[str, ...] = ()
    mixed: str = ""
    clash: str = ""
    known: int = 0
    fits: bool = False
    part: str = ""

    def as_part(self, part: str) -> ModelKeys:
        """The same with the names that it has as a part of a whole."""
        return replace(self, part=part, in_file=joined({part: self.in_file}))


def find_models(keys: Sequence[str], tables: Tables | None = None) -> list[ModelKeys]:
    """The models that a state dict with these keys holds, at least one; several where each is a whole one.

    >>> [model] = find_models(["module.blocks.0._orig_mod.fc", "module.out"])
    >>> model.prefix, list(model.in_file)
    ('module.', ['blocks.0.fc', 'out'])
    """
    plain = _plain(keys)
    for batch in tables() if tables else ():
        counts = ((_known(table, plain.in_file), table.part) for table in batch)
        known, part = max(counts, key=itemgetter(0), default=(0, ""))
        if keys and known == len(keys):
            return [ModelKeys(plain.prefix, plain.in_file, known=known, fits=True).as_part(part)]
        models, mixed = _by_tables(keys, batch)
        if models:
            # Of a single model, what only some keys carry may still be why names in it are unknown.
            same = len(models) == 1 and models[0].prefix == plain.prefix
            return [replace(models[0], mixed=plain.mixed)] if same else models
        plain = replace(plain, mixed=plain.mixed or mixed, known=max(known, plain.known))
    return [plain]


def _known(table: Names, names: Iterable[str]) -> int:
    """How many of the names it knows; 0 where none is one that all its models have."""
    rows = [row for name in names if (row := table.row_of(name)) is not None]
    return 0 if table.required and table.required.isdisjoint(rows) else len(rows)


def plainly_foreign(name: str) -> bool:
    """Whether a name is one that programs keep with a denoiser: encoders, losses, schedule buffers, counters."""
    return _FOREIGN.fullmatch(name) is not None


def unwrapped(key: str) -> str:
    """A key without what wrappers put between its parts.

    >>> unwrapped("blocks.0._checkpoint_wrapped_module.attn._orig_mod.qkv.weight")
    'blocks.0.attn.qkv.weight'
    """
    return _WRAPPER.sub("", key) or key


def _plain(keys: Sequence[str]) -> ModelKeys:
    """The names after the known prefix, possibly of several parts, that all keys carry.

    What only some keys carry stays: it is a part of their names (`model.embed` next to `lm_head`), or else the file is
    a mixture that no family will know. Two keys that differ in nothing else clash: each of them could be the weight.
    """
    prefix = mixed = clash = ""
    while keys and not mixed:
        for known in PREFIXES:
            # A key that is nothing but a prefix does not carry it: none may be left empty.
            start = prefix + known
            others = {key: None for key in keys if not key.startswith(start) or key == start}
            if not others:
                prefix = start
                break
            bare = (prefix + key[len(start) :] for key in keys if key not in others)
            twin = next((name for name in bare if name in others), "")
            # Of a block that was compiled by itself: a wrapper, wherever it stands.
            if len(others) < len(keys) and (twin or known != "_orig_mod."):
                mixed = _mixed(known, len(keys) - len(others), len(keys), twin or next(iter(others)))
                clash = mixed if twin else ""
                break
        else:
            break
    names: dict[str, str] = {}
    for key in keys:
        name = unwrapped(key[len(prefix) :])
        if other := names.get(name):
            clash = clash or f"{printable(other)} and {printable(key)} differ in wrappers only: which one is meant?"
        names[name] = key
    return ModelKeys(prefix, names, mixed=mixed, clash=clash)


def _by_tables(keys: Sequence[str], tables: Sequence[Names]) -> tuple[list[ModelKeys], str]:
    """(the models after prefixes of any kind, by the table that knows most; in words, why there are none though one
    fits: keys outside of it may well be its own)."""
    names = {unwrapped(key): key for key in keys}
    if len(names) < len(keys) or len(names) > _MOST:
        return [], ""
    most, best, strays, part = 0, dict[str, dict[str, str]](), list[tuple[str, str]](), ""
    for table in tables:
        # By prefix, the names that the table knows after it, each with the whole name; and the rows that they are of.
        groups, rows = defaultdict[str, dict[str, str]](dict), defaultdict[str, set[int]](set)
        for name in names:
            for start in _starts(name):
                if (row := table.row_of(name[start:])) is not None:
                    groups[name[:start]][name[start:]] = name
                    rows[name[:start]].add(row)
        # Be it a model with holes: those are for the table to tell.
        fitting = {p: known for p, known in groups.items() if 2 * len(rows[p] & table.required) >= len(table.required)}
        size = max(map(len, fitting.values()), default=0)
        if size > most:
            most, best, part = size, fitting, table.part
            strays = [(p, name) for p, known in groups.items() if p not in fitting for name in known.values()]
    if not best:
        return [], ""
    # Names outside all models that would belong to one if known prefixes were ignored.
    within = tuple(best)
    outside = [
        name for prefix, name in strays if set(prefix.split(".")) <= _OF_PREFIXES and not name.startswith(within)
    ]
    main = max(best, key=lambda prefix: len(best[prefix]))
    # Several models share their names; a group with other names is a part of one.
    parts = [known for known in best.values() if 2 * len(known.keys() & best[main].keys()) < len(known)]
    outside += [name for known in parts for name in known.values()]
    if outside:
        return [], _mixed(main, len(best[main]), len(keys), outside[0])
    models = _separated(best, names) if len(best) <= _MODELS else []
    return [model.as_part(part) for model in models], ""


def _separated(models: dict[str, dict[str, str]], names: dict[str, str]) -> list[ModelKeys]:
    """The models in a state dict: each has the keys with its prefix and no longer one of another model's, except what
    is plainly no part of it. That, and whatever carries no model's prefix, is left out."""
    kept: dict[str, dict[str, str]] = {prefix: {} for prefix in models}
    foreign: dict[str, list[str]] = {prefix: [] for prefix in models}
    apart: list[str] = []
    for name, key in names.items():
        prefix = max((name[:start] for start in _starts(name) if name[:start] in models), key=len, default=None)
        if prefix is None:
            apart.append(key)
        elif (rest := name[len(prefix) :]) in models[prefix] or not plainly_foreign(rest):
            kept[prefix][rest] = key
        else:
            foreign[prefix].append(key)
    return [
        ModelKeys(prefix, kept[prefix], (*foreign[prefix], *apart), known=len(known), fits=True)
        for prefix, known in models.items()
    ]


def _starts(name: str) -> list[int]:
    """Where a model's own name may begin in a name: at its beginning, and after the first few dots."""
    return [0, *(dot.end() for dot in islice(re.finditer(r"\.", name), _DEPTH))]


def _mixed(prefix: str, count: int, total: int, other: str) -> str:
    return (
        f"{count} of {total} keys carry the prefix {printable(prefix)!r} and the others do not ({printable(other)}): "
        "mixed prefixes cannot be told apart safely"
    )
