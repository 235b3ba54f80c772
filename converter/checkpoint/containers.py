"""Where in a file the weights lie: wrapper dicts, raw and EMA copies, and the prefixes that trainers put on keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from ..errors import InputError, UsageError, printable
from .file import InputFile
from .tensor import LazyTensor
from .torchfile import TorchFile, is_tensor, kind_of

# Wrapper key -> which weights it holds.
WRAPPERS = {"state_dict": "raw", "model": "raw", "state_dict_ema": "ema", "ema": "ema"}
# Longest first, because several may apply one after the other: `module._orig_mod.blocks...`.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "_orig_mod.", "module.", "model.")
TOP = "the top level"  # where the weights lie that no wrapper holds
KEY_LIMIT = 1024  # characters
# A view may be shared by many keys; more than this many times the file is an expansion, not sharing.
EXPANSION_LIMIT = 4


# Keys as the file has them, of any type, each with what makes its tensor: nothing is checked until it is asked for.
Items = list[tuple[Any, Callable[[str], LazyTensor]]]


@dataclass
class Candidate:
    """One state dict of a file: which weights it holds (raw or ema), where it lies, and its tensors, read lazily."""

    weights: str
    where: str
    file: InputFile
    items: Callable[[], Items] = field(repr=False)

    @cached_property
    def keyed(self) -> tuple[str, str, dict[str, LazyTensor]]:
        """(prefix, `mixed`, tensors by key without the prefix). Every key and tensor is checked here, and only here."""
        items = self.items()
        makers: dict[str, Callable[[str], LazyTensor]] = {}
        for key, make in items:
            if not isinstance(key, str) or not key or len(key) > KEY_LIMIT or not key.isprintable():
                raise self.file.error(self.where, f"a key that is not plain text: {shown(key, repr)}")
            if key in makers:
                raise self.file.error(self.where, f"two entries have the key {printable(key)}")
            makers[key] = make
        tensors = {key: make(key) for key, make in makers.items()}
        # What has to be read for a view counts, not only what it shows.
        total = sum(max(t.nbytes, t.span[1] - t.span[0]) for t in tensors.values())
        size = sum({t.storage.file.path: t.storage.file.size for t in tensors.values()}.values())
        if total > EXPANSION_LIMIT * size:
            raise self.file.error(
                self.where, f"its tensors add up to {total} bytes, of {size} in all: shared storages are expanded"
            )
        prefix, mixed = common_prefix(self, list(tensors))
        return prefix, mixed, {key[len(prefix) :]: tensor for key, tensor in tensors.items()}

    @property
    def prefix(self) -> str:
        return self.keyed[0]

    @property
    def mixed(self) -> str:
        """Why these keys may be ones that nobody knows: only some of them carry a prefix. '' where that is not so."""
        return self.keyed[1]

    @property
    def tensors(self) -> dict[str, LazyTensor]:
        return self.keyed[2]


def at_hand(tensors: Mapping[str, LazyTensor]) -> Items:
    """The items of a candidate whose tensors are known already."""

    def always(tensor: LazyTensor) -> Callable[[str], LazyTensor]:
        return lambda name: tensor

    return [(key, always(tensor)) for key, tensor in tensors.items()]


def common_prefix(candidate: Candidate, keys: list[str]) -> tuple[str, str]:
    """(the known prefix, possibly of several parts, that all keys carry; in words, the one that only some carry).

    What only some keys carry stays: it is a part of their names (`model.embed` beside `lm_head`), or else the file is
    a mixture that no family will know. Two keys that differ in nothing else are refused here: each of them could
    be the weight.
    """
    prefix = ""
    while keys:
        for known in PREFIXES:
            # A key that is nothing but a prefix does not carry it: none may be left empty.
            carrying = [key for key in keys if key.startswith(prefix + known) and key != prefix + known]
            if len(carrying) == len(keys):
                prefix += known
                break
            if carrying:
                others = dict.fromkeys(keys)
                for key in carrying:
                    del others[key]
                twins = [prefix + key[len(prefix + known) :] for key in carrying]
                twin = next((key for key in twins if key in others), "")
                mixed = (
                    f"{len(carrying)} of {len(keys)} keys carry the prefix {known!r} and the others do not "
                    f"({printable(twin or next(iter(others)))}): mixed prefixes cannot be told apart safely"
                )
                if twin:
                    raise candidate.file.error(candidate.where, mixed)
                return prefix, mixed
        else:
            break
    return prefix, ""


def candidates(torch_file: TorchFile) -> tuple[list[Candidate], list[str]]:
    """(state dicts, other top-level entries in words) of a torch file."""
    file = torch_file.file
    pairs = torch_file.pairs(torch_file.root, TOP)
    if pairs is None:
        raise file.error(
            "data.pkl",
            f"holds {kind_of(torch_file.root)}, not a dict of tensors"
            + (" (a whole pickled model? save model.state_dict() instead)" if not is_tensor(torch_file.root) else ""),
        )
    seen = [(key, node) for key, node in pairs if isinstance(key, str) and key in WRAPPERS]
    if len(seen) != len({key for key, _ in seen}):
        raise file.error("data.pkl", "two entries have the same wrapper key")
    wrapped = [(key, node) for key, node in seen if torch_file.pairs(node, key) is not None]
    if not wrapped:
        if not any(is_tensor(node) for _, node in pairs):
            raise file.error("data.pkl", _no_weights([printable(key, 40) for key, _ in pairs if isinstance(key, str)]))
        return [Candidate("raw", TOP, file, partial(_lazy, torch_file, pairs))], []
    found = [
        Candidate(WRAPPERS[key], key, file, partial(_lazy, torch_file, torch_file.pairs(node, key) or []))
        for key, node in wrapped
    ]
    taken = {key for key, _ in wrapped}
    rest = [(key, node) for key, node in pairs if not (isinstance(key, str) and key in taken)]
    loose = [(key, node) for key, node in rest if isinstance(key, str) and is_tensor(node)]
    # `{**weights, "ema": ...}`: weights have dotted names, and a lone `step` has not.
    if any("." in key for key, _ in loose):
        found.insert(0, Candidate("raw", TOP, file, partial(_lazy, torch_file, loose)))
        rest = [(key, node) for key, node in rest if not (isinstance(key, str) and is_tensor(node))]
    return found, [f"{shown(key)}: {kind_of(node)}" for key, node in rest]


def shown(key: Any, form: Callable[[str], str] = str) -> str:
    """A key for a report. Anything but text is named by its kind: to hash or print a nested key may never end."""
    return printable(form(key[:41]), 40) if isinstance(key, str) else kind_of(key)


def _lazy(torch_file: TorchFile, pairs: list[tuple[Any, Any]]) -> Items:
    return [(key, partial(torch_file.tensor, node=node)) for key, node in pairs]


def _no_weights(keys: list[str]) -> str:
    if {"optimizer", "param_groups", "optimizer_state_dict"} & set(keys):
        return "holds an optimizer's state but no weights: take the checkpoint that was saved beside it"
    if any(key.startswith(("shard", "_flat_param", "flat_param")) for key in keys):
        return "an FSDP shard: gather a full state dict first (FullStateDictConfig)"
    return f"holds no state dict; its top-level keys are: {', '.join(keys[:8]) or 'none'}"


def choose(found: list[Candidate], weights: str | None) -> Candidate:
    """The state dict asked for: raw unless the file has only EMA weights or `weights` says 'ema'."""
    by_kind: dict[str, list[Candidate]] = {}
    for candidate in found:
        by_kind.setdefault(candidate.weights, []).append(candidate)
    wanted = weights or ("raw" if "raw" in by_kind else "ema")
    chosen = by_kind.get(wanted, [])
    if not chosen:
        raise UsageError(
            f"{printable(found[0].file.path)}: --weights {wanted}, but the file holds only "
            + ", ".join(f"{c.weights} weights ({c.where})" for c in found)
        )
    if len(chosen) > 1:
        raise InputError.at(
            chosen[0].file.path,
            "data.pkl",
            f"several {wanted} state dicts: {', '.join(c.where for c in chosen)}",
        )
    return chosen[0]
