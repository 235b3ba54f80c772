"""What the tensors of one module mean together: one change of its weight, and perhaps one of its bias."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ..checkpoint import LazyTensor
from ..errors import UsageError
from .adapter import Adapter
from .changes import Change, is_number
from .lycoris import Hadamard, Kronecker
from .peft_config import DEFAULT_ALPHA, KINDS, PeftConfig
from .products import Full, LowRank, Product, Replaced
from .spelling import Spelling

_PAIRS = ("down", "up", "mid")


class Problem(Exception):
    """Why something of an adapter cannot be read: `what` it is, in words that `where` ends."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(what, where)
        self.what, self.where = what, where


class Scale:
    """Where the scales of an adapter's products are from.

    Args:
        config: PEFT's, of the folder or of the header. given: the alpha that the user states.
        training: it is the state dict of a model in training, which the scripts keep at PEFT's default.

    Attributes:
        needed: what the user has to state, in words; '' for nothing. Scales are 1 then.
    """

    def __init__(
        self, path: str, spelling: Spelling, config: PeftConfig | None, given: float | None, *, training: bool = False
    ) -> None:
        self.path, self.spelling, self.config, self.given = path, spelling, config, given
        self.needed = ""
        self.assumed = spelling.assumed or (DEFAULT_ALPHA if training else None)

    def of(self, module: str, product: Product, alpha: LazyTensor | None) -> tuple[float, str]:
        """(scale of a module's product, where its alpha is from).

        Raises: `Problem` for an alpha that is no number, `UsageError` where the user's word contradicts it.
        """
        rank, stated = product.rank, None
        if alpha is not None:
            if alpha.numel != 1:
                raise Problem(f"an alpha of {alpha.numel} numbers in", module)
            stated = float(alpha.numpy().reshape(()))
            if not is_number(stated):
                raise Problem("an alpha that is NaN or infinite, or too large, in", module)
        if rank == 0:
            raise Problem("rank 0 in", module)
        if self.config is not None:
            if product.word != KINDS.get(self.config.kind, product.word):
                raise Problem(f"{product.word}, where its config says {self.config.kind}, in", module)
            scale = self.config.scale(module, rank)
            if stated is not None and rank and abs(stated - scale * rank) > 1e-2 * abs(scale * rank):
                raise Problem(f"an alpha of {stated:g}, where the config gives the scale {scale:g}, in", module)
            if not self.config.states_alpha:
                return scale, "assumed"
            where = "config" if self.config.place.endswith(".json") else "header"
            return self._agreed(module, self.config.alpha(module), scale, where)
        if rank is None:  # LoKr with both factors whole: whatever alpha says
            return 1.0, "convention"
        if stated is not None:  # 0 means none
            return self._agreed(module, stated or rank, (stated or rank) / rank, "file")
        if self.given is not None:
            return self.given / rank, "given"
        if self.spelling.name in ("peft", "bare") and not self.assumed:
            self.needed = (
                "`lora_alpha` is needed: PEFT wrote this, which keeps alpha in adapter_config.json, and none lies "
                f"beside it ({DEFAULT_ALPHA} is PEFT's default)"
            )
            return 1.0, "unknown"
        if self.assumed:
            return self.assumed / rank, "assumed"
        return 1.0, "convention"

    def _agreed(self, module: str, alpha: float, scale: float, where: str) -> tuple[float, str]:
        if self.given is not None and abs(self.given - alpha) > 1e-6 * abs(alpha):
            raise UsageError(
                f"`lora_alpha` {self.given:g} contradicts {self.path}, whose {where} gives {module} the alpha {alpha:g}"
            )
        return scale, where

    def notes(self, adapter: Adapter) -> list[str]:
        """What a user should know of the scales."""
        sources = {change.alpha for change in adapter.changes.values()}
        notes = []
        if "assumed" in sources:
            notes.append(
                f"alpha is not in the file: {self.assumed or DEFAULT_ALPHA} assumed, PEFT's default, at which the "
                "training scripts leave it (`lora_alpha` states another)"
            )
        if "convention" in sources and self.spelling.name == "diffusers" and adapter.tool != "OneTrainer":
            notes.append(
                "alpha is not in the file: scale 1, as diffusers reads it; a file that a PEFT training wrote without "
                "metadata is of another strength then (`lora_alpha` states it)"
            )
        if self.config and any(map(self.config.ambiguous, (key.rpartition(".")[0] for key in adapter.changes))):
            notes.append(
                f"{self.config.place}: several alpha_pattern match one module, and the first counts; PEFT sorts them "
                "when it saves, so that another may have counted in training"
            )
        return notes


def changes_of(module: str, roles: Mapping[str, LazyTensor], scale: Scale) -> dict[str, Change]:
    """The changes of a module's tensors, by their keys.

    Args:
        roles: what a tensor is -> the tensor.

    Raises: `Problem` where something is missing or does not fit together.
    """
    for held in roles.values():
        if not held.dtype.floating and held is not roles.get("alpha"):
            raise Problem(f"numbers of {held.dtype} in", module)
    changes: dict[str, Change] = {}
    factor, alpha = 1.0, ""
    if product := _product(module, roles):
        _check(module, product)
        if not isinstance(product, Full):
            factor, alpha = scale.of(module, product, roles.get("alpha"))
        axis, magnitude = _magnitude(module, roles, product)
        changes[f"{module}.weight"] = Change(product, factor, alpha, magnitude, axis)
    elif roles.keys() & {"alpha", "magnitude", "up_bias"}:
        raise Problem(f"{', '.join(sorted(roles))} and nothing that it is of, in", module)
    biases = [role for role in ("up_bias", "diff_b", "bias") if role in roles]
    if len(biases) > 1:
        raise Problem(f"{' and '.join(biases)} of one module:", module)
    for role in biases:
        if len(roles[role].shape) != 1:
            raise Problem(f"a bias of shape {list(roles[role].shape)} in", module)
        kind = Replaced if role == "bias" else Full
        scaled = (factor, alpha) if role == "up_bias" else (1.0, "")
        changes[f"{module}.bias"] = Change(kind(roles[role]), *scaled)
    return changes


