"""What a family brings to be compared: its reference net, the converted net, and inputs to run both on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..families import Findings
from ..mapping import Plan
from .inputs import Case

if TYPE_CHECKING:
    from torch import Tensor

    from ..reference import Net, Values, Weights
    from .faults import Fault


@dataclass(frozen=True)
class Model:
    """The nets of a family, and what to try them on. Everything is called with what the original file shows.

    Attributes:
        reference: (findings, weights in the original layout) -> the original net.
        converted: (config.json, weights in the target layout) -> the net that the target's own code makes of them.
        cases: (findings, profile, what has no home in the converted model) -> the inputs of that profile ('quick',
            'standard' or 'full'), the cheapest first.
        parts: (findings) -> name -> the channels of the output that belong together, each gated on its own.
        patch: (findings) -> side of an output patch, whose positions are gated one by one.
        effective: config.json -> what the target's code takes each field for, its own defaults put in.
        assume: config.json -> what it says of hyper-parameters that the original may not show, by flag name; they are
            taken from there only as a last resort, and reported as assumed.
        faults: (findings, config.json, plan) -> deliberate faults beyond those that the table of keys gives.
        unseen: ends of target paths whose bias changes no output.
        stages: (findings) -> stages to be tried by themselves too, in float64, on inputs too large for whole nets.
        guided: the case that sampler steps begin with: a null caption in its first sample, a text in its second.
        loaded: (folder, inputs) -> the output of the net as the target library's own loader makes it.
        remedy: where the target's own code computes something else than the original whatever the weights are.
    """

    reference: Callable[[Findings, Weights], Net]
    converted: Callable[[Mapping[str, Any], Weights], Net]
    cases: Callable[[Findings, str, Mapping[str, Any]], Sequence[Case]]
    parts: Callable[[Findings], Mapping[str, slice]] = lambda found: {"output": slice(None)}
    patch: Callable[[Findings], int] = lambda found: 1
    effective: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    assume: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}
    faults: Callable[[Findings, Mapping[str, Any], Plan], Sequence[Fault]] = lambda found, config, plan: ()
    unseen: tuple[str, ...] = ()
    stages: Callable[[Findings], Sequence[tuple[str, Case]]] = lambda found: ()
    guided: str = ""
    loaded: Callable[[Path, Values], Tensor] | None = None
    remedy: Remedy | None = None


@dataclass(frozen=True)
class Remedy:
    """What mends a net of the target's own code, after it was loaded, that is not the original's function otherwise.

    A comparison is of what the target's loader makes, and fails then; it says that the remedy mends it, if it does. Of
    the mended net it is only where the user says that this is how the model is loaded.

    Attributes:
        flag: the user's word that it is, one of the family's flags.
        why: what the target's code does otherwise, in words.
        line: the code to be run on the loaded model, as it is told.
        model: what is compared where it is run.
    """

    flag: str
    why: str
    line: str
    model: Model
