"""The state dicts of a file: found by looking, each with where it lies; one of them is chosen."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from ..errors import InputError, UsageError, printable
from .file import InputFile
from .key_names import Spelling, Tables, spellings
from .tensor import LazyTensor
from .torch_file.kinds import is_tensor, kind_of
from .torch_file.reader import TorchFile
from .torch_file.tree import Found, look, of_optimizer, pairs_of
from .weights_kind import EMA, RAW, meaning

TOP = "the top level"  # where the weights lie that no wrapper holds
FILE = "the file"  # of a format without wrappers
KEY_LIMIT = 1024  # characters
MOST_SHOWN = 12
# A view may be shared by many keys; more than this many times the file is an expansion, not sharing.
EXPANSION_LIMIT = 4


# Keys as the file has them, of any type, each with what makes its tensor: nothing is checked until it is asked for.
Items = list[tuple[Any, Callable[[str], LazyTensor]]]


@dataclass
class Candidate:
    """One model's weights in a file: which they are ('raw', 'ema' or 'unknown'), where they lie, what tells which they
    are where that is not just the place, and their tensors, read lazily. In a file that is not opened, it has none."""

    weights: str
    where: str
    file: InputFile
    items: Callable[[], Items] = field(repr=False)
    spelling: Spelling = field(repr=False)
    why: str = ""

    @cached_property
    def tensors(self) -> dict[str, LazyTensor]:
        """The tensors by the model's names. Every key and tensor is checked here, and only here."""
        makers: dict[str, Callable[[str], LazyTensor]] = {}
        for key, make in self.items():
            if not isinstance(key, str) or not key or len(key) > KEY_LIMIT or not key.isprintable():
                raise self.file.error(self.where, f"a key that is not plain text: {shown(key, repr)}")
            if key in makers:
                raise self.file.error(self.where, f"two entries have the key {printable(key)}")
            makers[key] = make
        if self.spelling.clash:
            raise self.file.error(self.where, self.spelling.clash)
        tensors = {name: makers[key](key) for name, key in self.spelling.keys.items()}
        # What has to be read for a view counts, not only what it shows.
        total = sum(max(t.nbytes, t.span[1] - t.span[0]) for t in tensors.values())
        size = sum({t.storage.file.path: t.storage.file.size for t in tensors.values()}.values())
        if total > EXPANSION_LIMIT * size:
            raise self.file.error(
                self.where, f"its tensors add up to {total} bytes, of {size} in all: shared storages are expanded"
            )
        return tensors

    @property
    def prefix(self) -> str:
        return self.spelling.prefix

    @property
    def named(self) -> str:
        """Where it lies and which weights it holds, for a list to choose from."""
        return f"{self.where} ({self.weights}{f': {self.why}' if self.why else ''})"

    @cached_property
    def places(self) -> frozenset[Any]:
        """Where its tensors lie: the very same ones under a second name, not merely equal ones, lie there too."""
        return frozenset((n, id(t.storage), t.offset, t.shape, t.strides) for n, t in self.tensors.items())


def at_hand(tensors: Mapping[str, LazyTensor]) -> Items:
    """The items of a candidate whose tensors are known already."""

    def always(tensor: LazyTensor) -> Callable[[str], LazyTensor]:
        return lambda name: tensor

    return [(key, always(tensor)) for key, tensor in tensors.items()]


def refused(tensors: Mapping[str, InputError]) -> Items:
    """The items that are an error as soon as they are asked for, and none where they are left out."""

    def failing(error: InputError) -> Callable[[str], LazyTensor]:
        def fail(name: str) -> LazyTensor:
            raise error

        return fail

    return [(key, failing(error)) for key, error in tensors.items()]


def split(
    path: Sequence[str],
    file: InputFile,
    keys: Sequence[Any],
    items: Callable[[], Items],
    tables: Tables | None,
    *,
    top: str = TOP,
    beside: Mapping[str, Any] | None = None,
) -> list[Candidate]:
    """The candidates in one state dict: as a rule one; several where models lie in it behind prefixes of their own.

    Args:
        path: the keys that lead to it; `top`: what a path without any is called.
        keys: those of the state dict, of any type.
        beside: the entries at the top level of the file, by which some writers are told.
    """
    plain = list(dict.fromkeys(key for key in keys if isinstance(key, str) and len(key) <= KEY_LIMIT))
    found = spellings(plain, tables)
    made = []
    for spelling in found:
        inner = spelling.prefix.rstrip(".")
        place = [*path, *inner.split(".")] if len(found) > 1 and inner else path
        weights, why = meaning(place, spelling.prefix, beside or {})
        made.append(Candidate(weights, ".".join(place) or top, file, items, spelling, why))
    return made


def candidates(torch_file: TorchFile, tables: Tables | None = None) -> tuple[list[Candidate], list[str], Found]:
    """(state dicts, other top-level entries in words, all that was found) of a torch file."""
    file, root = torch_file.file, torch_file.root
    seen = look(root)
    made: list[Candidate] = []
    moments: list[Candidate] = []  # or so it seems by their place
    for path, node, entries in seen.dicts:
        where = tuple(printable(part, 80) for part in path)
        if any(path[:count] in seen.twice for count in range(1, len(path) + 1)):
            raise file.error("data.pkl", f"two entries have the same wrapper key ({'.'.join(where)})")
        items = partial(_lazy, torch_file, node, entries, ".".join(where) or TOP)
        found = split(where, file, [key for key, _ in entries], items, tables, beside=seen.top)
        (moments if of_optimizer(path) else made).extend(found)
    if not any(candidate.spelling.fits for candidate in made):
        made = [candidate for candidate in moments if candidate.spelling.fits] or made
    if not made:
        raise file.error("data.pkl", _no_weights(root, seen))
    taken = {path[0] for path, _, _ in seen.dicts if path and not of_optimizer(path)}
    loose = {id(node) for path, _, entries in seen.dicts if not path for _, node in entries}
    rest = [
        f"{shown(key)}: {kind_of(node)}"
        for key, node in seen.pairs
        if not (isinstance(key, str | int) and str(key) in taken) and id(node) not in loose
    ]
    return made, rest, seen


