"""What the families of this project have in common: patches of a latent, blocks, heads. What a file shows of these,
what a `config.json` says, and what only the user can. Their positions are in `positions`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fractions import Fraction
from math import inf, nextafter
from typing import Any

from ..errors import InputError, UsageError, printable
from ..mapping import Plan
from .base import Findings, Flag, State
from .travelling import CLASS

DIFFUSERS = "0.42.1"  # the release whose classes the configs are written for
LIMIT = 1 << 20  # far above any side, scale or number of heads, and its inverse far below any scale

NUM_ATTENTION_HEADS = Flag("num_attention_heads", int, "Number of attention heads.", minimum=1, metavar="N")
# Of a `config.json`, what changes no output: at most training, or a part that these classes do not have.
INERT: dict[str, tuple[Any, ...] | None] = {
    CLASS: ("Transformer2DModel",),
    **dict.fromkeys(("_diffusers_version", "dropout", "norm_num_groups", "upcast_attention")),
}
# What every such config says, as the class calls it -> the hyper-parameter.
SHOWN = {"num_layers": "depth"} | {name: name for name in ("patch_size", "in_channels", "out_channels")}


def common_config(findings: Findings, **own: Any) -> dict[str, Any]:
    """`config.json` of a transformer of diffusers: every field that it would otherwise guess is written."""
    hidden, count, _ = findings.values_of("hidden_size", "num_attention_heads", "image_size")
    fields = {
        "_diffusers_version": DIFFUSERS,
        "attention_head_dim": hidden // count,
        "dropout": 0.0,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,  # where the default may be 1e-5
        "num_attention_heads": count,
        "sample_size": findings.value("sample_size"),
        **{field: findings.value(name) for field, name in SHOWN.items()},
        **own,
    }
    return dict(sorted(fields.items()))


def stock_config(findings: Findings, **own: Any) -> dict[str, Any]:
    """The same of one whose blocks are diffusers' `BasicTransformerBlock`s."""
    block = {"activation_fn": "gelu-approximate", "attention_bias": True, "norm_num_groups": 32}
    return common_config(findings, **block, upcast_attention=False, **own)


