"""What stands against a component of a pipeline: by its config and its files, before any of it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .model import PictureModel


@dataclass(frozen=True)
class Problem:
    """Something wrong with a part of a pipeline."""

    part: str  # such as "vae"
    words: str  # what is wrong, with the evidence
    remedy: str  # the command that mends it
    evidence: str = ""
    fault: bool = True


def component_problems(part: str, folder: Path, model: PictureModel) -> Iterator[Problem]:
    """Of the `vae`, `text_encoder`, `tokenizer` or `scheduler` in a folder, with this transformer."""
    yield from ()
