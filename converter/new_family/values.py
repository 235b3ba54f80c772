"""What a file shows of a net's hyper-parameters, and what the target's `config.json` takes of them: sure, or marked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from math import isqrt
from typing import Any

from ..families.travelling import CLASS

CONSTANT = "no tensor shows it: is it the same for every checkpoint?"
HEADS = "num_attention_heads"
SHORT = 60  # the longest text of a config that a line holds
# What is called so here -> what configs call it.
_CALLED = {
    "hidden_size": ("hidden_size", "inner_dim", "width", "model_dim"),
    "in_channels": ("in_channels",),
    "patch_size": ("patch_size",),
    "sample_size": ("sample_size",),
    "out_channels": ("out_channels",),
    HEADS: (HEADS, "num_heads", "n_heads", "heads"),
}
_DEPTH = re.compile(r"(num|n)_(\w+_)?(layers|blocks)|depth|depth_\w+|\w+_depth", re.ASCII)
_DEEP = "depth"  # what the names of depths here end with
_PLAIN = re.compile(r"[a-z_]\w*", re.ASCII | re.IGNORECASE)  # a key that can stand in a program
_SIZE = 8  # a smaller number has the size of some axis by chance


@dataclass(frozen=True)
class Shown:
    """A hyper-parameter that a file shows. `code`: Python for its value and its evidence; `doubt`: '' where the
    target's config says the same."""

    name: str
    size: int
    code: tuple[str, ...]
    doubt: str = ""


@dataclass(frozen=True)
class Field:
    """A field of the target's `config.json`: Python for its value, '' where a line cannot hold it."""

    key: str
    value: Any
    code: str
    doubt: str = ""


def head_key(config: Mapping[str, Any]) -> str:
    """What a config calls the number of heads."""
    return next((key for key in _CALLED[HEADS] if key in config), HEADS)


def _width(config: Mapping[str, Any]) -> int:
    """The heads of a config times the channels of each; 0 where it does not say."""
    heads, channels = config.get(head_key(config)), config.get("attention_head_dim")
    return heads * channels if type(heads) is type(channels) is int else 0


# A name here, the symbol that shows it, and what is to be asked of it.
_KNOWN = (
    ("hidden_size", "D", "the size that most matrices have: is it the width?"),
    ("in_channels", "C", "the channels that {} takes: is it the patch embedding?"),
    ("patch_size", "p", "the side of the kernel {}: a kernel that moves by 1 is no patch"),
    ("out_channels", "R", "the rows of {} for each position of a patch: is it the last layer?"),
    ("sample_size", "N", "the side of the square of {}: is it a table of the positions of an image?"),
)


def shown(
    dims: Mapping[str, int],
    first: Mapping[str, str],
    stacks: Mapping[str, int],
    config: Mapping[str, Any],
    *,
    buffers: Collection[str] = (),
) -> list[Shown]:
    """What a file shows, by the symbols of the shapes and the stacks of blocks.

    Args:
        dims, first: symbol -> size, and where it was seen.
        buffers: symbols that only tensors show which a converted folder lacks.
    """
    found = []
    for name, symbol, question in _KNOWN:
        size = _size(symbol, dims)
        if size and (name != "out_channels" or config.get(name, size) == size):
            doubt = _doubt(name, size, question.format(first[symbol]), config)
            found.append(Shown(name, size, _code(name, symbol, dims, config, buffers), doubt))
    found += _depths(stacks)
    taken = {key for one in found for key in (one.name, *_CALLED.get(one.name, ()))} | {"attention_head_dim"}
    for key, value in config.items():
        symbols = [symbol for symbol in dims if dims[symbol] == value and symbol not in "CpNR"]
        if key not in taken and type(value) is int and value >= _SIZE and symbols and _PLAIN.fullmatch(key):
            symbol = next((one for one in symbols if one not in buffers), symbols[0])
            others = [f"{one} ({first[one]})" for one in symbols if one != symbol]
            doubt = f"{value} in config.json, as {symbol} ({first[symbol]}): is it that?"
            doubt += f" {' and '.join(others)} has the same size" if others else ""
            found.append(Shown(key, value, _code(key, symbol, dims, config, buffers), doubt))
    return found


def _size(symbol: str, dims: Mapping[str, int]) -> int:
    """What a symbol shows: of R the channels, of N the side of the latent; 0 for nothing."""
    size, patch = dims.get(symbol, 0), dims.get("p", 1)
    if symbol == "R":
        return 0 if size % patch**2 else size // patch**2
    if symbol == "N":
        return patch * isqrt(size) if isqrt(size) ** 2 == size else 0
    return size


