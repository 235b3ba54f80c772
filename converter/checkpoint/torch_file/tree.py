"""Looking through what a torch file holds: every dict of tensors, at any depth, and what else may be weights."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ...errors import printable
from .kinds import describe, is_tensor, pairs_of
from .unpickle import Call, Dict, Global

AGAIN = 8  # further names under which dicts are taken up that are there already: each is looked at again
INTEGERS = 2_000  # that are kept
DEPTH = 16  # keys that lead to a dict of tensors
UNNAMED = (
    "tensors in a list, without names (as diffusers' EMAModel and torch_ema keep an EMA): put them into the model with "
    "EMAModel.copy_to(model.parameters()), and save model.state_dict()"
)
_PLAIN = (int, float, str, bytes, type(None))
_LONGEST = 1024  # characters of a key that are looked at
# What holds copies of the weights that are none: their moments and gradients.
_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
_OPTIMIZER = ("optim", "opt", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum", "momentum_buffer", "grad", "grads")

Pairs = list[tuple[Any, Any]]
Path = tuple[str, ...]


@dataclass
class Contents:
    """What lies in a file.

    `dicts`: (the keys that lead to a dict of tensors, its node, its entries that may be weights); `duplicates`: paths
    that two entries have; `pairs`: all at the top level; `hints`: weights that are there and have no names, in words;
    `optimizer`: whether there is an optimizer's state; `integers`: whole numbers by their place, such as
    `hyper_parameters.num_heads`: what the program that wrote the file recorded of itself.
    """

    dicts: list[tuple[Path, Any, Pairs]] = field(default_factory=list)
    duplicates: set[Path] = field(default_factory=set)
    pairs: Pairs = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    optimizer: bool = False
    integers: dict[str, int] = field(default_factory=dict)


def search(root: Any) -> Contents:
    """Every dict of tensors below the root of a pickle. Each object is looked at once, however often it is shared."""
    contents, seen, at, again = Contents(), set[int](), dict[int, int](), 0
    contents.pairs = pairs_of(root) or []
    contents.optimizer = any(of_optimizer((key,)) for key, _ in _texts(contents.pairs))
    waiting: deque[tuple[Path, Any]] = deque([((), root)])
    while waiting:
        path, node = waiting.popleft()
        if id(node) in seen:
            if id(node) in at and again < AGAIN:  # under another name it may be meant all the same
                contents.dicts.append((path, *contents.dicts[at[id(node)]][1:]))
                again += 1
            continue
        seen.add(id(node))
        pairs = pairs_of(node)
        if pairs is None and isinstance(node, list | tuple):
            if (count := sum(map(is_tensor, node))) > 1:
                contents.hints.append(f"{_shown(path) or 'the file'}: {count} {UNNAMED}")
            pairs = [(str(index), each) for index, each in enumerate(node) if _holds(each)]
        # Of an object, such as a namespace of arguments.
        attributes = [s.pairs for s in node.states if isinstance(s, Dict)] if isinstance(node, Call) else []
        for key, value in chain(node.pairs, *attributes) if isinstance(node, Dict) else ():
            if type(value) is int and isinstance(key, str) and len(contents.integers) < INTEGERS:
                contents.integers[_shown((*path, key))] = value
        if pairs is None:
            if any(key == "_modules" for each in attributes for key, _ in each):  # what every nn.Module has
                where = f"{_shown(path)}: " if path else ""
                contents.hints.append(
                    f"{where}a whole pickled module ({describe(node)}): save its .state_dict() instead"
                )
            continue
        contents.optimizer |= any(key == "param_groups" or key in _MOMENTS for key, _ in _texts(pairs))
        # What an optimizer keeps of one parameter is none of the weights.
        moments = any(key in _MOMENTS for key, node in _texts(pairs) if is_tensor(node))
        if not moments and (weights := _weights(pairs)):
            at[id(node)] = len(contents.dicts)
            contents.dicts.append((path, node, weights))
        if len(path) < DEPTH:
            names = Counter(key for key, _ in _texts(pairs))
            inner = [(key, node) for key, node in _texts(pairs) if _holds(node)]
            # Of a key that two entries have, nobody can say which one is meant.
            contents.duplicates |= {(*path, key) for key, _ in inner if names[key] > 1}
            waiting.extend(((*path, key), node) for key, node in inner)
    if not contents.dicts and not contents.hints and not contents.optimizer:
        contents.dicts = _intended(root)
    return contents


def _texts(pairs: Pairs) -> Iterator[tuple[str, Any]]:
    """The entries whose keys are texts or, as a text, whole numbers."""
    return ((str(key), node) for key, node in pairs if isinstance(key, str) or type(key) is int)


def _holds(node: Any) -> bool:
    """Whether something may lie inside."""
    return isinstance(node, list | tuple | Dict) and not is_tensor(node)


def _weights(pairs: Pairs) -> Pairs:
    """The entries of a dict that are meant as weights: where there are tensors under names as weights have them, these
    and whatever else cannot be anything but a weight, so that it is refused and not passed over; else tensors, if
    there is nothing else."""
    if not any(is_tensor(node) for _, node in pairs):
        return []
    if any("." in key[:_LONGEST] for key, node in _texts(pairs) if is_tensor(node)):
        return [(key, node) for key, node in pairs if not _plainly_no_weight(key, node)]
    return pairs if all(is_tensor(node) for _, node in pairs) else []


def _plainly_no_weight(key: Any, node: Any) -> bool:
    """Whether an entry is no weight: a number, a text or a container, and not called like a weight."""
    return (isinstance(node, _PLAIN) or _holds(node)) and isinstance(key, str) and "." not in key[:_LONGEST]


def _intended(root: Any) -> list[tuple[Path, Any, Pairs]]:
    """Where no dict of tensors was found: what may have been meant as one, so that what is in it is called by its kind.
    That is the top level, or a dict right below, if there is a tensor or an object in it."""
    for path, node in (((), root), *(((key,), inner) for key, inner in _texts(pairs_of(root) or []))):
        pairs = pairs_of(node) or []
        if any(isinstance(each, Call | Global) and pairs_of(each) is None for _, each in pairs):
            return [(path, node, pairs)]
    return []


def of_optimizer(path: Path) -> bool:
    """Whether a place is where an optimizer keeps its numbers, which may have the names of the weights."""
    return any(part.startswith("optimizer") or part in _OPTIMIZER for part in path)


def _shown(path: Path) -> str:
    return ".".join(printable(part, 80) for part in path)
