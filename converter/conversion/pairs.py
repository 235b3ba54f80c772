"""What is to be converted or compared: pairs of a checkpoint and its conversion, out of globs, folders and templates.

A list that comes out empty, or shorter than its author believes, is an error: zero comparisons never pass.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import system
from ..checkpoint.file import reads
from ..checkpoint.weight_names import SUFFIXES
from ..errors import UsageError, printable
from ..remote import is_url, matching, shown
from .templates import fill, has_placeholder, same_target
from .training_folders import checkpoints_under, folders_below, is_model, natural_order


@dataclass(frozen=True)
class Pair:
    """A checkpoint and its conversion; `options`, by name, and `hyper_parameters` are those of this pair alone."""

    original: str
    converted: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def located(self) -> Pair:
        """The same, for processes with another current folder: relative paths are absolute."""
        original = os.path.abspath(self.original) if os.path.lexists(self.original) else self.original  # on the hub
        converted = self.converted if is_url(self.converted) else os.path.abspath(self.converted)
        return replace(self, original=original, converted=converted)

    def __str__(self) -> str:
        return f"{shown(self.original)} -> {shown(self.converted)}"


def as_pair(given: Pair | tuple[str, str]) -> Pair:
    """A pair of paths as one of this class."""
    return given if isinstance(given, Pair) else Pair(os.fspath(given[0]), os.fspath(given[1]))


def expand(
    original: str,
    converted: str,
    *,
    base: str = "",
    options: Mapping[str, Any] | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
) -> list[Pair]:
    """The pairs that two texts of a user stand for, in natural order (epoch_9 before epoch_10).

    Args:
        original: a checkpoint, a glob such as 'runs/*/checkpoints/epoch_*.pth' ('**' goes through any number of
            folders), or a folder of checkpoints or of runs. A model folder or pipeline is one checkpoint. As much of
            the path as exists literally is taken literally, so that 'ckpt[1].pth' can be named. A URL is that of
            one checkpoint, or a glob.
        converted: the converted folder; for several originals with {stem} or {name} (the file's name without and with
            its suffix), {run} (the nearest folder above it that is not called `checkpoints` or the like), {parent} or
            {grandparent} (the folder that it lies in, and the one above).
        base: the folder that both are relative to, taken literally.
        options, hyper_parameters: of each pair.

    Raises: `UsageError` where nothing matches, or where two originals would go to one place.

    Example:
        >>> (tmp / "runs/sigma/checkpoints").mkdir(parents=True)
        >>> for name in ("epoch_7_step_9000.pth", "epoch_7_step_10000.pth"):
        ...     (tmp / "runs/sigma/checkpoints" / name).touch()
        >>> for pair in expand(f"{tmp}/runs", "converted/{run}/{stem}"):
        ...     print(pair.converted)
        converted/sigma/epoch_7_step_9000
        converted/sigma/epoch_7_step_10000
    """
    _paths(original, converted)
    paths = _originals(original if is_url(original) else os.path.join(base, original))
    more = (options or {}, hyper_parameters or {})
    pairs = [Pair(path, _target(base, converted, path), *more) for path in paths]
    if has_placeholder(converted):  # what the conversion of another one is, or will be, is no checkpoint of training
        results = {place_of(pair.converted) for pair in pairs if place_of(pair.converted) != place_of(pair.original)}
        pairs = [pair for pair in pairs if place_of(pair.original) not in results]
    return check_targets_unique(pairs)


def paired(original: str, converted: str) -> Pair:
    """One checkpoint, under just this name, with its converted path.

    Args:
        converted: a path, or a template as of `expand`.
    """
    _paths(original, converted)
    return Pair(original, _target("", converted, original))


def _paths(original: str, converted: str) -> None:
    for text, what in ((original, "original"), (converted, "converted")):
        if not text or "\0" in text:
            raise UsageError(f"the {what} path is {'not a path' if text else 'empty'}")


def check_targets_unique(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs, each once. Raises: `UsageError` where two originals would go to one place."""
    owners: dict[str, str] = {}
    for pair in pairs:
        claim_target(pair, owners)
    return list({os.path.abspath(pair.original): pair for pair in pairs}.values())


