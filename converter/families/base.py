"""What a model family brings: a table, and a function that says what a file is, with the evidence."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from traceback import extract_tb
from typing import Any, Protocol

from ..errors import ConverterError, UsageError, printable
from ..mapping import KeyMapping, Plan
from ..mapping.rows import matcher
from ..parts import below


@dataclass(frozen=True, slots=True)
class Flag:
    """A hyper-parameter that a user may state: a key of `hyper_parameters`, and an option of the commands.

    >>> Flag("image_size", int, "Resolution.", minimum=8, metavar="PIXELS").name
    'image_size'
    """

    name: str
    type: type | None = None  # int (a float too), float, bool (no int) or str; None where `describe` checks the value
    help: str = ""  # a sentence for `--help`
    choices: tuple[str, ...] = ()  # the only values
    minimum: int | None = None
    metavar: str | None = None  # what stands for the value in `--help`


@dataclass(frozen=True, slots=True)
class Finding:
    """One hyper-parameter."""

    value: Any
    source: str  # 'file', 'given' or 'assumed'; 'unknown'
    evidence: str
    rejected_evidence: str = ""  # of what is not shown: what the file does hold of it and is not believed, in words

    def __post_init__(self) -> None:
        if type(self.value).__module__ == "numpy":  # a scalar, which no JSON takes
            object.__setattr__(self, "value", self.value.item())


class Findings(dict[str, Finding]):
    """Hyper-parameters by name. `given` are the user's words; they may not contradict what the file shows."""

    def __init__(self, given: Mapping[str, Any], *, stock: bool = False, source_class: str | None = None) -> None:
        super().__init__()
        self.given = {name: value for name, value in given.items() if value is not None}
        self.stock = stock  # the library's own class is wanted, where one would travel with the weights
        # Of a source in the target's layout: its class by `config.json`, '' where none says it. None for an original.
        self.source_class = source_class
        self.notes: list[str] = []  # what a user should know
        self.diffusers_notes: list[str] = []  # what only those should know who use diffusers' classes and pipelines
        self.original_notes: list[str] = []  # what only those should know who go back to the original layout
        self.problems: list[str] = []  # what stands against a conversion though every key has its row
        self.distrusted: dict[str, str] = {}  # stored buffers that are not believed -> why
        self.rounded: dict[str, float] = {}  # stored buffers -> by how much storing them moved an element at most
        self.unused_buffers: set[str] = set()  # stored buffers that the original net does not use
        self.used: set[str] = set()  # the names whose value the result depends on

    def file(self, name: str, value: Any, evidence: str) -> Any:
        """A value that the file shows (None: it should, and does not).

        Raises: `UsageError` where the user said otherwise.
        """
        if value is None:
            return self.given_or_assumed(name, None, evidence)
        if (stated := self.given.get(name, value)) != value:
            raise UsageError(f"`{name}` {stated} contradicts the file, which says {value}: {evidence}")
        self[name] = Finding(value, "file", evidence)
        return value

    def given_or_assumed(self, name: str, default: Any = None, why: str = "", rejected_evidence: str = "") -> Any:
        """A value that the file cannot show: the user's word, else the default with its reason, else unknown.

        Args:
            rejected_evidence: what the file holds that would show it, and why that is not believed; '' for nothing.
        """
        if name in self.given:
            self[name] = Finding(self.given[name], "given", f"--{name}")
        else:
            self[name] = Finding(default, "unknown" if default is None else "assumed", why, rejected_evidence)
        return self[name].value

    def value(self, name: str) -> Any:
        """The value, or `UsageError` naming the flag where it is unknown."""
        return self.values_of(name)[0]

    def values_of(self, *names: str) -> list[Any]:
        """Several values, or `UsageError` naming the flags of all that are unknown."""
        self.used.update(names)
        unknown = [f"`{name}` is needed: {self[name].evidence}" for name in names if self[name].source == "unknown"]
        if unknown:
            raise UsageError("; ".join(unknown))
        return [self[name].value for name in names]


class State(Protocol):
    """What a family may see of a checkpoint beside the plan."""

    config: dict[str, Any]  # the `config.json` of a folder
    recorded_integers: dict[
        str, int
    ]  # whole numbers beside the weights, by their place, such as `hyper_parameters.num_heads`

    def elements(self, key: str, *positions: int) -> tuple[tuple[float, ...], float]:
        """Single elements of a tensor, by their row-major position, and the rounding of their dtype."""

    def rows(self, key: str) -> Iterator[tuple[int, Any]]:
        """All of it in pieces: (number of the first row, floats [rows, size of the last axis])."""