def shown(key: Any, form: Callable[[str], str] = str) -> str:
    """A key for a report. Anything but text is named by its kind: to hash or print a nested key may never end."""
    return printable(form(key[:41]), 40) if isinstance(key, str) else kind_of(key)


def _lazy(torch_file: TorchFile, node: Any, entries: list[tuple[Any, Any]], where: str) -> Items:
    torch_file.pairs(node, where)  # a dict that its attributes change when it is loaded is refused
    return [(key, partial(torch_file.tensor, node=value)) for key, value in entries]


def _no_weights(root: Any, seen: Found) -> str:
    if seen.hints:
        return seen.hints[0]
    if pairs_of(root) is None:
        whole = "" if is_tensor(root) else " (a whole pickled model? save model.state_dict() instead)"
        return f"holds {kind_of(root)}, not a dict of tensors{whole}"
    keys = [printable(key, 40) for key, _ in seen.pairs if isinstance(key, str)]
    if seen.optimizer:
        return "holds an optimizer's state but no weights: take the checkpoint that was saved beside it"
    if any(key.startswith(("shard", "_flat_param", "flat_param")) for key in keys):
        return "an FSDP shard: gather a full state dict first (FullStateDictConfig)"
    return f"holds no state dict; its top-level keys are: {', '.join(keys[:8]) or 'none'}"


def choose(
    found: Sequence[Candidate], weights: str | None, state_dict_key: str | None = None, hints: Sequence[str] = ()
) -> Candidate:
    """The candidate that was asked for; else raw weights where there is one such and all others are its EMA; else the
    only one.

    Args:
        hints: weights that cannot be read, in words.

    Raises: `UsageError` for what the file does not hold, `InputError` where several may be meant.
    """
    path = found[0].file.path
    if state_dict_key is not None:
        chosen = [candidate for candidate in found if candidate.where == state_dict_key]
        if not chosen:
            raise UsageError(
                f"{printable(path)}: --state_dict_key {printable(state_dict_key)}: there is {_list(found)}"
            )
    else:
        pool = likely(found)
        chosen = _wanted(pool, weights, path, hints)
    chosen = _distinct(chosen)
    if len(chosen) > 1:
        kind = f"{chosen[0].weights} " if len({c.weights for c in chosen}) == 1 else ""
        flag = f"--state_dict_key {shlex.quote(chosen[0].where)}"
        which = f"--state_dict_key says which one is meant, such as {flag}"
        if state_dict_key is not None:
            which = "two have this place, and no flag tells them apart"
        raise InputError.at(path, "", f"several {kind}state dicts: {_list(chosen)}{_besides(found, chosen)}: {which}")
    return chosen[0]


def _wanted(pool: list[Candidate], weights: str | None, path: str, hints: Sequence[str]) -> list[Candidate]:
    """Of those that may be meant, those that are wanted: one, if it is beyond doubt."""
    kinds = {kind: [c for c in pool if c.weights == kind] for kind in (RAW, EMA)}
    if not weights:
        return kinds[RAW] if kinds[RAW] and len(kinds[RAW]) + len(kinds[EMA]) == len(pool) else pool
    if not kinds[weights]:
        kind = "/".join(dict.fromkeys(c.weights for c in pool))
        there = ", ".join(c.where for c in pool[:MOST_SHOWN])
        more = "".join(f"; {hint}" for hint in hints)
        raise UsageError(
            f"{printable(path)}: --weights {weights}, but the file holds only {kind} weights ({there}){more}"
        )
    return kinds[weights]


def asked_by(candidate: Candidate, found: Sequence[Candidate]) -> str:
    """The flag that takes this one of several: by its kind where that is beyond doubt, else by its place."""
    alone = sum(other.weights == candidate.weights for other in found) == 1
    if alone and candidate.weights in (RAW, EMA):
        return f"--weights {candidate.weights}"
    return f"--state_dict_key {shlex.quote(candidate.where)}"


def likely(found: Sequence[Candidate]) -> list[Candidate]:
    """Those that a kind of model fits, or that are not opened yet; where none fits, the large ones."""
    most = max(len(candidate.spelling.keys) for candidate in found)
    fits = any(candidate.spelling.fits for candidate in found)
    return [c for c in found if not c.spelling.keys or (c.spelling.fits if fits else 2 * len(c.spelling.keys) >= most)]


def _distinct(found: list[Candidate]) -> list[Candidate]:
    """Each once, be it there under several names."""
    return list({c.places: c for c in reversed(found)}.values())[::-1] if len(found) > 1 else found


def _besides(found: Sequence[Candidate], chosen: Sequence[Candidate]) -> str:
    others = [candidate for candidate in likely(found) if candidate not in chosen]
    return f"; there too: {_list(others)}" if others else ""


def _list(found: Sequence[Candidate]) -> str:
    more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    return ", ".join(candidate.named for candidate in found[:MOST_SHOWN]) + more