def claim_target(pair: Pair, owners: dict[str, str]) -> None:
    """Note among the `owners` of places, by `place_of`, the one of this pair's target. Raises: `UsageError` if it is
    that of another checkpoint."""
    other = owners.setdefault(place_of(pair.converted), pair.original)
    if os.path.abspath(other) != os.path.abspath(pair.original):
        raise same_target(other, pair.original, pair.converted)


def pair_up(
    originals: Sequence[str],
    converted: Sequence[str],
    options: Mapping[str, Any] | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
) -> list[Pair]:
    """The pairs of flags that are given several times: the first original with the first converted folder, and so on.

    >>> len(pair_up(["a.pth", "b.pth"], ["a", "b"]))
    2
    """
    if len(originals) != len(converted):
        raise UsageError(
            f"got {len(originals)} `orig_ckpt_path` and {len(converted)} `converted_path`: give one of each for every "
            "comparison; they are paired in order"
        )
    more: dict[str, Any] = {"options": options, "hyper_parameters": hyper_parameters}
    return [pair for one, other in zip(originals, converted, strict=True) for pair in expand(one, other, **more)]


@reads
def _originals(path: str) -> list[str]:
    if os.path.isdir(path) and not is_model(Path(path)):
        paths = checkpoints_under(path)
        if not paths:
            rule = f"no checkpoint ({', '.join(SUFFIXES)}) in it, in the folders in it, or in their checkpoints/"
            models = any(is_model(Path(place)) for place in folders_below(path))
            hint = f"; model folders are given as '{printable(os.path.join(path, '*'))}'" if models else ""
            raise UsageError(f"{printable(path)}: {rule}{hint}")
    elif os.path.lexists(path) or not glob.has_magic(path):
        return [path]  # where there is no such file, the reader says so
    elif is_url(path):
        if not (paths := matching(path)):
            raise UsageError(f"{shown(path)}: matches no checkpoint")
    else:
        # A folder among what matches lies on the way to checkpoints; it is one only if it is a model.
        matches = glob.glob(_pattern(path), recursive=True)
        paths = [match for match in matches if not os.path.isdir(match) or is_model(Path(match))]
        if not paths:
            only = ", only folders without a model" if matches else ""
            # `glob` finds nothing in a folder that it cannot read: this says so.
            near = checkpoints_under(_literal(path) or ".", unreadable=lambda error: None)
            hint = f"; there is {printable(near[0])}" if near else ""
            raise UsageError(f"{printable(path)}: matches no checkpoint{only}{hint}")
    return sorted(set(paths), key=natural_order)


def several(originals: Sequence[str], converted: str) -> bool:
    """Whether these paths may stand for more than one checkpoint: then each is handled alone, and none stops the
    rest."""
    return (
        len(originals) > 1
        or (has_placeholder(converted) and not os.path.lexists(converted))
        or any(glob.has_magic(path) and not os.path.lexists(path) for path in originals)
        or any(os.path.isdir(path) and not is_model(Path(path)) and checkpoints_under(path) for path in originals)
    )


def _pattern(path: str) -> str:
    """A path as a glob, in which leading folders that exist under exactly these names are taken literally."""
    literal = _literal(path)
    return glob.escape(literal) + path[len(literal) :]


def _literal(path: str) -> str:
    """The folders at the beginning of a path that exist, '' for none."""
    while path and not os.path.lexists(path):
        parent = os.path.dirname(path)
        path = "" if parent == path else parent
    return path


def _target(base: str, template: str, original: str) -> str:
    base = "" if is_url(template) else base
    whole = os.path.join(base, template)
    return whole if os.path.lexists(whole) else os.path.join(base, fill(template, original))


def place_of(path: str) -> str:
    """What is the same for all names of one place, whether or not anything is there."""
    place = os.path.normcase(os.path.realpath(path))
    return place.casefold() if system.ignores_case(place) else place