def _doubt(name: str, size: int, question: str, config: Mapping[str, Any]) -> str:
    """What remains to be asked of a size; '' where the config says the same."""
    for key in _CALLED[name]:
        if type(config.get(key)) is int:
            return "" if config[key] == size else f"{size}, and config.json has {key} {config[key]}: {question}"
    return "" if name == "hidden_size" and _width(config) == size else f"{size}, {question}"


def _code(
    name: str, symbol: str, dims: Mapping[str, int], config: Mapping[str, Any], buffers: Collection[str]
) -> tuple[str, ...]:
    """Python for what a symbol shows, as `_size` has it, and for its evidence."""
    lost = symbol in buffers and (name in config or not config)
    if symbol not in "RN" and not lost:
        return (f'*plan.shown("{symbol}")',)
    size, patch = f'plan.dims.get("{symbol}", 0)', 'plan.dims.get("p", 1)' if dims.get("p", 1) > 1 else ""
    if symbol == "R":
        size += f" // {patch} ** 2" if patch else ""
    elif symbol == "N":
        size = f"isqrt({size})" + (f" * {patch}" if patch else "")
    fallback = f'configured(state.config, "{name}", int)' if lost else "None"
    return f"{size} or {fallback}", f'plan.shown("{symbol}")[1]'


def _depths(stacks: Mapping[str, int]) -> Iterator[Shown]:
    """The number of blocks of every stack."""
    plain, names = {stack: stack.replace(".", "_").lower() for stack in stacks}, set[str]()
    for stack, count in stacks.items():
        if len(stacks) == 1:
            yield Shown("depth", count, ("plan.blocks or None", 'f"{plan.blocks} blocks"'))
            return
        name, number = plain[stack], 1
        while name in names:
            name, number = f"{plain[stack]}_{number + 1}", number + 1
        names.add(name)
        alike = number > 1 or [*plain.values()].count(name) > 1
        doubt = f"of {stack}: the names of several stacks differ in dots and capitals alone" if alike else ""
        yield Shown(f"{name}_depth", count, (f'plan.stacks.get("{stack}")', f'"the blocks of {stack}"'), doubt)


def fields(found: Sequence[Shown], config: Mapping[str, Any]) -> Iterator[Field]:
    """The lines of `config`: what a file shows is taken from there, another value as it is, and marked."""
    sizes = {one.name: one.size for one in found}
    depths = _depth_fields(found, config)
    for key, value in config.items():
        name = next((name for name, keys in _CALLED.items() if key in keys), key)
        if key == head_key(config) or (type(value) is int and sizes.get(name) == value):
            yield Field(key, value, f'found.value("{name}")')
        elif key == "attention_head_dim" and _width(config) == sizes.get("hidden_size"):
            yield Field(key, value, f'found.value("hidden_size") // found.value("{HEADS}")')
        elif key in depths:
            others = [name for name in sizes if name.endswith(_DEEP) and sizes[name] == value and name != depths[key]]
            yield Field(key, value, f'found.value("{depths[key]}")', f"or {', '.join(others)}" if others else "")
        elif key in (CLASS, "_diffusers_version"):
            yield Field(key, value, literal(value) if len(literal(value)) < SHORT else "")
        else:
            yield Field(key, value, literal(value), CONSTANT)


def _depth_fields(found: Sequence[Shown], config: Mapping[str, Any]) -> dict[str, str]:
    """Field of the config -> the depth that it is: of those with its value, the one whose name is most like it."""

    def likeness(pair: tuple[str, str]) -> float:
        one, other = (re.sub("_?(num|layers|blocks|depth)_?", "", name) for name in pair)
        return SequenceMatcher(None, one, other).ratio()

    deep = {one.name: one.size for one in found if one.name.endswith(_DEEP)}
    pairs = [(key, name) for key in config if _DEPTH.fullmatch(key) for name in deep if config[key] == deep[name]]
    fields: dict[str, str] = {}
    for key, name in sorted(pairs, key=likeness, reverse=True):
        if key not in fields and name not in fields.values():
            fields[key] = name
    return fields


def quoted(text: str) -> str:
    """A text as Python spells it, in ASCII: JSON spells what has no place in 16 bits as two characters.

    >>> quoted("a"), quoted("\U0001f600")
    ('"a"', "'\\\\U0001f600'")
    """
    return json.dumps(text) if text.isascii() else ascii(text)


def literal(value: Any, depth: int = 0) -> str:
    """A JSON value as Python spells it, in ASCII; '' for what does not fit a line."""
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, list) and len(value) <= 16 and depth < 3:
        parts = [literal(part, depth + 1) for part in value]
        return f"[{', '.join(parts)}]" if all(parts) else ""
    return ""
