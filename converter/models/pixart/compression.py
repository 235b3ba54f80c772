"""How a PixArt compresses keys and values, and how a user says so: `sampling=uniform,factor=2,blocks=14-27`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import UsageError, printable, shortened

if TYPE_CHECKING:
    from ...families.base import Findings
    from ...mapping import Plan

CONV, AVE, UNIFORM, EVERY = SAMPLINGS = ("conv", "ave", "uniform", "uniform_every")
FORM = "sampling=uniform,factor=2,blocks=14-27"
FIELD = "kv_compress_{}".format  # of a config, by the same names


@dataclass(frozen=True)
class Compression:
    """How a model of PixArt-sigma compresses keys and values (arXiv 2403.04692, "Efficient DiT Design").

    'conv' is the published sampling: a depthwise convolution and a norm. The others have no weights, so that a file
    does not show them: 'ave', which despite its name averages nothing but takes the nearest token; 'uniform', every
    factor-th row and column; 'uniform_every', every factor-th token of the flat sequence.

    >>> print(Compression("conv", 2, frozenset({2, 3, 5})))
    sampling=conv,factor=2,blocks=2-3,5
    """

    sampling: str  # one of `SAMPLINGS`
    factor: int  # by which rows and columns become fewer ('uniform_every': tokens)
    blocks: frozenset[int]  # indices of the blocks that do it

    def __str__(self) -> str:
        """As `parse` reads it."""
        runs: list[list[int]] = []
        for index in sorted(self.blocks):
            if runs and runs[-1][-1] == index - 1:
                runs[-1].append(index)
            else:
                runs.append([index])
        blocks = (f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
        return f"sampling={self.sampling},factor={self.factor},blocks={','.join(blocks)}"


def parse(name: str, value: Any, depth: int | None = None) -> Compression | None:
    """What a user says of a model: a text of that form, or false (no, none) for a model that compresses nothing.

    Args:
        name: of the hyper-parameter, for errors.
        depth: number of blocks of the model, where it is known.

    Raises: `UsageError` for anything else.

    >>> parse("kv_compress", "sampling=ave,factor=3,blocks=0,4-5", depth=6).blocks == {0, 4, 5}
    True
    """
    if value is False or (isinstance(value, str) and value.strip().lower() in ("false", "no", "none", "off")):
        return None
    wrong = f"`{name}` {printable(value, 80)}: say how it compresses, as in {FORM}, or that it does not (false)"
    if not isinstance(value, str):
        raise UsageError(wrong)
    words: dict[str, list[str]] = {}
    for piece in value.split(","):
        key, equals, rest = piece.strip().partition("=")
        if key in words or not (equals or words):
            raise UsageError(wrong)
        if equals:
            words[key] = [rest]
        else:  # more of the list before
            words[next(reversed(words))].append(key)
    if words.keys() != {"sampling", "factor", "blocks"} or [len(words["sampling"]), len(words["factor"])] != [1, 1]:
        raise UsageError(wrong)
    (sampling,), (factor,) = words["sampling"], words["factor"]
    if sampling not in SAMPLINGS:
        raise UsageError(f"`{name}`: sampling {printable(sampling, 40)}: one of {', '.join(SAMPLINGS)}")
    if not _number(factor) or int(factor) < 2:
        raise UsageError(f"`{name}`: factor {printable(factor, 40)}: a whole number of at least 2")
    blocks: set[int] = set()
    for run in words["blocks"]:
        first, dash, last = run.partition("-")
        last = last if dash else first
        if not (_number(first) and _number(last)) or int(first) > int(last):
            raise UsageError(f"`{name}`: blocks {printable(run, 40)}: numbers and runs of them, as in 2,14-27")
        if depth is not None and int(last) >= depth:
            raise UsageError(f"`{name}`: blocks {printable(run, 40)}: the model has blocks 0 to {depth - 1}")
        blocks.update(range(int(first), int(last) + 1))
    return Compression(sampling, int(factor), frozenset(blocks))


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 4


def fields(compression: Compression | None) -> dict[str, Any]:
    """What the `config.json` of the class says of it.

    >>> fields(None)
    {'kv_compress_sampling': None, 'kv_compress_factor': 1, 'kv_compress_blocks': []}
    """
    how = compression or Compression("", 1, frozenset())
    return {FIELD("sampling"): how.sampling or None, FIELD("factor"): how.factor, FIELD("blocks"): sorted(how.blocks)}


def of_fields(config: Mapping[str, Any]) -> Compression | None:
    """What a `config.json` says of it; None where that says nothing that can be one.

    >>> print(of_fields({"kv_compress_sampling": "ave", "kv_compress_factor": 2, "kv_compress_blocks": [4, 5]}))
    sampling=ave,factor=2,blocks=4-5
    """
    sampling, factor, blocks = (config.get(FIELD(name)) for name in ("sampling", "factor", "blocks"))
    numbers = isinstance(blocks, Collection) and all(type(index) is int and 0 <= index < 10_000 for index in blocks)
    if sampling in SAMPLINGS and type(factor) is int and factor > 1 and numbers and blocks:
        return Compression(sampling, factor, frozenset(blocks))
    return None


def describe_compression(plan: Plan, config: Mapping[str, Any], findings: Findings, name: str) -> None:
    """Fill the finding of that name: convolutions show how keys and values are compressed; of the other samplings, a
    config tells, or the user."""
    (factor, seen), configured, by_row = plan.shown("s"), of_fields(config), defaultdict[str, set[int]](set)
    for move in plan.moves:
        if move.row.group == name:
            by_row[move.row.source].add(move.place[0] or 0)
    blocks = set().union(*by_row.values())
    if blocks and list(by_row.values()) != [blocks] * 2:
        places = " and ".join(f"{path} in {shortened(list(map(str, sorted(of))), 8)}" for path, of in by_row.items())
        findings.problems.append(f"{name}: {places}: a block that compresses has a convolution and its norm")
    if findings.given.get(name) is True and blocks:
        del findings.given[name]  # how, the file says
    elif name in findings.given:
        given = parse(name, findings.given[name], plan.blocks or None)
        findings.given[name] = str(given) if given else False
    if blocks:
        shown = Compression(CONV, factor or 1, frozenset(blocks))
        findings.file(name, str(shown), f"{seen}: its kernel, and the blocks that have one")
        if configured not in (None, shown):
            findings.problems.append(f"config.json: it says {configured}, and the tensors are of {shown}")
    elif configured and configured.sampling != CONV:
        findings.file(name, str(configured), "config.json")
        findings.original_notes.append(
            f"its KV compression leaves no trace in a file: to convert that again, give --{name} {configured}"
        )
        if plan.blocks and max(configured.blocks) >= plan.blocks:
            findings.problems.append(f"config.json: {configured}, and there are blocks 0 to {plan.blocks - 1}")
    elif config:
        findings.file(name, False, "config.json: its class has none, or does not use it")
    else:
        why = "no convolutions; sampling 'uniform' or 'ave' would leave no trace in a file"
        findings.given_or_assumed(name, False, why)
        if str(findings[name].value).startswith(f"sampling={CONV},"):
            raise UsageError(f"`{name}` {CONV}: it has weights, and the file has none of them")
