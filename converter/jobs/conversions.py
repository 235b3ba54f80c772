"""A conversion request: one checkpoint, several or a watched folder, and the steps that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..checkpoint.write.transfer import Progress
from ..conversion import batch
from ..conversion.batch import Outcome
from ..conversion.options import ConversionOptions
from ..conversion.pairs import Pair, check_targets_unique, expand, several
from ..conversion.watch import watch
from ..errors import UsageError

if TYPE_CHECKING:
    from ..pipelines.assemble import Components
    from .steps import Step


@dataclass(frozen=True)
class ConversionRequest:
    """What is to be converted, how, and what is done with the result.

    Attributes:
        originals: checkpoints, globs or folders; empty where a folder is watched.
        target: a path, for several checkpoints a template with {stem}, {name} or {parent}.
        parity: compare every result with its source. push_to_hub: publish the only one there, `private`ly if the
            repository is created.
        watch: a folder whose checkpoints are converted as they come; `watch_idle` seconds without any end that, and a
            file is complete once it has not grown for `watch_settle` seconds.
        components: of a whole pipeline. Default: the transformer only.
        literally: the only original and the target are paths, and no patterns.
    """

    originals: Sequence[str]
    target: str
    options: ConversionOptions = field(default_factory=ConversionOptions)
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    components: Components | None = None
    parity: bool = False
    push_to_hub: str | None = None
    private: bool = False
    watch: str | None = None
    watch_idle: float | None = None
    watch_settle: float = 5.0
    literally: bool = False

    def validate(self) -> None:
        """Raises: `UsageError` for what does not go together."""
        if bool(self.originals) == bool(self.watch):
            raise UsageError(f"give either `orig_ckpt_path` or `watch`; got {'both' if self.watch else 'neither'}")
        for flag, other in (("private", "push_to_hub"), ("watch_idle", "watch")):
            if getattr(self, flag) and not getattr(self, other):
                raise UsageError(f"`{flag}` requires `{other}`")
        after = next((flag for flag in ("parity", "push_to_hub") if getattr(self, flag)), None)
        if after and self.options.dry_run:
            raise UsageError(f"`{after}` cannot be combined with `dry_run`, which writes nothing")
        if after and self.options.to != "diffusers":
            raise UsageError(f"`{after}` requires a diffusers folder, not `to` {self.options.to}")
        if self.push_to_hub and self.components and self.components.linked:
            raise UsageError("`push_to_hub` publishes no links: a whole pipeline requires `components` copy for it")

    @cached_property
    def several(self) -> bool:
        """Whether it may be more than one checkpoint, none of which stops the rest."""
        return bool(self.watch) or (not self.literally and several(self.originals, self.target))


def run(
    request: ConversionRequest,
    command: str,
    *,
    quiet: bool = False,
    progress: Callable[[int], Progress] | None = None,
    comparing: Callable[[int], Progress] | None = None,
    say: Callable[[str], object] = lambda words: None,
    finished: Callable[[Outcome, str], object] = lambda outcome, step: None,
) -> list[Outcome]:
    """Convert, and do what is to follow each conversion.

    Args:
        command: the command line, for reports.
        quiet: no progress bars while publishing.
        progress, comparing: of the conversions and comparisons, as `convert` and `check` take them.
        say: told of files in a watched folder that are not complete.
        finished: as of `batch.run`.

    Raises: `UsageError` for what does not go together, or cannot be done.
    """
    request.validate()
    steps: dict[str, Step] = {}
    if request.parity:
        from .steps import compare_step

        steps["parity"] = compare_step(command, request.options.family, comparing)
    if request.push_to_hub:
        if request.several:
            raise UsageError("`push_to_hub` requires exactly one conversion")
        from .steps import publish_step

        steps["published"] = publish_step(request.push_to_hub, request.private, quiet=quiet)
    pairs: Iterable[Pair]
    if request.watch:
        pairs = watch(request.watch, request.target, settle=request.watch_settle, idle=request.watch_idle, say=say)
    elif request.several:
        pairs = check_targets_unique([pair for path in request.originals for pair in expand(path, request.target)])
    else:
        pairs = [Pair(request.originals[0], request.target)]
    return batch.run(
        pairs,
        request.options,
        request.hyper_parameters,
        components=request.components,
        several=request.several,
        steps=steps,
        progress=progress,
        finished=finished,
    )
