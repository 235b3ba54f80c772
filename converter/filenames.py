"""The names of the files that a conversion leaves beside a model, and the tool's own name in them."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import TypeVar

AnyPath = TypeVar("AnyPath", bound=PurePath)
SIDECAR = "original_extras.safetensors"  # what diffusers has no place for
RECORD = "conversion.json"
PARITY = "parity.json"  # the report of a comparison, where one was asked for
PARITY_PAGE = "parity.html"  # the same for people
TOOL = "convert-pixart"


def record_places(model: AnyPath) -> tuple[AnyPath, AnyPath]:
    """Where the record of a model folder may lie, on the disk or in a repository: in it, or, of `out/transformer`, in
    `out`."""
    whole = model.absolute() if isinstance(model, Path) else model  # the text of "." and ".." shows no parent
    return model, whole.parent
