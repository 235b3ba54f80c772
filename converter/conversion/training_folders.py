"""Where training leaves checkpoints: in the folder of a run, or in `checkpoints/` in it, with runs side by side."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePath

from ..checkpoint.file import reads
from ..checkpoint.folder import CONFIG, model_folder, weight_files
from ..checkpoint.weight_names import SUFFIXES
from ..errors import AdapterError, InputError
from ..filenames import RECORD, SIDECAR

# Folders with the checkpoints of a run, or with one of them: these names are the same in every run.
_NAMES_OF_HOLDERS = re.compile(
    r"(checkpoint|ckpt|model|save)s?|weights|((checkpoint|ckpt|epoch|step|iter|global_step)[-_=]?\d+[-_]?)+", re.I
)
# Files that lie beside checkpoints, and that no weights of a model are in, or only a part of them.
_BESIDE = re.compile(
    r"(optimi[sz]er|optim[._-]|(lr_)?scheduler|scaler|rng_state|random_state|training_args|null_embed|metadata\.).*"
    r"|.*_disc\.\w+|.*optim_states.*|.*-\d{5}-of-\d{5}\.\w+|" + re.escape(SIDECAR),
    re.I,
)


def run_folder(checkpoint: PurePath) -> PurePath:
    """The nearest folder above a checkpoint that tells its run from others; the root or the current folder for none.

    It follows from the path alone, so that it is the same for one checkpoint and for many.

    >>> run_folder(Path("runs/sigma/checkpoints/epoch_7_step_9000.pth")).name, run_folder(Path("/dit/0050000.pt")).name
    ('sigma', 'dit')
    """
    return next((folder for folder in checkpoint.parents if not _holds_checkpoints(folder)), PurePath())


def _holds_checkpoints(folder: str | PurePath) -> bool:
    return _NAMES_OF_HOLDERS.fullmatch(os.path.basename(folder)) is not None


def natural_order(path: str) -> tuple[list[tuple[str, int, str]], str]:
    """A sort key that reads runs of digits as numbers; paths that differ in leading zeros only are still told apart.

    >>> sorted(["e10", "e9", "e09"], key=natural_order)
    ['e09', 'e9', 'e10']
    """
    parts = re.split("([0-9]+)", path)
    # A number as (count of digits, digits): int() would refuse one of thousands of digits.
    numbers = [number.lstrip("0") for number in parts[1::2]] + [""]
    return [(text, len(number), number) for text, number in zip(parts[::2], numbers, strict=True)], path


def _raise(error: InputError) -> None:
    rule = "checkpoints are looked for there: make it readable, or match those elsewhere with a glob"
    raise InputError(f"{error}: {rule}") from error


def checkpoints_under(folder: str, *, unreadable: Callable[[InputError], object] = _raise) -> list[str]:
    """The checkpoints of the runs in a folder, told by their names, in natural order.

    They are looked for in the folder, in the folders in it, and in those of these that are called `checkpoints` or the
    like. A model folder, such as an earlier result, is one model and no place of checkpoints; optimizer states and
    shards are none.

    Args:
        unreadable: told of each folder in it that cannot be read. Default: that is an error.

    Raises: `InputError` if the folder itself cannot be read.
    """
    paths = _checkpoints_in(folder)
    for place in folders_below(folder):
        try:
            if (files := _checkpoints_in(place)) and not _holds_a_model(Path(place)):
                paths += files  # a `config.json` of training is no model's
        except InputError as error:
            if os.path.isdir(place):  # else it went while we looked
                unreadable(error)
    return sorted(paths, key=natural_order)


def is_looked_into(place: str, folder: str) -> bool:
    """Whether `checkpoints_under(folder)` looks into this place, which may not exist yet."""
    real, top = os.path.realpath(place), os.path.realpath(folder)
    if real in {top, *map(os.path.realpath, folders_below(folder))}:
        return True
    inside = Path(real).relative_to(top).parts if Path(top) in Path(real).parents else ("", "", "")
    return len(inside) == 1 or (len(inside) == 2 and _holds_checkpoints(inside[1]))


def folders_below(folder: str) -> list[str]:
    """The folders in a folder in which its checkpoints may lie; of two names of one folder that which is no link."""
    runs = _folders_in(folder)
    inside = [path for run in runs for path in _folders_in(run)]
    top, places = os.path.realpath(folder), dict[str, str]()
    for path in [*runs, *filter(_holds_checkpoints, inside)]:
        real = os.path.realpath(path)
        if real == os.path.join(top, os.path.relpath(path, folder)):
            places[real] = path
        else:
            places.setdefault(real, path)
    places.pop(top, None)
    return list(places.values())


def _folders_in(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if _is_folder(entry) and not entry.name.startswith(".")]
    except OSError:
        return []  # its files cannot be listed either, and that is told


@reads
def _checkpoints_in(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        if not os.access(folder, os.X_OK):  # its names are listed, but no file in it can be opened
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return [entry.path for entry in entries if _is_called_like_one(entry.name) and not _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()  # a link in a circle is an error to `is_dir`


def _is_called_like_one(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".") and not _BESIDE.fullmatch(name)


def is_model(folder: Path) -> bool:
    """Whether a folder is one model (or pipeline, or conversion), even a broken one, and not a folder of models."""
    # That of a run, with its `checkpoints/`, is none of a model.
    config = os.path.exists(folder / CONFIG) and not any(map(_holds_checkpoints, _folders_in(os.fspath(folder))))
    return config or _holds_a_model(folder)


@reads
def _holds_a_model(folder: Path) -> bool:
    if any(os.path.exists(folder / name) for name in ("model_index.json", RECORD)):
        return True
    try:
        if model_folder(folder) != folder:
            return True
    except InputError:
        return True  # a distributed checkpoint or an adapter: the reader says what is wrong with it
    try:
        weight_files(folder)
    except AdapterError:
        return True
    except InputError:
        return any(folder.glob("*.index*.json"))  # without an index, it is that there are no weights
    return True
