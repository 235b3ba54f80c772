"""What a model brings to be compared: its original net, the converted net, and inputs to run both on."""

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

    from .faults import Fault
    from .net import Net, Values, Weights
    from .sampler import Sampler


Cases = Callable[[Findings, str, Mapping[str, Any]], Sequence[Case]]


@dataclass(frozen=True)
class ParitySpec:
    """The nets of a model, and what to try them on. Everything is called with what the original file shows."""

    # (findings, weights in the original layout) -> the original net.
    reference: Callable[[Findings, Weights], Net]
    # (config.json, weights in the target layout) -> the net that the target's own code makes of them.
    converted: Callable[[Mapping[str, Any], Weights], Net]
    # (findings, profile, what has no home in the converted model) -> the inputs of that profile ('quick', 'standard' or
    # 'full'), the cheapest first.
    cases: Cases
    # Name -> the channels of the output that belong together, each gated on its own.
    parts: Callable[[Findings], Mapping[str, slice]] = lambda findings: {"output": slice(None)}
    # Side of an output patch, whose positions are gated one by one.
    patch: Callable[[Findings], int] = lambda findings: 1
    # config.json -> what the target's code takes each field for, its own defaults put in.
    resolve_config: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    # config.json -> what it says of hyper-parameters that the original may not show, by flag name; they are taken from
    # there only as a last resort, and reported as assumed.
    config_hints: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}
    # (findings, config.json, plan) -> deliberate faults beyond those that the table of keys gives.
    faults: Callable[[Findings, Mapping[str, Any], Plan], Sequence[Fault]] = lambda findings, config, plan: ()
    invisible_biases: tuple[str, ...] = ()  # ends of target paths whose bias changes no output
    invisible_scales: tuple[str, ...] = ()  # whose weight may be multiplied by any positive number likewise
    invisible_swaps: tuple[tuple[str, str], ...] = ()  # two whose weights may stand in each other's place likewise
    # Why the nets of a model cannot be run, in words; '' where they can.
    obstacle: Callable[[Findings], str] = lambda findings: ""
    # Stages to be tried by themselves too, in float64, on inputs too large for whole nets.
    stages: Callable[[Findings], Sequence[tuple[str, Case]]] = lambda findings: ()
    optional: tuple[str, ...] = ()  # inputs that a case may lack
    sampler: Sampler | None = None  # how a picture is drawn with it; without one no trajectory is compared
    # (folder, inputs, what from_pretrained has to be told) -> the output of the net as the target's loader makes it.
    loaded: Callable[[Path, Values, Mapping[str, Any]], Tensor] | None = None
    # (findings, config.json) -> what mends a model of that config, where the target's own code computes something else
    # whatever the weights are; None where it does not.
    fix: Callable[[Findings, Mapping[str, Any]], PostLoadFix | None] = lambda findings, config: None


@dataclass(frozen=True)
class PostLoadFix:
    """What makes a loaded net of the target's own code compute the original's function, if it does not otherwise.

    The net as loaded is compared, and fails; the report says whether the fix mends it. The
    fixed net is compared only if the user says that the model is loaded so.
    """

    flag: str  # the user's word that it is, one of the family's flags
    why: str  # what the target's code does otherwise, in words
    line: str  # the code to be run on the loaded model, as it is shown
    spec: ParitySpec  # what is compared where it is run
