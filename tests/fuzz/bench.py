"""What a check works with: chance, a place, the seeds, and the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import click
from makers import HEADS

from converter.cli.main import pixart, run

from . import oracles
from .confined import Outcome, confined
from .seeds import Seeds

GIVEN = ("--num_attention_heads", HEADS)
READ, WRITTEN = (0, 3), (0, 2, 3)  # the exit codes of a look at a file, and of a conversion


@dataclass
class Bench:
    """One input: its own `chance`, the folder `place` where commands run and find it, and the seeds of all inputs.

    `known` keeps what the seeds become, for the inputs that follow.
    """

    chance: Random
    place: Path
    seeds: Seeds
    known: dict[Any, Any] = field(default_factory=dict)

    def command(self, *arguments: object, command: click.Command = pixart) -> Outcome:
        """The command line in a process of its own, with the place as the current folder."""
        words = [str(argument) for argument in arguments]
        return confined(lambda: run(command, "pixart", words), self.place)

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.place / name
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    def library(self, path: Path) -> tuple[dict[str, oracles.Held], str]:
        return oracles.read(path, self.place.with_name("library"))

    def written(self, path: Path) -> oracles.Held:
        """The tensors of a file that we wrote, as its library reads them."""
        held, refused = self.library(path)
        return max(held.values(), key=len) if held else {"refused by its own library": [refused]}


Check = Callable[[Bench], list[str]]
