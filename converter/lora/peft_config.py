"""PEFT's `adapter_config.json`: what it says of scales, and what no plain reading of the tensors would be right for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from ..errors import InputError, printable, shortened
from ..mapping import fold
from .changes import Change, is_number
from .products import Full, Replaced

KINDS = {"LORA": "LoRA", "LOHA": "LoHa", "LOKR": "LoKr"}
DEFAULT_ALPHA = 8  # of PEFT's LoraConfig, LoHaConfig and LoKrConfig
# They change the weights of the base when training begins, and PEFT does it anew on loading.
_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
_UNREAD = (
    "target_parameters", "layer_replication", "use_qalora", "use_bdlora", "arrow_config", "alora_invocation_tokens",
    "megatron_config",
)  # fmt: skip
_LONGEST, _REPEATS = 200, 3  # of a pattern: characters, and how many `*` and the like
_NESTED = re.compile(r"\)[*+{?]|[*+}][*+{]|\\\d|\(\?[^:]")  # what may take for ever to match, or is no plain pattern


@dataclass(frozen=True)
class PeftConfig:
    """A config that has been read.

    Args:
        place: where it stands, for errors. content: its fields; those that are absent are off.

    Attributes:
        obstacle: why the tensors alone would be read wrongly under it, in words; '' where they are not.

    Raises: `InputError` for one that is malformed.

    Example:
        >>> config = PeftConfig("adapter_config.json", {"peft_type": "LORA", "r": 4, "lora_alpha": 2})
        >>> config.scale("proj_out", rank=4)
        0.5
    """

    place: str
    content: Mapping[str, Any]
    kind: str = field(init=False)
    obstacle: str = field(init=False, default="")

    def __post_init__(self) -> None:
        content, kind = self.content, str(self.content.get("peft_type", "LORA")).rpartition(".")[2].upper()
        object.__setattr__(self, "kind", kind)
        unread = [name for name in _UNREAD if content.get(name)]
        obstacles = [f"{name} is set, and what the tensors mean then is not known here" for name in unread]
        if kind not in KINDS:
            obstacles.append(f"peft_type {printable(kind, 40)}: {', '.join(KINDS)} can be read")
        init = content.get("init_lora_weights", True)
        if isinstance(init, str) and init.lower().startswith(_CHANGING):
            obstacles.append(
                f"init_lora_weights {printable(init, 40)} changed the weights of the base when training began, and the "
                "file is relative to those: in PEFT, save it with path_initial_model_for_weight_conversion, which "
                "makes a plain LoRA of it"
            )
        object.__setattr__(self, "obstacle", obstacles[0] if obstacles else "")
        for name in ("rank_pattern", "alpha_pattern"):
            patterns = content.get(name) or {}
            if not isinstance(patterns, Mapping):
                raise self._error(name, "not a map from patterns to numbers")
            for pattern in patterns:
                self._check_pattern(name, pattern)
        self._rank(content.get("r", DEFAULT_ALPHA))
        self._number(self._alpha_name, content.get(self._alpha_name, DEFAULT_ALPHA))
        for name in ("use_rslora", "use_dora", "lora_bias"):
            if not isinstance(content.get(name, False), bool | None):
                raise self._error(name, f"{printable(repr(content[name]), 40)}: true or false is needed")

    def _error(self, name: str, rule: str) -> InputError:
        return InputError.at(self.place, name, rule)

    def _check_pattern(self, name: str, pattern: str) -> None:
        repeats = sum(map(pattern.count, "*+{"))
        if len(pattern) > _LONGEST or repeats > _REPEATS or _NESTED.search(pattern):
            raise self._error(name, f"{printable(pattern, 60)}: a pattern that may take too long to match")
        try:
            re.compile(pattern)
        except re.error as error:
            raise self._error(name, f"{printable(pattern, 60)}: no regular expression: {error}") from None

    def _number(self, name: str, value: Any) -> float:
        if not is_number(value):
            raise self._error(name, f"{printable(repr(value)[:60], 40)}: a number is needed")
        return float(value)

    def _rank(self, value: Any) -> int:
        if type(value) is not int or not 0 < value < 1 << 20:
            raise self._error("r", f"{printable(repr(value)[:60], 40)}: a rank is needed")
        return value

    @property
    def _alpha_name(self) -> str:
        return "lora_alpha" if self.kind == "LORA" else "alpha"

    def _of(self, name: str, module: str, default: Any) -> Any:
        """The value of the first pattern that matches a module, in the order of the file, as PEFT looks."""
        return next(self._matching(name, module), default)

    def _matching(self, name: str, module: str) -> Iterator[Any]:
        for pattern, value in (self.content.get(name) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                yield value

    @property
    def states_alpha(self) -> bool:
        """Whether it says alpha at all; else PEFT's default counts."""
        return self._alpha_name in self.content

    def rank(self, module: str) -> int:
        return self._rank(self._of("rank_pattern", module, self.content.get("r", DEFAULT_ALPHA)))

    def alpha(self, module: str) -> float:
        return self._number(
            "alpha_pattern", self._of("alpha_pattern", module, self.content.get(self._alpha_name, DEFAULT_ALPHA))
        )

    def scale(self, module: str, rank: int | None) -> float:
        """The scale of a module's product. Raises: `InputError` where its rank is not what the config says.

        Args:
            rank: that of the tensors; None where they have none (LoKr with both factors whole).
        """
        said = self.rank(module)
        if rank is not None and rank != said:
            raise self._error("r", f"{said} for {printable(module)}, whose tensors have rank {rank}")
        return self.alpha(module) / (sqrt(said) if self.content.get("use_rslora") else said)

    def lacking(self, changes: Mapping[str, Change]) -> list[str]:
        """What it says was trained, and no tensor is there for, in words."""
        products = {key.rpartition(".")[0]: c for key, c in changes.items() if key.endswith(".weight")}
        layers = [module for module, c in products.items() if not isinstance(c.product, Full)]
        biased = {key.rpartition(".")[0] for key in changes if key.endswith(".bias")}
        whole = [module for module, c in products.items() if isinstance(c.product, Replaced)]
        words = []
        if self.content.get("use_dora") and (bare := [m for m in layers if products[m].magnitude is None]):
            words.append(f"no magnitudes, though the config says DoRA, of {shortened(fold(bare), 4)}")
        if self.content.get("lora_bias") and (bare := [module for module in layers if module not in biased]):
            words.append(f"no bias of lora_B, though the config says lora_bias, of {shortened(fold(bare), 4)}")
        if self.content.get("bias", "none") in ("all", "lora_only") and not biased:
            words.append("no biases, though the config says that they were trained")
        saved = self.content.get("modules_to_save") or ()
        for name in saved if isinstance(saved, list) else ():
            if not any(f".{module}.".find(f".{name}.") >= 0 for module in whole):
                words.append(f"no module {printable(name, 60)}, though the config says that it was trained whole")
        return words

    def ambiguous(self, module: str) -> bool:
        """Whether two patterns with other alphas match: PEFT saves them sorted, so the one that was trained with may be
        the other."""
        return len({*self._matching("alpha_pattern", module)}) > 1


def config_for(changes: Mapping[str, Change], scales: Mapping[str, tuple[float, int]]) -> dict[str, Any]:
    """PEFT's config for LoRA of these scales and ranks."""
    alphas = {module: scale * rank for module, (scale, rank) in scales.items()}
    ranks = {module: rank for module, (_, rank) in scales.items()}
    rank, alpha = (Counter(of.values()).most_common(1)[0][0] if of else DEFAULT_ALPHA for of in (ranks, alphas))
    replaced = {key.rpartition(".")[0] for key, change in changes.items() if isinstance(change.product, Replaced)}
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _number(alpha),
        "rank_pattern": {module: own for module, own in ranks.items() if own != rank},
        "alpha_pattern": {module: _number(own) for module, own in alphas.items() if own != alpha},
        "target_modules": sorted(scales),
        "modules_to_save": sorted(replaced - scales.keys()) or None,
        "bias": "lora_only" if replaced & scales.keys() else "none",
        "lora_bias": any(isinstance(change.product, Full) and change.alpha for change in changes.values()),
        "use_dora": any(change.magnitude for change in changes.values()),
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
