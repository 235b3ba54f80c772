"""Opening a model by the names that the families know, in a file, a folder, or several folders beside each other."""

from __future__ import annotations

import os
from pathlib import Path

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.file import present
from ..checkpoint.folder import CONFIG, cached_snapshot
from ..errors import InputError
from ..families import Family, families, find, tables
from ..filenames import RECORD
from .record import find_record


def open_model(
    path: str | os.PathLike[str],
    weights: str | None = None,
    state_dict_key: str | None = None,
    family: str | None = None,
) -> Checkpoint:
    """Open a checkpoint as `open_checkpoint` does, its weights found by the names that the families know: at any place
    in the file, behind any prefix, beside whatever else.

    Args:
        family: only by the names of this one.
    """
    insisted = None if family is None else find(family)
    return open_checkpoint(path, weights, state_dict_key, tables(insisted), folders_in(path, insisted))


def folders_in(path: str | os.PathLike[str], family: Family | None = None) -> tuple[str, ...]:
    """The folders at a path that are one model together, of this family or any; () where there are none such.

    At least one of them has to show by its keys what it is: in a pipeline of somebody else's, folders of these names
    may hold anything.

    Raises: `InputError` where one cannot be read, or is gone, although a record says that it is of such a model.
    """
    if not os.path.isdir(path):
        return ()
    place = cached_snapshot(Path(path))
    for known in [family] if family else families().values():
        if not known.several:
            continue
        if missing := [f"{folder}/{CONFIG}" for folder in known.folders if not present(place / folder / CONFIG)]:
            _refuse_rest(place, missing, known)
        elif any(_is_part(place, folder, known) for folder in known.folders):
            return known.folders
    return ()


def _refuse_rest(place: Path, missing: list[str], family: Family) -> None:
    """Raises: `InputError` where the record in a folder says that what is missing of the model was written there."""
    record = find_record(place)
    if record.folder != place or record.content.get("family") != family.name:
        return
    if gone := [name for name in missing if name in record.content["written"]]:
        rest = f"{RECORD} says that this {family.title} has it: bring it back, or give the folder in it that is meant"
        raise InputError.at(place, gone[0], f"missing: {rest}")


def _is_part(place: Path, folder: str, family: Family) -> bool:
    """Whether the keys of a folder are those of that part of a model of this family."""
    try:
        with open_checkpoint(place / folder, tables=tables(family)) as checkpoint:
            return checkpoint.selected.keys.part == family.parts[folder]
    except InputError:
        if find_record(place).content.get("family") == family.name:
            raise
        return False