def _product(module: str, roles: Mapping[str, LazyTensor]) -> Product | None:
    """What is done to the weight; None where it is left as it is."""
    hada = {role.removeprefix("hada_"): held for role, held in roles.items() if role.startswith("hada_")}
    lokr = {role.removeprefix("lokr_"): held for role, held in roles.items() if role.startswith("lokr_")}
    pair = {role: roles[role] for role in _PAIRS if role in roles}
    whole = roles.get("weight", roles.get("set_weight"))
    kinds = [bool(pair), bool(hada), bool(lokr), "diff" in roles, whole is not None]
    if sum(kinds) > 1:
        raise Problem(f"{', '.join(sorted(roles))}, which are of two kinds, in", module)
    if pair:
        if missing := {"down", "up"} - pair.keys():
            names = {"down": "lora_A (lora_down)", "up": "lora_B (lora_up)"}
            there = names[({"down", "up"} - missing).pop()] if len(missing) == 1 else "lora_mid"
            raise Problem(f"half a pair: {there} without {' and '.join(names[one] for one in missing)} in", module)
        return LowRank(**pair)
    if hada:
        if {"w1_a", "w1_b", "w2_a", "w2_b"} - hada.keys() or len(hada) == 5:
            raise Problem("an incomplete LoHa in", module)
        return Hadamard(**hada)
    if lokr:
        complete = [(f"w{half}" in lokr) != (f"w{half}_a" in lokr and f"w{half}_b" in lokr) for half in (1, 2)]
        twice = [half for half in (1, 2) if f"w{half}" in lokr and {f"w{half}_a", f"w{half}_b"} & lokr.keys()]
        if not all(complete) or twice or ("t2" in lokr and "w2" in lokr):
            raise Problem("an incomplete LoKr in", module)
        return Kronecker(**lokr)
    return Full(roles["diff"]) if "diff" in roles else Replaced(whole) if whole is not None else None


def _check(module: str, product: Product) -> None:
    """Whether the factors fit each other. Raises: `Problem`."""
    shapes = {name: held.shape for name, held in product.factors.items()}
    bad = Problem(", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) + " do not fit in", module)
    if any(not prod(shape) for shape in shapes.values()):
        raise Problem("an empty tensor in", module)
    if any(not 1 < len(shape) < 6 for shape in shapes.values()):
        raise bad
    if isinstance(product, LowRank):
        inner = [product.rank, *([product.mid.shape[1], product.mid.shape[0]] if product.mid else [])]
        if {*inner, product.up.shape[1]} != {product.rank} or prod(product.up.shape[2:]) != 1:
            raise bad
        if product.mid and prod(product.down.shape[2:]) != 1:
            raise bad
    elif isinstance(product, Hadamard):
        for a, b, core in ((product.w1_a, product.w1_b, product.t1), (product.w2_a, product.w2_b, product.t2)):
            if not _chained(a.shape, b.shape, core.shape if core else None):
                raise bad
        if product.w1_a.shape != product.w2_a.shape or prod(product.w1_b.shape[1:]) != prod(product.w2_b.shape[1:]):
            if product.t1 or product.w1_a.shape[0] != product.w2_a.shape[0]:
                raise bad
            if prod(product.w1_b.shape[1:]) != prod(product.w2_b.shape[1:]):
                raise bad
    elif isinstance(product, Kronecker):
        one, two = (product.w1_a, product.w1_b), (product.w2_a, product.w2_b)
        if one[0] and one[1] and not _chained(one[0].shape, one[1].shape, None):
            raise bad
        if two[0] and two[1] and not _chained(two[0].shape, two[1].shape, product.t2.shape if product.t2 else None):
            raise bad


def _chained(a: tuple[int, ...], b: tuple[int, ...], core: tuple[int, ...] | None) -> bool:
    """Whether two factors have one rank, with a core between them or not."""
    if core is None:
        return a[1] == b[0] and prod(a[2:]) == 1
    return len(core) > 2 and a[0] == core[0] and b[0] == core[1] and len(a) == len(b) == 2


def _magnitude(module: str, roles: Mapping[str, LazyTensor], product: Product) -> tuple[int, LazyTensor | None]:
    """(the axis that DoRA's magnitudes go along, the magnitudes)."""
    held = roles.get("magnitude")
    if held is None:
        return 0, None
    if isinstance(product, Full):
        raise Problem("a magnitude, and nothing of low rank, in", module)
    if held.numel == product.size[0] and (held.shape[:1] == product.size[:1] or "lora_magnitude_vector" in held.key):
        return 0, held
    if len(held.shape) > 1 and held.shape[0] == 1 and held.numel == held.shape[1] and product.size[1] % held.numel == 0:
        return 1, held
    raise Problem(f"magnitudes {list(held.shape)} that are for neither axis, in", module)