@dataclass(frozen=True)
class Family:
    """A model family."""

    name: str  # short and lower-case
    title: str  # as people say it
    keys: KeyMapping  # the table from the original layout to diffusers'
    # Fills the findings; `plan.dims` holds what the shape patterns say.
    describe: Callable[[Plan, State, Findings], None]
    # `config.json` of the model class, which its `_class_name` picks; raises `UsageError` where something is unknown.
    config: Callable[[Findings], dict[str, Any]]
    # The hyper-parameters that a user may state, as `Flag`s; name -> type, or names alone, are taken for such.
    # Afterwards they are `Flag`s by name.
    flags: Any = ()
    # The folder of the dump that the model lies in. Of a model of several, all their names: in the table, and in what
    # `config` gives, the keys of each one's tensors and its fields begin with its name and a dot (`parts`).
    subfolder: str | tuple[str, ...] = "transformer"
    # Classes, "package.module:Class", where the target's library has none: a module that imports only that library, of
    # which a copy travels with the weights.
    classes: tuple[str, ...] = ()
    # (findings, largest difference) -> if recomputing a stored buffer does not give it bit for bit: whether a
    # conversion may go on without it (the original net does not use it), and what it is, in words; raises `UsageError`
    # where what was read off the buffer has to be said instead.
    buffer_mismatch: Callable[[Findings, float], tuple[bool, str]] = lambda findings, difference: (
        False,
        f"is not what the target computes (by up to {difference:.2g})",
    )
    # The largest difference that storing and averaging a buffer makes. One that is no further off, and that a
    # conversion may go on without, is the computed one: the original net is compared with that.
    storing: float = 0.0
    # Of a source folder's `config.json`, what may differ from ours: key -> the other values that mean the same model
    # (None: any value, it changes no output).
    ignorable_config: Mapping[str, tuple[Any, ...] | None] = field(default_factory=lambda: {"_diffusers_version": None})
    # Ends of paths in the target, such as "norm1", whose tensors keep their dtype when a model is cast, because the
    # target's class keeps them so.
    keep_dtype: tuple[str, ...] = ()
    # What ComfyUI would take this model for that it is not, in words; None where it does not know the family at all.
    comfyui: Callable[[Findings], list[str]] | None = None
    # Paths, written as in the table, of which no other family has one: a state dict with such a key is of this family,
    # and of no other, however many names they share.
    marks: tuple[str, ...] = ()
    # A `converter.parity.ParitySpec`, its nets to be compared, or where to import one from ("package.module:NAME", so
    # that describing a file loads no torch; ".module:NAME" beside `describe`).
    parity: Any = None
    # A `converter.nets.pipeline_spec.PipelineSpec`, how pictures are drawn with it, or where to import one from.
    pipeline: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.flags, Mapping):
            flags = [kind if isinstance(kind, Flag) else Flag(name, kind) for name, kind in self.flags.items()]
        else:
            flags = [flag if isinstance(flag, Flag) else Flag(flag) for flag in self.flags]
        for flag in flags:
            if not re.fullmatch("[a-z][a-z0-9_]*", str(flag.name)):
                raise UsageError(f"flag {printable(repr(flag.name))}: use lower-case letters, digits and underscores")
            if flag.minimum is not None and flag.type not in (int, float):
                raise UsageError(f"flag {flag.name}: a minimum needs the type int or float")
        for folder in self.folders or ("",):
            if not isinstance(folder, str) or not re.fullmatch(r"\w[\w.-]*", folder):
                raise UsageError(f"subfolder {printable(repr(folder))}: must be the name of one folder")
        for name in ("classes", "keep_dtype", "marks"):
            if isinstance(getattr(self, name), str):
                raise UsageError(
                    f"{name} must be a tuple of {'classes' if name == 'classes' else 'paths'}, not one string"
                )
        object.__setattr__(self, "flags", {flag.name: flag for flag in flags})

    @cached_property
    def tables(self) -> list[KeyMapping]:
        """The names of its models in both layouts, and of those folders of several that show what they are alone."""
        alone = [self.keys.targets.below(part) for part in self.parts.values() if part]
        return [self.keys, self.keys.targets, *(table for table in alone if table.required)]

    @property
    def folders(self) -> tuple[str, ...]:
        """Those that the model lies in, mostly one."""
        return (self.subfolder,) if isinstance(self.subfolder, str) else tuple(self.subfolder)

    @property
    def several(self) -> bool:
        """Whether it lies in several folders."""
        return len(self.folders) > 1

    @property
    def parts(self) -> dict[str, str]:
        """By folder, what the keys of its tensors and the fields of its config begin with; '' where there is but one.

        >>> Family("net", "Net", KEYS, None, None, subfolder=("a", "b")).parts
        {'a': 'a.', 'b': 'b.'}
        """
        return {folder: f"{folder}." if self.several else "" for folder in self.folders}

    def by_folder(self, named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What keys or fields stand for, folder by folder, under the names that they have in it.

        >>> Family("net", "Net", KEYS, None, None, subfolder=("a", "b")).by_folder({"a.fc": 1, "a.out": 2, "b.fc": 3})
        {'a': {'fc': 1, 'out': 2}, 'b': {'fc': 3}}
        """
        shared_out = {folder: below(named, part) for folder, part in self.parts.items()}
        return {folder: own for folder, own in shared_out.items() if own or not self.several}

    @contextmanager
    def own_code(self, what: str) -> Iterator[None]:
        """Around a call of a function of the family: an error that is not meant for a user names the family, and the
        line of its code. Those of built-in families stay internal errors."""
        try:
            yield
        except (ConverterError, OSError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            if type(error).__name__ == "OutOfMemoryError":  # of torch, on a device
                raise
            file = Path(getattr(sys.modules.get(self.describe.__module__), "__file__", None) or ".")
            trace = extract_tb(error.__traceback__)
            frames = [frame for frame in trace if frame.filename == str(file)]
            frames = frames or [frame for frame in trace if file.parent in Path(frame.filename).parents]
            if not frames or self.describe.__module__.startswith("converter."):
                raise
            place = f"{printable(frames[-1].filename)}, line {frames[-1].lineno}"
            reason = printable(f"{type(error).__name__}: {error}", 1000)
            raise UsageError(f"`family` {self.name}: {what}: {place}: {reason}") from error

    def marked(self, keys: Iterable[str]) -> bool:
        """Whether one of these keys is a mark of this family."""
        return bool(self.marks) and any(matcher(path)(key) for key in keys for path in self.marks)