def sizes(
    plan: Plan,
    findings: Findings,
    more: Mapping[str, str] | None = None,
    *,
    mlp_ratio: float | None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """What the shapes show.

    Args:
        plan: its symbols are D hidden size, C latent channels, p patch size, F width of the feed-forward layers, R rows
            of the output layer (patch^2 times output channels).
        more: further hyper-parameters, name -> symbol.
        mlp_ratio: the width of the feed-forward layers over the hidden size that the target's class is fixed at; None
            where it takes any, and then it is a hyper-parameter, of which the class takes the whole part of its product
            with the hidden size. Of the ratios that give the same width, that of the source's `config` is kept.
    """
    dims, evidence = plan.dims, plan.evidence
    for name, symbol in ({"hidden_size": "D", "patch_size": "p", "in_channels": "C"} | dict(more or {})).items():
        findings.file(name, dims.get(symbol), evidence.get(symbol, "no tensor shows it"))
    counted = f"blocks 0 to {plan.blocks - 1}" if plan.blocks else "there are no blocks"
    findings.file("depth", plan.blocks or None, counted)
    if {"R", "p", "C"} <= dims.keys():
        channels, latent = Fraction(dims["R"], dims["p"] ** 2), dims["C"]
        counted = f"{evidence['R']}: {dims['R']} rows / patch {dims['p']} squared"
        if channels in (latent, 2 * latent):
            findings.file("out_channels", int(channels), counted)
            findings.file("pred_sigma", channels > latent, f"{channels} output channels for {latent} latent channels")
        else:
            findings.problems.append(f"{counted} are {channels} output channels: neither {latent} nor twice as many")
    feed_forward(plan, findings, mlp_ratio, config or {})


def mlp_ratio_of(width: int, hidden: int) -> float:
    """A ratio whose product with the hidden size has this whole part.

    >>> [mlp_ratio_of(int(hidden * 2.5), hidden) for hidden in (2240, 49)]
    [2.5, 2.489795918367347]
    """
    ratio = width / hidden
    return ratio if int(hidden * ratio) == width else nextafter(ratio, inf)


def feed_forward(plan: Plan, findings: Findings, mlp_ratio: float | None, config: Mapping[str, Any]) -> None:
    """The width of these layers, F, which the original code lets a model choose and a class of diffusers may not: the
    arguments are those of `sizes`."""
    dims, evidence = plan.dims, plan.evidence
    if mlp_ratio is None:
        width, hidden = dims.get("F"), dims.get("D")
        ratio = mlp_ratio_of(width, hidden) if width and hidden else None
        written = configured(config, "mlp_ratio", float, int)
        if written and hidden and int(hidden * written) == width:
            ratio = float(written)
        findings.file("mlp_ratio", ratio, evidence.get("F", "no tensor shows it"))
    elif {"F", "D"} <= dims.keys() and dims["F"] != mlp_ratio * dims["D"]:
        findings.problems.append(
            f"its feed-forward layers are {dims['F'] / dims['D']:g} times as wide as the model, "
            f"and the diffusers class is fixed at {mlp_ratio:g}: {evidence['F']}"
        )


def check_depth(findings: Findings, usual: Collection[int], whose: str) -> None:
    """Note a depth that no released model has: that the last blocks are lost shows nowhere else.

    Args:
        usual: the numbers of blocks that they have, of this width; empty where there is none of it.
        whose: they, in words that end in a verb, such as "DiT-XL has".
    """
    depth, counts = findings["depth"].value, " or ".join(map(str, sorted(usual)))
    if depth and usual and depth not in usual:
        findings.notes.append(f"depth {depth}, where {whose} {counts} blocks: blocks at the end may be missing")


def check_config(config: Mapping[str, Any], findings: Findings, **more: str) -> None:
    """What a folder's `config.json` says otherwise than its tensors: a last block that is lost shows nowhere else.
    `more`: further keys of it, and the hyper-parameters that they are."""
    for key, name in {**SHOWN, **more}.items():
        stated, shown = config.get(key), findings.get(name)
        if stated is not None and shown and shown.source == "file" and stated != shown.value:
            problem = f"{printable(stated)} contradicts the tensors: {shown.evidence}"
            findings.problems.append(f"config.json: {key}: {problem}")


def sensible(value: float) -> bool:
    """Whether a positive number can be a side, a scale or a count at all."""
    return 1 / LIMIT < value < LIMIT


def configured(config: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """A positive number from `config.json`, None where it does not say; anyone may have written that file."""
    value = config.get(name)
    if value is not None and (type(value) not in kinds or not sensible(value)):
        raise InputError(f"config.json: {name}: {printable(value)} is not a sensible positive {kinds[0].__name__}")
    return value


HEADS = frozenset(("num_attention_heads", "num_heads", "n_heads", "heads", "num_head"))  # as programs call them


def heads(
    findings: Findings,
    state: State,
    usual: int | None,
    why: str,
    *,
    name: str = NUM_ATTENTION_HEADS.name,
    recorded: Collection[str] = HEADS,
) -> None:
    """A number of heads, which no tensor shows. Counts of heads recorded beside the weights may be another net's
    (a text encoder's): they are reported, but not relied on.

    Args:
        name: of the hyper-parameter, where a model has several; `recorded`: what programs call it.
        usual: that of the released models, None where they have none of this hidden size; `why` that is so.
    """
    hidden = findings["hidden_size"].value or 0
    stated = configured(state.config, name, int)
    others = {
        place: n for place, n in state.recorded_integers.items() if place.rpartition(".")[2] in recorded and n != usual
    }
    rejected = ", ".join(f"{place} is {n}" for place, n in list(others.items())[:4])
    if stated:
        count = findings.file(name, stated, "config.json")
    else:
        count = findings.given_or_assumed(name, usual, why if usual else f"a file does not show it{why}", rejected)
        if rejected and findings[name].source == "assumed":
            findings.notes.append(f"{rejected}, and {usual} heads are assumed: --{name} sets the number")
    if count is not None and hidden and (type(count) is not int or count < 1 or hidden % count):
        wrong = f"{count}: the hidden size {hidden} is not a multiple of it"
        raise InputError(f"config.json: {name} {wrong}") if stated else UsageError(f"`{name}` {wrong}")


def convention(findings: Findings, config: Mapping[str, Any], flag: Flag, usual: str | float | None, why: str) -> None:
    """What only a `config.json` shows, a positive number or one of the flag's choices; else the user's word, or what is
    usual (None: it is asked)."""
    written = config.get(flag.name)
    if flag.choices and written not in (None, *flag.choices):
        choices = " nor ".join(flag.choices)
        raise InputError(f"config.json: {flag.name}: {printable(repr(written), 60)} is neither {choices}")
    if not flag.choices:
        written = configured(config, flag.name, float, int)
        if (stated := findings.given.get(flag.name)) is not None and not sensible(stated):
            raise UsageError(f"`{flag.name}` {stated}: not a sensible positive number")
    if written is not None:
        findings.file(flag.name, written, f"config.json: {flag.name}")
    else:
        findings.given_or_assumed(flag.name, usual, why)
