"""Which weights a state dict holds, raw or averaged: by its place in the file, and by what is known of the writer.

The name of a key alone misleads: two frameworks keep the average under `state_dict` and the raw weights elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..errors import printable

RAW, EMA, UNKNOWN = "raw", "ema", "unknown"
LABELS = {RAW: "raw", EMA: "EMA", UNKNOWN: "other"}  # before "weights", for people

# Words of a place that tell. `online` comes first: ema-pytorch keeps `online_model` inside of its EMA.
_RAW_WORDS = {"online", "raw", "live"}
_NEGATIONS = {"non", "no", "not", "without", "pre", "before"}
_EMA_WORDS = {"ema", "swa", "avg", "averaged", "average", "averaging", "shadow"}
# Names that a model's own weights lie under, whoever wrote them.
_NAMES = {
    "state_dict", "model", "model_state_dict", "current_model_state", "model_state", "model_states", "module",
    "modules", "net", "network", "params", "weights", "generator", "student", "transformer", "denoiser", "dit", "unet",
    "diffusion_model", "state", "app", "checkpoint", "pipeline", "base_model",
}  # fmt: skip


def kind_of_weights(path: Sequence[str], prefix: str, top_level: Mapping[str, Any]) -> tuple[str, str]:
    """('raw', 'ema' or 'unknown'; how that is known, if not by the place alone).

    Args:
        path: the keys that lead to the state dict, with the prefix where several models lie in it; `prefix`: what its
            keys begin with.
        top_level: the entries at the top level of the file.

    >>> kind_of_weights(["state_dict_ema"], "", {})
    ('ema', '')
    >>> kind_of_weights(["state_dict"], "", {"state_dict": 0, "current_model_state": 0})
    ('ema', "Lightning's WeightAveraging keeps the average there")
    """
    if known := _of_writer(path, top_level):
        return known
    parts = [*path, *prefix.strip(".").split(".")] if prefix else list(path)
    words = [_words(part) for part in parts]
    if any(_RAW_WORDS & {*each} or _negated(each) for each in words):
        return RAW, ""
    if any(_EMA_WORDS & {*each} for each in words):
        return EMA, ""
    return (RAW, "") if all(part in _NAMES or part.isdigit() for part in path) else (UNKNOWN, "")


def averages(ema: str, raw: str) -> bool:
    """Whether weights that lie at `ema` are the average of those at `raw`, by what else their places are called.

    >>> [averages(place, "student") for place in ("ema", "student_ema", "state_dict_ema", "teacher_ema")]
    [True, True, True, False]
    """
    own = {*_words(ema)} - _EMA_WORDS - {word for name in _NAMES for word in _words(name)}
    return own <= {*_words(raw)}


def kind_by_name(stem: str) -> tuple[str, str]:
    """The same for a file that holds nothing but weights, or a folder, by its name alone."""
    words = _words(stem)
    averaged = _EMA_WORDS & {*words} and not _negated(words)
    return (EMA, f"averaged weights, as the name {printable(stem, 80)} says") if averaged else (RAW, "")


def _words(name: str) -> list[str]:
    apart = re.sub("(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return re.findall("[a-z]+", apart.lower())


def _negated(words: Sequence[str]) -> bool:
    """Whether these words say that it is no average, such as `non_ema`."""
    return any(one in _NEGATIONS and other in _EMA_WORDS for one, other in pairwise(words))


def _of_writer(path: Sequence[str], top_level: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is known of frameworks that call the average `state_dict`.

    Lightning, `callbacks/weight_averaging.py` (on_save_checkpoint); mmengine, `hooks/ema_hook.py`
    (before_save_checkpoint, _swap_ema_state_dict).
    """
    place = path[0] if path else ""
    if {"state_dict", "current_model_state"} <= top_level.keys():
        if place == "state_dict":
            return EMA, "Lightning's WeightAveraging keeps the average there"
        if place == "current_model_state":
            return RAW, "Lightning's WeightAveraging keeps the raw weights there"
    elif {"state_dict", "ema_state_dict"} <= top_level.keys() and place in ("state_dict", "ema_state_dict"):
        if "message_hub" not in top_level:
            return UNKNOWN, "some frameworks exchange the two when they save"
        return EMA if place == "state_dict" else RAW, "mmengine's EMAHook exchanges the two when it saves"
    return None
