"""What a command reads and what it writes (or compares with), by position or by the options that name them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from ..errors import printable, shortened
from .options import empty


@dataclass(frozen=True)
class Sides:
    """The two sides of a command: `convert-pixart FILE OUT`, or `--orig_ckpt_path FILE --dump_path OUT`.

    Attributes:
        usage: the paths by position, such as 'FILE... OUT'; the last one is the target.
        sources, targets: the options that name them instead.
        required: whether a target is, and a source unless there is `instead`: an option that stands for the sources.
    """

    usage: str
    sources: str
    targets: str
    required: bool = True
    instead: str = ""

    @property
    def argument(self) -> Callable[[Any], Any]:
        """The decorator of the paths by position."""
        return click.argument("paths", nargs=-1, metavar=f"[{self.usage}]")

    def take(self, words: dict[str, Any]) -> tuple[list[str], list[str]]:
        """(the sources, the targets), taken out of a command's words. In the command line that reports show
        (`Context.obj`), paths by position get their names, where it is certain which words they are.

        Raises: `click.UsageError` where both ways are used, or a side is missing; `UsageError` for an empty path.
        """
        context, paths = click.get_current_context(), list(words.pop("paths"))
        instead = bool(self.instead and words[self.instead])
        sources, targets = (_listed(words.pop(name)) for name in (self.sources, self.targets))
        named = [f"`{name}`" for name, given in ((self.sources, sources), (self.targets, targets)) if given]
        too_many = "..." not in self.usage and len(paths) > 2
        if paths:
            sources, targets = paths[:-1], paths[-1:]
        missing = not targets or not (sources or self.instead) if self.required else False
        if (paths and named) or too_many or missing or (len(paths) == 1 and not instead):
            got = shortened([*map(printable, paths), *named], 3) or "neither"
            rule = f"give {self.usage}, or `{self.sources}` and `{self.targets}`; got {got}"
            rule += "; put a glob in quotes" if too_many else ""
            raise click.UsageError(f"`{self.instead}` needs OUT, or `{self.targets}`" if instead else rule, context)
        names = self.usage.replace("...", "").split() if paths else (f"`{self.sources}`", f"`{self.targets}`")
        for name, given in zip(names, (sources, targets), strict=True):
            if "" in given:
                raise empty(name)
        command = shlex.split(str(context.obj or ""))
        # Else it is shown as it was typed: which of its words are the paths is not certain.
        if paths and "--" not in command and all(command.count(path) == 1 for path in paths):
            command = [word for word in command if word not in paths]
            options = [(self.sources, path) for path in sources] + [(self.targets, path) for path in targets]
            context.obj = shlex.join([*command, *(word for name, path in options for word in (f"--{name}", path))])
        return sources, targets


def _listed(paths: str | tuple[str, ...] | None) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths or ())
