"""What is to be converted or compared: pairs of a checkpoint and its conversion, out of globs, folders and templates.

A list that comes out empty, or shorter than its author believes, is an error: zero comparisons never pass.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.file import reads
from ..checkpoint.folder import CONFIG, model_folder, weight_files
from ..checkpoint.weight_names import SUFFIXES
from ..errors import InputError, UsageError, printable
from ..filenames import RECORD

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Pair:
    """A checkpoint and its conversion; `options`, by name, and `hyper_parameters` are those of this pair alone."""

    original: str
    converted: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)


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
        original: a checkpoint, a glob such as 'runs/*/epoch_*.pth' ('**' goes through any number of folders), or a
            folder of checkpoints. A model folder or pipeline is one checkpoint. As much of the path as exists
            literally is taken literally, so that 'ckpt[1].pth' can be named.
        converted: the converted folder; for several originals with {stem}, {name} or {parent}: the file's name
            without and with its suffix, and the name of the folder that it lies in.
        base: the folder that both are relative to, taken literally.
        options, hyper_parameters: of each pair.

    Raises: `UsageError` where nothing matches, or where two originals would go to one place.

    Example:
        >>> for name in ("epoch_9.pth", "epoch_10.pth"):
        ...     (tmp / name).touch()
        >>> for pair in expand(f"{tmp}/epoch_*.pth", "converted/{stem}"):
        ...     print(pair.converted)
        converted/epoch_9
        converted/epoch_10
    """
    _paths(original, converted)
    paths = _originals(os.path.join(base, original))
    more = (options or {}, hyper_parameters or {})
    return check_targets_unique([Pair(path, _fill_template(base, converted, path), *more) for path in paths])


def paired(original: str, converted: str) -> Pair:
    """One checkpoint, under just this name, with its converted path.

    Args:
        converted: a path, or a template with {stem}, {name} or {parent}.
    """
    _paths(original, converted)
    return Pair(original, _fill_template("", converted, original))


def _paths(original: str, converted: str) -> None:
    for text, what in ((original, "original"), (converted, "converted")):
        if not text or "\0" in text:
            raise UsageError(f"the {what} path is {'not a path' if text else 'empty'}")


def check_targets_unique(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs, each once. Raises: `UsageError` where two originals would go to one place."""
    places: dict[str, str] = {}
    for pair in pairs:
        other = places.setdefault(os.path.abspath(pair.converted), pair.original)
        if other != pair.original:
            raise UsageError(
                f"{printable(other)} and {printable(pair.original)} have the same target {printable(pair.converted)}: "
                "tell their conversions apart with {stem}, {name} or {parent}"
            )
    return list({pair.original: pair for pair in pairs}.values())


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


def natural_order(path: str) -> tuple[list[tuple[str, int, str]], str]:
    """A sort key that reads runs of digits as numbers; paths that differ in leading zeros only are still told apart.

    >>> sorted(["e10", "e9", "e09"], key=natural_order)
    ['e09', 'e9', 'e10']
    """
    parts = re.split("([0-9]+)", path)
    # A number as (count of digits, digits): int() would refuse one of thousands of digits.
    numbers = [number.lstrip("0") for number in parts[1::2]] + [""]
    return [(text, len(number), number) for text, number in zip(parts[::2], numbers, strict=True)], path


@reads
def _originals(path: str) -> list[str]:
    if os.path.isdir(path) and not is_model(Path(path)):
        paths = in_folder(path)
        if not paths:
            raise UsageError(f"{printable(path)}: neither a model nor a folder with {', '.join(SUFFIXES)} files in it")
    elif os.path.lexists(path) or not glob.has_magic(path):
        return [path]  # where there is no such file, the reader says so
    else:
        # A folder among what matches lies on the way to checkpoints; it is one only if it is a model.
        matches = glob.glob(_pattern(path), recursive=True)
        paths = [match for match in matches if not os.path.isdir(match) or is_model(Path(match))]
        if not paths:
            os.listdir(_literal(path) or ".")  # `glob` finds nothing in a folder that it cannot read
            only = ", only folders without a model" if matches else ""
            raise UsageError(f"{printable(path)}: matches no checkpoint{only}")
    return sorted(set(paths), key=natural_order)


def in_folder(path: str) -> list[str]:
    """The checkpoints in a folder, told by their names, in natural order. Raises: `InputError` if it cannot be read."""
    try:
        return sorted((entry.path for entry in os.scandir(path) if _is_checkpoint(entry)), key=natural_order)
    except OSError as error:
        raise InputError.at(path, "", error.strerror or str(error)) from error


def several(originals: Sequence[str], converted: str) -> bool:
    """Whether these paths may stand for more than one checkpoint: then each is handled alone, and none stops the
    rest."""
    globs = any(glob.has_magic(path) and not os.path.lexists(path) for path in originals)
    return len(originals) > 1 or globs or (bool(_PLACEHOLDER.search(converted)) and not os.path.lexists(converted))


def _is_checkpoint(entry: os.DirEntry[str]) -> bool:
    name = entry.name
    return name.lower().endswith(SUFFIXES) and not name.startswith(".") and not entry.is_dir()


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


@reads
def is_model(folder: Path) -> bool:
    """Whether a folder is one model (or pipeline, or conversion), even a broken one, and not a folder of models."""
    if any(os.path.exists(folder / name) for name in (CONFIG, "model_index.json", RECORD)):
        return True
    try:
        if model_folder(folder) != folder:
            return True
    except InputError:
        return True  # a distributed checkpoint or an adapter: the reader says what is wrong with it
    try:
        weight_files(folder)
    except InputError:
        return any(folder.glob("*.index*.json"))  # without an index, it is that there are no weights
    return True


def _fill_template(base: str, template: str, original: str) -> str:
    if os.path.lexists(whole := os.path.join(base, template)):
        return whole
    path = Path(os.path.abspath(original))
    values = {
        "stem": path.name if os.path.isdir(path) else path.stem,
        "name": path.name,
        "parent": path.parent.name,
    }

    def fill(place: re.Match[str]) -> str:
        if place[1] not in values:
            raise UsageError(
                f"{printable(template)}: {{{printable(place[1])}}} is none of {{stem}}, {{name}}, {{parent}}"
            )
        if not values[place[1]]:
            raise UsageError(f"{printable(template)}: {printable(original)} has no {place[1]}")
        return values[place[1]]

    # In one pass: braces in a checkpoint's own name are no places.
    return os.path.join(base, _PLACEHOLDER.sub(fill, template))
