"""A conversion request: one checkpoint, several or a watched folder, and the steps that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from ..checkpoint.write.transfer import Progress
from ..conversion import batch
from ..conversion.batch import CONVERTED, PLANNED, STATUSES, Outcome, Step
from ..conversion.options import ConversionOptions
from ..conversion.pairs import Pair, check_targets_unique, expand, several
from ..conversion.watch import watch
from ..errors import UsageError
from ..fleet import chosen_executor
from ..remote import is_url, shown
from ..reports.report import Report, counted
from .adapters import AdapterOptions, Merging, convert_any

if TYPE_CHECKING:
    from ..pipelines.assemble import Components


@dataclass(frozen=True)
class ConversionRequest:
    """What is to be converted, how, and what is done with the result.

    Attributes:
        originals: checkpoints, globs or folders; empty where a folder is watched.
        target: a path, for several checkpoints a template as of `conversion.pairs.expand`.
        parity: compare every result with its source. push_to_hub: publish the only one there, `private`ly if the
            repository is created.
        watch: the folder of a run, or of several, whose checkpoints are converted as they come; `watch_idle` seconds
            without any end that, and a file is complete once it has not grown for `watch_settle` seconds.
        components: of a whole pipeline. Default: the transformer only.
        workers: so many processes on this machine. cluster: the address of a Dask scheduler, whose workers do it.
        adapters: of sources that are adapters (LoRA), and no models.
        merging: adapters that go into every model.
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
    workers: int | None = None
    cluster: str | None = None
    adapters: AdapterOptions = field(default_factory=AdapterOptions)
    merging: Merging | None = None

    def validate(self) -> None:
        """Raises: `UsageError` for what does not go together."""
        if bool(self.originals) == bool(self.watch):
            raise UsageError(f"give either `orig_ckpt_path` or `watch`; got {'both' if self.watch else 'neither'}")
        for flag, other in (("private", "push_to_hub"), ("watch_idle", "watch")):
            if getattr(self, flag) and not getattr(self, other):
                raise UsageError(f"`{flag}` requires `{other}`")
        for flag in ("watch", "push_to_hub"):
            if self.elsewhere and getattr(self, flag):
                raise UsageError(f"`{flag}` cannot be combined with `{self.elsewhere}`")
        after = next((flag for flag in ("parity", "push_to_hub") if getattr(self, flag)), None)
        if after and self.options.dry_run:
            raise UsageError(f"`{after}` cannot be combined with `dry_run`, which writes nothing")
        if after and self.options.to != "diffusers":
            raise UsageError(f"`{after}` requires a diffusers folder, not `to` {self.options.to}")
        if after and is_url(self.target):
            raise UsageError(f"`{after}` needs a result on this machine, not at {shown(self.target)}")
        if self.push_to_hub and self.components and self.components.linked:
            raise UsageError("`push_to_hub` publishes no links: a whole pipeline requires `components` copy for it")

    @property
    def elsewhere(self) -> str:
        """By which option other processes do it; '' where this one does."""
        return next((name for name in ("workers", "cluster") if getattr(self, name) is not None), "")

    @cached_property
    def several(self) -> bool:
        """Whether it may be more than one checkpoint, none of which stops the rest."""
        return bool(self.watch or self.elsewhere) or (not self.literally and several(self.originals, self.target))


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
        say: told of files in a watched folder that are not complete, and of workers that died.
        finished: as of `batch.convert_all`.

    Raises: `UsageError` for what does not go together, or cannot be done.
    """
    request.validate()
    steps: dict[str, Step] = {}
    if request.parity:
        from .steps import compare_step

        shown = None if request.elsewhere else comparing
        family, merged = request.options.family, vars(request.merging) if request.merging else None
        steps["parity"] = partial(compare_step, command=command, family=family, progress=shown, merged=merged)
    if request.push_to_hub:
        if request.several:
            raise UsageError("`push_to_hub` requires exactly one conversion")
        from .steps import publish_step

        steps["published"] = publish_step(request.push_to_hub, request.private, quiet=quiet)
    converting = partial(convert_any, adapters=request.adapters, models_only=next(iter(steps), ""))
    pairs: Iterable[Pair]
    if request.watch:
        pairs = watch(request.watch, request.target, settle=request.watch_settle, idle=request.watch_idle, say=say)
    elif request.several:
        pairs = check_targets_unique([pair for path in request.originals for pair in expand(path, request.target)])
    else:
        pairs = [Pair(request.originals[0], request.target)]
    with chosen_executor(request.workers, request.cluster, say) as executor:
        return batch.convert_all(
            pairs,
            request.options,
            request.hyper_parameters,
            components=request.components,
            executor=executor,
            several=request.several,
            steps=steps,
            converting=request.merging.convert if request.merging else converting,
            progress=progress,
            finished=finished,
        )


def counts(outcomes: Iterable[Outcome], *, dry_run: bool = False) -> dict[str, int]:
    """How many have each status that there can be."""
    statuses = [outcome.status for outcome in outcomes]
    return {each: statuses.count(each) for each in STATUSES if each != (CONVERTED if dry_run else PLANNED)}


def summary(outcomes: Sequence[Outcome], *, dry_run: bool = False) -> str:
    """The last line of several: statuses, and the verdicts of those that were compared.

    >>> summary([Outcome(Pair("a.pth", "a"), CONVERTED), Outcome(Pair("b.pth", "b"))])
    'summary: 1 converted, 0 unchanged, 1 failed'
    """
    words = ", ".join(f"{count} {status}" for status, count in counts(outcomes, dry_run=dry_run).items())
    compared = [outcome.results["parity"].content for outcome in outcomes if "parity" in outcome.results]
    verdicts = f"; parity: {counted(map(Report.from_dict, compared))}" if compared else ""
    return f"summary: {words}{verdicts}"
